//go:build e2e

package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/test/machine"
)

// withMachines switches virtual machines on for a test.
func withMachines(t *testing.T) {
	t.Helper()
	if _, err := os.Stat("/usr/bin/qemu-system-x86_64"); err != nil {
		notRun(t, "there is no qemu in the VM")
	}
	sh(t, "modprobe -a vhost_vsock tun && { modprobe kvm_amd || modprobe kvm_intel; }")
	withConfig(t, "[kvm]\nmemory = \"256MiB\"\nboot-time = \"3m\"\n")
}

// killed calls something while gantry-cri is killed that much later, and again until it
// is answered, as a kubelet would. Then the server is back. It tells whether the kill came
// before the answer.
func (e engine) killed(t *testing.T, after time.Duration, what string, call func(ctx context.Context) error) (hit bool) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		<-time.After(after)
		out, err := exec.Command("systemctl", "kill", "-s", "KILL", "--kill-whom=main", "gantry-cri.service").CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		done <- err
	}()
	began := time.Now()
	e.insist(t, what, call)
	hit = time.Since(began) > after
	if err := <-done; err != nil {
		t.Errorf("kill the server after %s: %v", after, err)
	}
	e.insist(t, "the server is back", func(ctx context.Context) error {
		_, err := e.Version(ctx, &cri.VersionRequest{})
		return err
	})
	return hit
}

// insist calls until there is an answer. One may take as long as a machine boots.
func (e engine) insist(t *testing.T, what string, call func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience(2*time.Minute))
	defer cancel()
	for {
		err := call(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// sandboxesOf are those of a pod, whichever attempt.
func (e engine) sandboxesOf(ctx context.Context, config *cri.PodSandboxConfig) ([]*cri.PodSandbox, error) {
	resp, err := e.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	var out []*cri.PodSandbox
	for _, s := range resp.GetItems() {
		if s.Metadata.Uid == config.Metadata.Uid {
			out = append(out, s)
		}
	}
	return out, err
}

// runAgain makes a sandbox as a kubelet does that does not know what became of the last
// attempt: what is there goes first.
func (e engine) runAgain(ctx context.Context, config *cri.PodSandboxConfig) (id string, err error) {
	there, err := e.sandboxesOf(ctx, config)
	if err != nil {
		return "", err
	}
	for _, s := range there {
		if err := e.end(ctx, s.Id); err != nil {
			return "", err
		}
		config.Metadata.Attempt = max(config.Metadata.Attempt, s.Metadata.Attempt+1)
	}
	resp, err := e.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: "kvm"})
	return resp.GetPodSandboxId(), err
}

// end stops and removes a sandbox.
func (e engine) end(ctx context.Context, id string) error {
	if _, err := e.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		return err
	}
	_, err := e.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id})
	return err
}

// TestMachinesWhileTheServerIsKilled kills gantry-cri at every moment of pods' lives that
// are virtual machines: while they start, run and stop. One sandbox comes to be each time, its
// container is not disturbed, and nothing is left.
func TestMachinesWhileTheServerIsKilled(t *testing.T) {
	guard(t)
	needsGantry(t)
	withMachines(t)
	e := dial(t)
	e.pull(t, busybox)
	config := e.podConfig(t, "machine")
	timed := func(what string, call func(ctx context.Context) error) time.Duration {
		began := time.Now()
		e.insist(t, what, call)
		return time.Since(began)
	}
	var id string
	run := func(ctx context.Context) (err error) {
		id, err = e.runAgain(ctx, config)
		return err
	}
	e.insist(t, "the first start, which makes what machines boot", run)
	e.insist(t, "the first end", func(ctx context.Context) error { return e.end(ctx, id) })
	starts := timed("start", run)
	stops := timed("stop", func(ctx context.Context) error { return e.end(ctx, id) })
	t.Logf("undisturbed a start takes %s, a stop %s", starts.Round(time.Millisecond), stops.Round(time.Millisecond))
	lives, hits := machine.Amount(17, 1), 0 // of three kills
	for i := range lives {
		part := func(d time.Duration) time.Duration { return d * time.Duration(2*i+1) / time.Duration(2*lives) }
		hits += e.liveKilled(t, i, part(starts), part(lasts), part(stops))
		if t.Failed() {
			t.Fatalf("in life %d of %d", i+1, lives)
		}
	}
	t.Logf("%d of %d kills came before the answer", hits, 3*lives)
	if hits < 2*lives {
		t.Error("too few to tell anything")
	}
}

