//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/node"
	"gantry/internal/pod"
	"gantry/internal/unit"
	"gantry/test/machine"
)

// exits is how many ends of apps each of the two tests looks at.
func exits() int { return machine.Amount(1000, 60) }

// TestExitsWhilePID1IsBusy starts apps that end at once while PID 1 reloads, executes
// itself again, loses its bus, and has a unit started and stopped all the time. Every
// exit code must be right.
func TestExitsWhilePID1IsBusy(t *testing.T) {
	guard(t)
	whilePID1IsBusy(t, func(ctx context.Context, n *node.Node, p *pod.Pod, i int) error {
		code := i % 200
		want := pod.Exit{Code: code, Reason: pod.ReasonError}
		if code == 0 {
			want.Reason = pod.ReasonCompleted
		}
		return oneExit(ctx, n, p, fmt.Sprintf("exit %d", code), nil, want)
	})
}

// TestKillsWhilePID1IsBusy does the same to apps that are killed from outside, some
// of them before they got as far as to run.
func TestKillsWhilePID1IsBusy(t *testing.T) {
	guard(t)
	kill := func(pid int) error {
		time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)
		return unix.Kill(pid, unix.SIGKILL)
	}
	whilePID1IsBusy(t, func(ctx context.Context, n *node.Node, p *pod.Pod, _ int) error {
		return oneExit(ctx, n, p, "exec sleep 1000", kill, pod.Exit{Code: 137, Reason: pod.ReasonError})
	})
}

func whilePID1IsBusy(t *testing.T, one func(ctx context.Context, n *node.Node, p *pod.Pod, i int) error) {
	t.Helper()
	n := watched(t)
	pull(t, n, busybox)
	// A pod's apps start one after the other.
	pods := make(chan *pod.Pod, 4)
	for range cap(pods) {
		pods <- newPod(t, n, hostNetwork)
	}
	holdImage(t, n)
	stop := keepBusy(t)
	defer stop()

	began := time.Now()
	var wrong atomic.Int32
	var wg sync.WaitGroup
	for i := range exits() {
		p := <-pods
		if wrong.Load() > 20 {
			break
		}
		if i%50 == 49 {
			t.Logf("%d after %s", i+1, time.Since(began).Round(time.Second))
		}
		wg.Go(func() {
			defer func() { pods <- p }()
			if err := one(t.Context(), n, p, i); err != nil {
				t.Errorf("%d: %v", i, err)
				wrong.Add(1)
			}
		})
	}
	wg.Wait()
	t.Logf("%d ends, %d wrong, %s", exits(), wrong.Load(), time.Since(began).Round(time.Second))
}

// holdImage keeps an app running, so that its image is not unmounted and mounted
// again for each of the others.
func holdImage(t *testing.T, n *node.Node) {
	t.Helper()
	a := newApp(t, n, newPod(t, n, hostNetwork), command("sleep", "1000000"))
	start(t, n, a)
}

// oneExit runs a script to its end, lets kill have its process if it is given, and
// checks how the end was recorded.
func oneExit(ctx context.Context, n *node.Node, p *pod.Pod, script string, kill func(pid int) error, want pod.Exit) error {
	spec := appSpec("app")
	spec.Command = []string{"/bin/sh", "-c", script}
	a, err := n.CreateApp(ctx, p.ID, spec)
	if err != nil {
		return err
	}
	if err := n.StartApp(ctx, a.ID); err != nil {
		return err
	}
	if kill != nil {
		s, err := n.App(a.ID)
		if err == nil {
			err = kill(s.PID)
		}
		if err != nil {
			return fmt.Errorf("kill app %s: %w", a.ID, err)
		}
	}
	waiting, cancel := context.WithTimeout(ctx, patience(20*time.Second))
	defer cancel()
	s, err := n.WaitApp(waiting, a.ID)
	if err != nil {
		return err
	}
	if s.Exit.Code != want.Code || s.Exit.Reason != want.Reason {
		return fmt.Errorf("app %s: code %d, reason %s (%s); want %d, %s", a.ID, s.Exit.Code, s.Exit.Reason, s.Exit.Message, want.Code, want.Reason)
	}
	if !s.Exit.Finished.After(s.Exit.Started) || s.Exit.Started.IsZero() {
		return fmt.Errorf("app %s: started %s, finished %s", a.ID, s.Exit.Started, s.Exit.Finished)
	}
	return n.RemoveApp(ctx, a.ID)
}

