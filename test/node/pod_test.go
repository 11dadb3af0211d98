//go:build e2e

package node

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestPodLife(t *testing.T) {
	guard(t)
	p := dial(t).run(t, dial(t).podConfig(t, "life"))
	s := p.status(t)
	if s.State != cri.PodSandboxState_SANDBOX_READY {
		t.Fatalf("pod is %s, want ready", s.State)
	}
	if s.Metadata.Name != "life" || s.Labels["e2e"] != "true" || s.Annotations["e2e.example/test"] != t.Name() {
		t.Errorf("pod came back as %v", s)
	}
	c := p.create(t, containerConfig("app", `trap "exit 3" TERM; echo started; while :; do sleep 0.1; done`))
	if s := c.status(t); s.State != cri.ContainerState_CONTAINER_CREATED || s.CreatedAt == 0 || s.StartedAt != 0 {
		t.Errorf("before the start: %v", s)
	}
	c.start(t)
	if s := c.status(t); s.State != cri.ContainerState_CONTAINER_RUNNING || s.StartedAt < s.CreatedAt {
		t.Errorf("after the start: %v", s)
	}
	eventually(t, 5*time.Second, "log says started", func() bool { return texts(c.logFile(t), "stdout") == "started\n" })
	c.stop(t, 60)
	if s := c.status(t); s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 3 || s.FinishedAt < s.StartedAt {
		t.Errorf("after the stop: %v", s)
	}
	if _, err := p.RemoveContainer(t.Context(), &cri.RemoveContainerRequest{ContainerId: c.id}); err != nil {
		t.Error(err)
	}
	p.remove(t)
	p.remove(t) // everything is idempotent
	list, err := p.ListPodSandbox(t.Context(), &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{Id: p.id}})
	if err != nil || len(list.Items) != 0 {
		t.Errorf("after the removal the list has %v, error %v", list.GetItems(), err)
	}
}

func TestExits(t *testing.T) {
	guard(t)
	e := dial(t)
	p := e.run(t, onHost(e.podConfig(t, "exits")))
	for name, want := range map[string]struct {
		script string
		code   int32
		reason string
	}{
		"zero":      {"exit 0", 0, "Completed"},
		"forty-two": {"exit 42", 42, "Error"},
		"killed":    {`sh -c 'kill -9 $$'; exit $?`, 137, "Error"},
		"not-there": {"exec /not/there", 127, "Error"},
	} {
		c := p.runScript(t, name, want.script)
		if s := c.wait(t, 10*time.Second); s.ExitCode != want.code || s.Reason != want.reason {
			t.Errorf("%s: exit code %d, reason %q; want %d, %q", name, s.ExitCode, s.Reason, want.code, want.reason)
		}
	}
}

func TestStartOfAMissingProgram(t *testing.T) {
	guard(t)
	e := dial(t)
	p := e.run(t, onHost(e.podConfig(t, "missing")))
	config := containerConfig("missing", "")
	config.Command = []string{"/no/such/program"}
	c := p.create(t, config)
	if _, err := c.StartContainer(t.Context(), &cri.StartContainerRequest{ContainerId: c.id}); err == nil {
		t.Fatal("a program that is not there was started")
	} else if !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("the error does not name the program: %v", err)
	}
	if s := c.status(t); s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 128 && s.ExitCode != 127 {
		t.Errorf("afterwards: %v", s)
	}
}

func TestOutOfMemory(t *testing.T) {
	guard(t)
	e := dial(t)
	p := e.run(t, onHost(e.podConfig(t, "oom")))
	config := containerConfig("oom", "x=x; while :; do x=$x$x; done")
	config.Linux.Resources.MemoryLimitInBytes = 32 << 20
	config.Linux.Resources.MemorySwapLimitInBytes = 32 << 20
	c := p.create(t, config).start(t)
	if s := c.wait(t, 30*time.Second); s.Reason != "OOMKilled" || s.ExitCode != 137 {
		t.Errorf("exit code %d, reason %q; want 137, OOMKilled", s.ExitCode, s.Reason)
	}
	// Unless they are to go together, one process is killed, and the others see it.
	alone := containerConfig("alone", "(x=x; while :; do x=$x$x; done) & wait $!; exit $(($? - 100))")
	alone.Linux.Resources.MemoryLimitInBytes, alone.Linux.Resources.MemorySwapLimitInBytes = 32<<20, 32<<20
	if s := p.create(t, alone).start(t).wait(t, 30*time.Second); s.ExitCode != 37 {
		t.Errorf("exit code %d, reason %q; want 37 of what lives on", s.ExitCode, s.Reason)
	}
}