// TestServerKilledWhileAMachineIsMade kills gantry-cri at the boundaries where the making
// of a machine differs from that of another pod. What is left is not ready, and the next
// try makes a sandbox; the network that the dead one had is given back.
func TestServerKilledWhileAMachineIsMade(t *testing.T) {
	guard(t)
	needsGantry(t)
	withMachines(t)
	e := dial(t)
	e.pull(t, busybox)
	aim := aimAtServer(t)
	for _, step := range []string{"late units", "network", "late units are up", "network record"} {
		for _, when := range []string{"before", "after"} {
			point := "create pod/" + step + "/" + when
			config := e.podConfig(t, "made")
			aim(point)
			if _, err := e.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: "kvm"}); err == nil {
				t.Errorf("%s: it did not die", point)
			}
			aim("")
			var there []*cri.PodSandbox
			e.insist(t, point+": a list", func(ctx context.Context) (err error) {
				there, err = e.sandboxesOf(ctx, config)
				return err
			})
			whole := point == "create pod/network record/after"
			for _, s := range there {
				if ready := s.State == cri.PodSandboxState_SANDBOX_READY; ready != whole {
					t.Errorf("%s: what is left is %s", point, s.State)
				}
			}
			var id string
			e.insist(t, point+": the next try", func(ctx context.Context) error {
				resp, err := e.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: "kvm"})
				id = resp.GetPodSandboxId()
				return err
			})
			p := pod{e, id, config}
			if c := p.runScript(t, "app", "exit 42"); c.wait(t, patience(time.Minute)).ExitCode != 42 {
				t.Errorf("%s: its container ended as %v", point, c.status(t))
			}
			e.insist(t, point+": the end", func(ctx context.Context) error { return e.end(ctx, id) })
		}
	}
}

const (
	writes = 200 // lines
	lasts  = writes * 50 * time.Millisecond
)

func (e engine) liveKilled(t *testing.T, number int, start, run, stop time.Duration) (hits int) {
	t.Helper()
	config := e.podConfig(t, fmt.Sprintf("machine-%d", number))
	if err := os.MkdirAll(config.LogDirectory, 0o755); err != nil {
		t.Fatal(err)
	}
	count := func(hit bool) {
		if hit {
			hits++
		}
	}
	p := pod{e, "", config}
	count(e.killed(t, start, "start", func(ctx context.Context) (err error) {
		p.id, err = e.runAgain(ctx, config)
		return err
	}))
	there, err := e.sandboxesOf(t.Context(), config)
	if err != nil || len(there) != 1 || there[0].Id != p.id || there[0].State != cri.PodSandboxState_SANDBOX_READY {
		t.Errorf("after a kill at %s there are %v, %v; want %s, ready", start, there, err, p.id)
	}
	c := p.runScript(t, "writer", fmt.Sprintf("i=1; while [ $i -le %d ]; do echo line $i; sleep 0.05; i=$((i+1)); done; exit 42", writes))
	count(e.killed(t, run, "the end", func(ctx context.Context) error {
		resp, err := c.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: c.id})
		if err == nil && resp.Status.State != cri.ContainerState_CONTAINER_EXITED {
			err = errors.New("it runs")
		}
		return err
	}))
	if s := c.outlive(t); s.ExitCode != 42 {
		t.Errorf("after a kill at %s it ended with %d, %s: %s", run, s.ExitCode, s.Reason, s.Message)
	}
	c.checkLines(t, writes)
	if found := p.traces(t); !strings.Contains(found, "qemu-system") || !strings.Contains(found, "gantry-machine-") {
		t.Errorf("before the stop there is only\n%s", found)
	}
	count(e.killed(t, stop, "stop", func(ctx context.Context) error { return e.end(ctx, p.id) }))
	if found := p.traces(t); found != "" {
		t.Errorf("after a kill at %s there is\n%s", stop, found)
	}
	return hits
}

// traces are the processes, units and files of a pod.
func (p pod) traces(t *testing.T) string {
	t.Helper()
	// The shell that looks must not find itself. To find nothing is no failure.
	processes := sh(t, "pgrep -fa '["+p.id[:1]+"]"+p.id[1:]+"' || test $? = 1")
	units := sh(t, "systemctl list-units --all --plain --no-legend 'gantry-*"+p.id+"*'")
	files := sh(t, "find /var/lib/gantry/pods /run/gantry/pods -maxdepth 1 -name "+p.id)
	return strings.TrimSpace(processes + units + files)
}
