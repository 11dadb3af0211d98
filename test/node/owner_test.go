//go:build e2e

package node

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestOwners runs a pod of the command line beside pods of the CRI: neither side
// may see or touch the other's.
func TestOwners(t *testing.T) {
	guard(t)
	needsGantry(t)
	e := dial(t)
	mine := e.run(t, onHost(e.podConfig(t, "mine")))
	id := e.pull(t, busybox)
	theirs := strings.TrimSpace(sh(t, "gantry run --detach --quiet --name theirs "+busybox+" sleep 1000000"))
	t.Cleanup(func() { sh(t, "gantry rm --force theirs") })
	if got := strings.TrimSpace(sh(t, "gantry list --quiet --owner cli")); got != theirs {
		t.Errorf("gantry lists %q as the command line's, want %q", got, theirs)
	}
	if got := strings.TrimSpace(sh(t, "gantry list --quiet --owner cri")); got != mine.id {
		t.Errorf("gantry lists %q as the CRI's, want %q", got, mine.id)
	}
	if got := e.picture(t); len(got) != 1 || got[mine.id] == "" {
		t.Errorf("the CRI lists %v, want only %s", got, mine.id)
	}
	_, err := e.PodSandboxStatus(t.Context(), &cri.PodSandboxStatusRequest{PodSandboxId: theirs})
	if status.Code(err) != codes.NotFound {
		t.Errorf("status of the command line's pod: %v", err)
	}
	if _, err := e.RemovePodSandbox(t.Context(), &cri.RemovePodSandboxRequest{PodSandboxId: theirs}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("removal of the command line's pod: %v", err)
	}
	image, err := e.images.ImageStatus(t.Context(), &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: id}})
	if err != nil || !image.Image.Pinned {
		t.Errorf("the image of a pod of the command line is not pinned: %v, %v", image, err)
	}
	if out, err := exec.Command("gantry", "rm", mine.id).CombinedOutput(); err == nil {
		t.Errorf("gantry rm took the CRI's pod without --force: %s", out)
	}
}

// TestIdempotence repeats what may be repeated, and asks for what never was.
func TestIdempotence(t *testing.T) {
	guard(t)
	e := dial(t)
	ctx := t.Context()
	config := onHost(e.podConfig(t, "twice"))
	p := e.run(t, config)
	c := p.runScript(t, "app", "sleep 1000000")
	for range 3 {
		if _, err := e.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: c.id}); err != nil {
			t.Error(err)
		}
	}
	for range 3 {
		if _, err := e.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
			t.Error(err)
		}
	}
	if s := p.status(t); s.State != cri.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("a stopped sandbox is %s", s.State)
	}
	for range 3 {
		if _, err := e.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: c.id}); err != nil {
			t.Error(err)
		}
		if _, err := e.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
			t.Error(err)
		}
	}
	const nobody = "aaaaaaaaaaaaaaaaaaaaaaaa"
	if _, err := e.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: nobody}); err != nil {
		t.Error(err)
	}
	if _, err := e.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: nobody}); err != nil {
		t.Error(err)
	}
	if _, err := e.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: nobody}); status.Code(err) != codes.NotFound {
		t.Errorf("status of nothing: %v", err)
	}
	if _, err := e.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: nobody, Cmd: []string{"true"}}); status.Code(err) != codes.NotFound {
		t.Errorf("exec in nothing: %v", err)
	}
}