func TestStopGrace(t *testing.T) {
	guard(t)
	e := dial(t)
	p := e.run(t, onHost(e.podConfig(t, "grace")))
	c := p.runScript(t, "stubborn", `trap "" TERM; echo ready; while :; do sleep 0.1; done`)
	eventually(t, 5*time.Second, "log says ready", func() bool { return len(c.logFile(t)) == 1 })
	start := time.Now()
	c.stop(t, 2)
	if took := time.Since(start); took < 2*time.Second {
		t.Errorf("killed after %s, the grace is 2 s", took)
	}
	if s := c.status(t); s.ExitCode != 137 {
		t.Errorf("exit code %d, want 137", s.ExitCode)
	}
}

func TestLogs(t *testing.T) {
	guard(t)
	e := dial(t)
	p := e.run(t, onHost(e.podConfig(t, "logs")))
	c := p.runScript(t, "logs", `for i in $(seq 2000); do echo "out $i"; echo "err $i" >&2; done; head -c 40000 /dev/zero | tr "\0" x; echo; printf "no newline at the end"`)
	c.wait(t, 20*time.Second)
	lines := c.logFile(t)
	var wantOut, wantErr strings.Builder
	for i := 1; i <= 2000; i++ {
		fmt.Fprintf(&wantOut, "out %d\n", i)
		fmt.Fprintf(&wantErr, "err %d\n", i)
	}
	fmt.Fprintf(&wantOut, "%s\n", strings.Repeat("x", 40000))
	wantOut.WriteString("no newline at the end")
	if got := texts(lines, "stderr"); got != wantErr.String() {
		t.Errorf("stderr has %d bytes, want %d", len(got), wantErr.Len())
	}
	// Whether an unfinished last line is marked partial is up to the engine.
	if got := strings.TrimSuffix(texts(lines, "stdout"), "\n"); got != wantOut.String() {
		t.Errorf("stdout has %d bytes, want %d", len(got), wantOut.Len())
	}
	for i := 1; i < len(lines); i++ {
		if lines[i].stream == lines[i-1].stream && lines[i].time.Before(lines[i-1].time) {
			t.Fatalf("line %d of %s is older than the one before it", i, lines[i].stream)
		}
	}
}

func TestExec(t *testing.T) {
	guard(t)
	e := dial(t)
	p := e.run(t, onHost(e.podConfig(t, "exec")))
	config := containerConfig("exec", "sleep 1000000")
	config.Envs = []*cri.KeyValue{{Key: "GREETING", Value: []byte("good $day")}}
	config.WorkingDir = "/tmp"
	c := p.create(t, config).start(t)
	if out, errOut, code := c.exec(t, "sh", "-c", "echo out; echo err >&2; exit 7"); out != "out\n" || errOut != "err\n" || code != 7 {
		t.Errorf("got %q, %q, %d", out, errOut, code)
	}
	if out, _, _ := c.exec(t, "sh", "-c", `echo "$GREETING $PWD"`); out != "good $day /tmp\n" {
		t.Errorf("environment and directory: %q", out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience(30*time.Second))
	defer cancel()
	if _, err := c.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"sleep", "1000"}, Timeout: 1}); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("an exec whose time was over: %v", err)
	}
	eventually(t, 5*time.Second, "the timed out exec is gone", func() bool {
		out, _, _ := c.exec(t, "sh", "-c", "ps | grep -c '[s]leep 1000$'")
		return strings.TrimSpace(out) == "0"
	})
}

func TestPodNetwork(t *testing.T) {
	guard(t)
	e := dial(t)
	e.pull(t, nginx)
	config := e.podConfig(t, "web")
	config.PortMappings = []*cri.PortMapping{{ContainerPort: 80, HostPort: 18080, Protocol: cri.Protocol_TCP}}
	p := e.run(t, config)
	network := p.status(t).Network
	if network.Ip == "" || len(network.AdditionalIps) != 1 {
		t.Fatalf("addresses %v, want one of each family", network)
	}
	web := containerConfig("nginx", "")
	web.Command, web.Image = nil, &cri.ImageSpec{Image: nginx}
	p.create(t, web).start(t)
	client := p.runScript(t, "client", "sleep 1000000")
	for _, url := range []string{"http://" + network.Ip, "http://[" + network.AdditionalIps[0].Ip + "]", "http://127.0.0.1:18080"} {
		eventually(t, 5*time.Second, url+" answers", func() bool { return answers(url) })
	}
	if out, _, code := client.exec(t, "wget", "-qO-", "http://127.0.0.1"); code != 0 || !strings.Contains(out, "nginx") {
		t.Errorf("the other container of the pod sees %q, exit code %d", out, code)
	}
	if out, _, _ := client.exec(t, "cat", "/etc/resolv.conf"); !strings.Contains(out, "nameserver 10.88.0.1") || !strings.Contains(out, "trial.example") {
		t.Errorf("resolv.conf is %q", out)
	}
	if out, _, _ := client.exec(t, "hostname"); out != "web\n" {
		t.Errorf("hostname is %q", out)
	}
}