// keepBusy gives PID 1 work until the returned function is called.
func keepBusy(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for _, script := range []string{
		"systemctl daemon-reload; sleep 10",
		"systemd-run -q --wait --collect true; sleep 1",
		"sleep 30; systemctl daemon-reexec",
		"sleep 47; systemctl restart dbus",
	} {
		wg.Go(func() {
			for ctx.Err() == nil {
				// A client whose bus is restarted fails; that is the point.
				_ = exec.CommandContext(ctx, "sh", "-c", script).Run()
			}
		})
	}
	return func() { cancel(); wg.Wait() }
}

// TestSixMiB: the helpers around an app are charged to its limit, and must fit
// into the smallest one that makes sense.
func TestSixMiB(t *testing.T) {
	guard(t)
	n := openNode(t)
	pull(t, n, busybox)
	p := newPod(t, n, hostNetwork)
	small := limits(pod.Resources{Memory: 6 << 20, MemorySwap: 6 << 20})
	for range machine.Amount(20, 5) {
		a := newApp(t, n, p, small, shell("exit 7"))
		start(t, n, a)
		if s := wait(t, n, a); s.Exit.Code != 7 || s.Exit.Reason != pod.ReasonError {
			t.Fatalf("exit 7: %d %s %s", s.Exit.Code, s.Exit.Reason, s.Exit.Message)
		}
	}
	for range machine.Amount(5, 2) {
		a := newApp(t, n, p, small, shell("x=a; while true; do x=$x$x; done"))
		start(t, n, a)
		if s := wait(t, n, a); s.Exit.Code != 137 || s.Exit.Reason != pod.ReasonOOMKilled {
			t.Fatalf("out of memory: %d %s %s", s.Exit.Code, s.Exit.Reason, s.Exit.Message)
		}
	}
}

// TestPidsExhausted: an app that used up its processes still ends with its code.
func TestPidsExhausted(t *testing.T) {
	guard(t)
	n := openNode(t)
	pull(t, n, busybox)
	p := newPod(t, n, hostNetwork)
	// The shell fails to fork at some point, and ends while its children sleep on.
	script := "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do sleep 1000 & done; exit 9"
	for range machine.Amount(5, 2) {
		a := newApp(t, n, p, limits(pod.Resources{Pids: 12}), shell(script))
		start(t, n, a)
		s := wait(t, n, a)
		if s.Exit.Code != 9 && s.Exit.Code != 2 || s.Exit.Reason != pod.ReasonError {
			t.Fatalf("%d %s %s", s.Exit.Code, s.Exit.Reason, s.Exit.Message)
		}
	}
}

// kubeletPod is a pod in a slice that somebody else made, with limits, as kubelet
// does; the function ends the slice.
func kubeletPod(t *testing.T, n *node.Node, properties ...string) *pod.Pod {
	t.Helper()
	slice := fmt.Sprintf("e2epods-pod%s.slice", pod.NewID()[:10])
	args := append([]string{"set-property", "--runtime", slice}, properties...)
	sh(t, "systemctl start "+slice)
	if len(properties) > 0 {
		sh(t, "systemctl "+strings.Join(args, " "))
	}
	t.Cleanup(func() {
		sh(t, "systemctl stop "+slice+" e2epods.slice; systemctl revert "+slice+" 2>/dev/null || true")
	})
	return newPod(t, n, hostNetwork, func(p *pod.Pod) { p.CgroupParent = "/e2epods.slice/" + slice })
}

// TestPodOutOfMemory: the limit of the pod, not the app's own, is exceeded.
func TestPodOutOfMemory(t *testing.T) {
	guard(t)
	n := openNode(t)
	pull(t, n, busybox)
	p := kubeletPod(t, n, "MemoryMax=24M", "MemorySwapMax=0")
	idle := newApp(t, n, p, command("/bin/sleep", "1000"))
	start(t, n, idle)
	for range machine.Amount(5, 2) {
		a := newApp(t, n, p, shell("x=a; while true; do x=$x$x; done"))
		start(t, n, a)
		if s := wait(t, n, a); s.Exit.Code != 137 || s.Exit.Reason != pod.ReasonOOMKilled {
			t.Fatalf("%d %s %s", s.Exit.Code, s.Exit.Reason, s.Exit.Message)
		}
	}
}

// TestSliceKilled does to a pod's slice what kubelet does to one it does not know
// any more: SIGKILL to every process in it, again and again.
func TestSliceKilled(t *testing.T) {
	guard(t)
	n := openNode(t)
	pull(t, n, busybox)
	for range machine.Amount(5, 2) {
		p := kubeletPod(t, n)
		dir := filepath.Join("/sys/fs/cgroup", unit.CgroupOf(p.Slice))
		var apps []*pod.App
		for range 3 {
			a := newApp(t, n, p, shell("sleep 1000 & sleep 1000"))
			start(t, n, a)
			apps = append(apps, a)
		}
		for range 40 {
			killBelow(t, dir)
			time.Sleep(10 * time.Millisecond)
		}
		for _, a := range apps {
			if s := wait(t, n, a); s.Exit.Code != 137 || s.Exit.Reason != pod.ReasonError {
				t.Errorf("%d %s %s", s.Exit.Code, s.Exit.Reason, s.Exit.Message)
			}
		}
	}
}