// TestSandboxInTheMaking: until a sandbox is ready nobody sees it: a kubelet that gave up on it,
// or was started again, would take it for one that has failed. It asks again, and gets it.
func TestSandboxInTheMaking(t *testing.T) {
	guard(t)
	needsGantry(t)
	e := dial(t)
	e.pull(t, busybox)
	aim := aimAtServer(t)
	aim("create pod/network/after=sleep 20s")
	config := e.podConfig(t, "making")
	impatient, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := e.RunPodSandbox(impatient, &cri.RunPodSandboxRequest{Config: config}, grpc.WaitForReady(true)); status.Code(err) != codes.DeadlineExceeded {
		t.Fatalf("a request without patience: %v", err)
	}
	if n := sh(t, "ls /var/lib/gantry/pods | wc -l"); n != "1" {
		t.Errorf("%s pods are on disk while one is made", n)
	}
	type made struct {
		id  string
		err error
	}
	done := make(chan made, 1)
	go func() {
		resp, err := e.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: config})
		done <- made{resp.GetPodSandboxId(), err}
	}()
	for looks := 0; ; looks++ {
		list, err := e.ListPodSandbox(t.Context(), &cri.ListPodSandboxRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range list.Items {
			if s.Metadata.Uid == config.Metadata.Uid && s.State != cri.PodSandboxState_SANDBOX_READY {
				t.Errorf("look %d: it is listed as %s", looks, s.State)
			}
		}
		select {
		case m := <-done:
			if m.err != nil || looks == 0 {
				t.Fatalf("after %d looks: %v", looks, m.err)
			}
			p := pod{e, m.id, config}
			t.Cleanup(func() { p.remove(t) })
			if got, err := e.PodSandboxStatus(t.Context(), &cri.PodSandboxStatusRequest{PodSandboxId: m.id}); err != nil || got.Status.Network.GetIp() == "" {
				t.Errorf("once it is made: %v, %v", got, err)
			}
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// TestCreatedOnce: who gives up on a request and asks again gets what the first is making.
func TestCreatedOnce(t *testing.T) {
	guard(t)
	needsGantry(t) // others answer the second with an error, or make another
	e := dial(t)
	e.pull(t, busybox)
	config := e.podConfig(t, "once")
	impatient, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
	defer cancel()
	if _, err := e.RunPodSandbox(impatient, &cri.RunPodSandboxRequest{Config: config}); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("a request without patience: %v", err)
	}
	id := e.several(t, func() (string, error) {
		resp, err := e.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: config})
		return resp.GetPodSandboxId(), err
	})
	p := pod{e, id, config}
	t.Cleanup(func() { p.remove(t) })
	list, err := e.ListPodSandbox(t.Context(), &cri.ListPodSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, item := range list.Items {
		if item.Metadata.Uid == config.Metadata.Uid {
			n++
		}
	}
	if n != 1 {
		t.Errorf("there are %d sandboxes of the pod", n)
	}
	app := containerConfig("app", "sleep 1000000")
	p.several(t, func() (string, error) {
		resp, err := e.CreateContainer(t.Context(), &cri.CreateContainerRequest{PodSandboxId: p.id, Config: app, SandboxConfig: config})
		return resp.GetContainerId(), err
	})
	containers, err := e.ListContainers(t.Context(), &cri.ListContainersRequest{Filter: &cri.ContainerFilter{PodSandboxId: p.id}})
	if err != nil || len(containers.Containers) != 1 {
		t.Errorf("the containers are %v, %v", containers, err)
	}
}

// several asks for the same four times at once, and wants one answer.
func (e engine) several(t *testing.T, ask func() (string, error)) string {
	t.Helper()
	type answer struct {
		id  string
		err error
	}
	answers := make(chan answer)
	for range 4 {
		go func() {
			id, err := ask()
			answers <- answer{id, err}
		}()
	}
	first := <-answers
	for range 3 {
		if a := <-answers; a != first {
			t.Errorf("one answer is %v, another %v", first, a)
		}
	}
	if first.err != nil {
		t.Fatal(first.err)
	}
	return first.id
}

// TestUpdateResources changes limits of a running container and reads them back,
// from the CRI and from inside.
func TestUpdateResources(t *testing.T) {
	guard(t)
	e := dial(t)
	config := containerConfig("app", "sleep 1000000")
	config.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuPeriod: 100000, CpuQuota: 20000, CpuShares: 512, OomScoreAdj: 456}
	c := e.run(t, onHost(e.podConfig(t, "resize"))).create(t, config).start(t)
	if _, err := e.UpdateContainerResources(t.Context(), &cri.UpdateContainerResourcesRequest{
		ContainerId: c.id, Linux: &cri.LinuxContainerResources{MemoryLimitInBytes: 96 << 20, CpuQuota: 35500, OomScoreAdj: 321},
		Annotations: map[string]string{"example.org/a": "b"},
	}); err != nil {
		t.Fatal(err)
	}
	got := c.status(t).Resources.GetLinux()
	if got.GetMemoryLimitInBytes() != 96<<20 || got.GetCpuQuota() != 35500 || got.GetCpuPeriod() != 100000 || got.GetCpuShares() != 512 {
		t.Errorf("read back: %v", got)
	}
	out, _, _ := c.exec(t, "sh", "-c", "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max")
	if want := "100663296\n35500 100000\n"; out != want {
		t.Errorf("inside: %q, want %q", out, want)
	}
	if !ours() {
		return // the peers drop it
	}
	sh(t, "echo -hugetlb >/sys/fs/cgroup/"+slice+"/cgroup.subtree_control") // which nobody asked for before
	if _, err := e.UpdateContainerResources(t.Context(), &cri.UpdateContainerResourcesRequest{
		ContainerId: c.id, Linux: &cri.LinuxContainerResources{
			CpusetCpus: "0", Unified: map[string]string{"memory.high": "50331648", "memory.low": "1048576"}, HugepageLimits: []*cri.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}},
		},
	}); err != nil {
		t.Fatal(err)
	}
	out, _, _ = c.exec(t, "sh", "-c", "cd /sys/fs/cgroup && cat cpuset.cpus memory.high memory.low hugetlb.2MB.max memory.max")
	if want := "0\n50331648\n1048576\n4194304\n100663296\n"; out != want {
		t.Errorf("inside: %q, want %q", out, want)
	}
	if got := c.status(t).Resources.GetLinux(); got.GetCpusetCpus() != "0" || got.GetUnified()["memory.high"] != "50331648" || got.GetMemoryLimitInBytes() != 96<<20 {
		t.Errorf("read back: %v", got)
	}
	for what, r := range map[string]*cri.LinuxContainerResources{
		"a CPU that is not there": {CpusetCpus: "900"}, "a file that is not there": {Unified: map[string]string{"memory.hihg": "1"}},
	} {
		if _, err := e.UpdateContainerResources(t.Context(), &cri.UpdateContainerResourcesRequest{ContainerId: c.id, Linux: r}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", what, err)
		}
	}
	out, _, _ = c.exec(t, "sh", "-c", "cat /proc/1/oom_score_adj /proc/self/oom_score_adj")
	if out != "321\n321\n" || got.GetOomScoreAdj() != 321 {
		t.Errorf("the OOM score is %q of an old process and a new one, read back %d", out, got.GetOomScoreAdj())
	}
}