func answers(url string) bool {
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

func TestSharedPIDNamespace(t *testing.T) {
	guard(t)
	e := dial(t)
	config := onHost(e.podConfig(t, "shared-pid"))
	config.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
	p := e.run(t, config)
	first := containerConfig("first", "exec sleep 1000001")
	first.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
	p.create(t, first).start(t)
	second := containerConfig("second", "exec sleep 1000002")
	second.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
	c := p.create(t, second).start(t)
	if out, _, _ := c.exec(t, "ps"); !strings.Contains(out, "sleep 1000001") {
		t.Errorf("the second container does not see the first:\n%s", out)
	}
}

// TestTargetPIDNamespace: a container for debugging is put into the PID namespace of
// another one, which has one of its own.
func TestTargetPIDNamespace(t *testing.T) {
	guard(t)
	e := dial(t)
	p := e.run(t, onHost(e.podConfig(t, "target")))
	target, other := p.runScript(t, "target", "exec sleep 1000003"), p.runScript(t, "other", "exec sleep 1000004")
	config := containerConfig("debugger", "exec sleep 1000005")
	config.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{Pid: cri.NamespaceMode_TARGET, TargetId: target.id}
	debugger := p.create(t, config).start(t)
	if out, _, _ := debugger.exec(t, "ps"); !strings.Contains(out, "sleep 1000003") || strings.Contains(out, "sleep 1000004") {
		t.Errorf("the debugger sees\n%s", out)
	}
	namespace := func(c container) string {
		out, _, _ := c.exec(t, "readlink", "/proc/self/ns/pid")
		return out
	}
	if of := namespace(target); namespace(debugger) != of || namespace(other) == of {
		t.Errorf("the target is in %s, the debugger in %s, the other in %s", of, namespace(debugger), namespace(other))
	}
	config = containerConfig("nobody", "exit 0")
	config.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_TARGET, TargetId: p.id}
	p.refused(t, map[string]func(*cri.ContainerConfig){
		"own-a target that is not there": func(c *cri.ContainerConfig) { c.Linux.SecurityContext = config.Linux.SecurityContext },
	})
}

func TestVolumes(t *testing.T) {
	guard(t)
	e := dial(t)
	dir, err := os.MkdirTemp("/var/tmp", "trial-volume-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	p := e.run(t, onHost(e.podConfig(t, "volumes")))
	config := containerConfig("volumes", "echo written >/rw/file; touch /ro/file; touch /file && echo root is writable; sleep 1000000")
	config.Mounts = []*cri.Mount{{HostPath: dir, ContainerPath: "/rw"}, {HostPath: dir, ContainerPath: "/ro", Readonly: true}}
	c := p.create(t, config).start(t)
	eventually(t, 5*time.Second, "log has all lines", func() bool { return len(c.logFile(t)) == 2 })
	if got := texts(c.logFile(t), "stderr"); !strings.Contains(got, "Read-only") {
		t.Errorf("the read-only volume said %q", got)
	}
	if text, err := os.ReadFile(dir + "/file"); err != nil || string(text) != "written\n" {
		t.Errorf("the volume has %q, error %v", text, err)
	}
}

// TestImageVolume mounts a part of an image. One that is not there is refused when the
// container is made, in the words by which kubelet knows it.
func TestImageVolume(t *testing.T) {
	guard(t)
	needsGantry(t)
	e := dial(t)
	p := e.run(t, onHost(e.podConfig(t, "image-volume")))
	ref := e.pull(t, registry+"layers:2")
	config := func(sub string) *cri.ContainerConfig {
		c := containerConfig("volume", "ls -d /vol/*; sleep 1000000")
		c.Mounts = []*cri.Mount{{ContainerPath: "/vol", Readonly: true, Image: &cri.ImageSpec{Image: ref}, ImageSubPath: sub}}
		return c
	}
	_, err := e.CreateContainer(t.Context(), &cri.CreateContainerRequest{PodSandboxId: p.id, Config: config("layers/none"), SandboxConfig: p.config})
	if err == nil || !strings.HasPrefix(status.Convert(err).Message(), "ImageVolumeMountFailed: ") {
		t.Errorf("a part of an image that is not there: %v", err)
	}
	c := p.create(t, config("layers")).start(t)
	eventually(t, 5*time.Second, "the volume is listed", func() bool { return strings.Contains(texts(c.logFile(t), "stdout"), "/vol/") })
	mounts := c.status(t).Mounts
	if len(mounts) != 1 || mounts[0].ContainerPath != "/vol" || !mounts[0].Readonly || mounts[0].HostPath != "" || mounts[0].ImageSubPath != "layers" ||
		mounts[0].Image.GetImage() != ref || !strings.Contains(mounts[0].Image.GetImageRef(), "@sha256:") {
		t.Errorf("the status has %v, the image is %s", mounts, ref)
	}
}