// killBelow kills every process of a cgroup and of those below it, one by one.
func killBelow(t *testing.T, dir string) {
	t.Helper()
	groups, err := filepath.Glob(dir + "/*/cgroup.procs")
	if err != nil {
		t.Fatal(err)
	}
	deeper, err := filepath.Glob(dir + "/*/*/cgroup.procs")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range append(groups, deeper...) {
		data, err := os.ReadFile(file)
		if err != nil {
			continue // the cgroup went
		}
		for _, pid := range strings.Fields(string(data)) {
			var n int
			if _, err := fmt.Sscan(pid, &n); err == nil && n > 1 {
				_ = unix.Kill(n, unix.SIGKILL) // it may be gone
			}
		}
	}
}

// TestSystemctlStopsAPod: no Gantry program is asked, and nothing is left.
func TestSystemctlStopsAPod(t *testing.T) {
	guard(t)
	n := openNode(t)
	pull(t, n, busybox)
	p := newPod(t, n)
	a := newApp(t, n, p, shell("trap 'exit 3' TERM; echo trapped; sleep 1000 & wait"))
	start(t, n, a)
	says(t, a, "trapped")
	s, err := n.Pod(p.ID)
	if err != nil || len(s.IPs) == 0 {
		t.Fatalf("pod has no address: %v, %v", s.IPs, err)
	}
	sh(t, "systemctl stop "+unit.Pod(string(p.ID)))
	if s := wait(t, n, a); s.Exit.Code != 3 {
		t.Errorf("the app ended with %d %s, want 3", s.Exit.Code, s.Exit.Reason)
	}
	s, err = n.Pod(p.ID)
	if err != nil || s.Ready {
		t.Errorf("pod is ready: %v, %v", s.Ready, err)
	}
	if _, err := os.Stat("/run/gantry/pods/" + string(p.ID)); err == nil {
		t.Error("namespaces are left")
	}
	for _, ip := range s.IPs {
		if out := sh(t, "ls /var/lib/cni/networks/*/ || true"); strings.Contains(out, ip) {
			t.Errorf("lease of %s is left", ip)
		}
	}
}

// TestShorterGraceWins overlaps two stops: the app gets its signal once, and the time of the
// shorter one.
func TestShorterGraceWins(t *testing.T) {
	guard(t)
	n := watched(t)
	pull(t, n, busybox)
	p := newPod(t, n, hostNetwork)
	a := newApp(t, n, p, shell("trap 'echo told' TERM; echo trapped; while true; do sleep 0.1; done"))
	start(t, n, a)
	says(t, a, "trapped")
	began := time.Now()
	long := make(chan error, 1)
	go func() { long <- n.StopApp(t.Context(), a.ID, time.Hour) }()
	says(t, a, "trapped\ntold")
	grace, second := patience(500*time.Millisecond), time.Now()
	if err := n.StopApp(t.Context(), a.ID, grace); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(second); took < grace {
		t.Errorf("it was killed after %s of its %s", took, grace)
	}
	if err := <-long; err != nil {
		t.Fatal(err)
	}
	if s := wait(t, n, a); s.Exit.Signal != int(unix.SIGKILL) {
		t.Errorf("ended with %d %s", s.Exit.Code, s.Exit.Reason)
	}
	if got := output(t, a); got != "trapped\ntold\n" {
		t.Errorf("it said %q", got)
	}
	t.Logf("both stops returned after %s", time.Since(began).Round(time.Millisecond))
}

// TestStartErrors: what cannot run says why, and reads StartError.
func TestStartErrors(t *testing.T) {
	guard(t)
	n := openNode(t)
	pull(t, n, busybox)
	p := newPod(t, n, hostNetwork)
	a := newApp(t, n, p, command("/no/such/program"))
	err := n.StartApp(t.Context(), a.ID)
	if err == nil || !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("start: %v", err)
	}
	s, err := n.App(a.ID)
	if err != nil {
		t.Fatal(err)
	}
	if s.Phase != pod.Exited || s.Exit.Code != 128 || s.Exit.Reason != pod.ReasonStartError {
		t.Errorf("%s %+v", s.Phase, s.Exit)
	}
	if err := n.StartApp(t.Context(), a.ID); err == nil {
		t.Error("an app was started twice")
	}
}