// TestExecSyncIsCapped: of an output that is larger than an answer may be comes what fits,
// and the command runs to its end.
func TestExecSyncIsCapped(t *testing.T) {
	guard(t)
	e := dial(t)
	c := e.run(t, onHost(e.podConfig(t, "flood"))).runScript(t, "app", steady)
	out, _, code := c.exec(t, "sh", "-c", "head -c 20000000 /dev/zero; touch /over; exit 3")
	if len(out) < 15<<20 || len(out) > 16<<20 || code != 3 {
		t.Errorf("%d bytes, exit code %d", len(out), code)
	}
	if _, _, code := c.exec(t, "test", "-e", "/over"); code != 0 {
		t.Error("the command was cut off")
	}
}

// TestLogRotation does what kubelet does with a log that has grown.
func TestLogRotation(t *testing.T) {
	guard(t)
	e := dial(t)
	c := e.run(t, onHost(e.podConfig(t, "rotate"))).runScript(t, "app", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done")
	path := filepath.Join(c.pod.config.LogDirectory, c.config.LogPath)
	var parts []string
	for _, old := range []string{path + ".1", path + ".2", path + ".3"} {
		eventually(t, 5*time.Second, "the log has lines", func() bool { return len(c.logFile(t)) > 5 })
		if err := os.Rename(path, old); err != nil {
			t.Fatal(err)
		}
		if _, err := e.ReopenContainerLog(t.Context(), &cri.ReopenContainerLogRequest{ContainerId: c.id}); err != nil {
			t.Fatal(err)
		}
		if !exists(path) {
			t.Fatal("there is no new file when the request is answered")
		}
		parts = append(parts, old)
	}
	c.stop(t, 0)
	var lines []logLine
	for _, p := range append(parts, path) {
		text, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, parseLog(t, string(text))...)
	}
	inOrder(t, lines)
	if _, err := e.ReopenContainerLog(t.Context(), &cri.ReopenContainerLogRequest{ContainerId: c.id}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("log of a stopped container: %v", err)
	}
}
