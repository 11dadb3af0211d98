//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"gantry/internal/engine"
	"gantry/internal/node"
	"gantry/internal/pod"
	"gantry/internal/unit"
)

// openMachines is a node whose pods may be virtual machines.
func openMachines(t *testing.T) *node.Node {
	t.Helper()
	sh(t, "modprobe -a kvm_amd vhost_vsock vhost_net tun; test -e /dev/kvm && test -e /dev/vhost-vsock")
	n, err := node.Open(t.Context(), node.Options{
		Log:      slog.New(slog.NewTextHandler(t.Output(), nil)),
		Machines: node.Machines{Memory: 256 << 20, Overhead: 160 << 20, Disk: 1 << 30, CPUs: 1, BootSeconds: int(patience(30 * time.Second).Seconds())},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	// The test's own context ends before its pods are removed.
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	t.Cleanup(cancel)
	if err := n.Watch(ctx); err != nil {
		t.Fatal(err)
	}
	pull(t, n, busybox)
	return n
}

func inKVM(p *pod.Pod) { p.Handler = "kvm" }

// machinePod is a pod that is a virtual machine. To boot one takes long here: what can share
// one does.
func machinePod(t *testing.T, n *node.Node, options ...podOption) *pod.Pod {
	t.Helper()
	began := time.Now()
	p := newPod(t, n, append([]podOption{inKVM}, options...)...)
	t.Logf("the machine is up after %s", time.Since(began).Round(time.Millisecond))
	return p
}

// TestKVM: a pod is a virtual machine with the pod's address, and its apps are units as any
// other's.
func TestKVM(t *testing.T) {
	guard(t)
	n := openMachines(t)
	p := machinePod(t, n)
	host := strings.TrimSpace(sh(t, "cat /proc/sys/kernel/random/boot_id"))
	if got := printed(t, n, p, "cat /proc/sys/kernel/random/boot_id"); got == host || len(got) != len(host) {
		t.Errorf("the pod's kernel was booted as %q, that of the host as %q", got, host)
	}
	s, err := n.Pod(p.ID)
	if err != nil || len(s.IPs) == 0 {
		t.Fatalf("pod %+v, %v", s, err)
	}
	if got := printed(t, n, p, "hostname; ip -4 -o addr show eth0 | sed 's/.*inet //; s#/.*##'"); got != "gantry-test\n"+s.IPs[0] {
		t.Errorf("inside: %q, want the name and %s", got, s.IPs[0])
	}
	beside := newApp(t, n, newPod(t, n), shell("echo up; exec sleep 1000"))
	start(t, n, beside)
	for _, sub := range []struct {
		name string
		test func(*testing.T, *node.Node, *pod.Pod)
	}{
		{"an exec and a stop", testMachineExec},
		{"limits and numbers", testMachineNumbers},
		{"out of memory", testMachineOOM},
		{"a port", testMachinePort},
		{"a killed process", testMachineProxyKilled},
		{"an end that nobody hears of", testMachineEndsUnheard},
		{"a killed terminal", testMachineTerminalKilled},
		{"a killed process and its input", testMachineInputKilled},
		{"a stop of what is away", testMachineStopAway},
		{"a hung machine", testMachineHangs},
		{"a killed machine", testMachineKilled},
	} {
		t.Run(sub.name, func(t *testing.T) { sub.test(t, n, p) })
	}
	if s, err := n.App(beside.ID); err != nil || s.Phase != pod.Running {
		t.Errorf("the app of a pod beside it: %+v, %v", s, err)
	}
}

const untilTerm = "trap 'exit 42' TERM; echo up; while :; do sleep 0.1; done"

func testMachineExec(t *testing.T, n *node.Node, p *pod.Pod) {
	a := newApp(t, n, p, shell(untilTerm))
	start(t, n, a)
	if out, code := execIn(t, n, a, pod.Process{Argv: []string{"sh", "-c", "cat; ps | grep -c '[t]rap'; exit 5"}}, "in\n"); out != "in\n1\n" || code != 5 {
		t.Errorf("exec: %q, %d", out, code)
	}
	if err := n.StopApp(t.Context(), a.ID, patience(10*time.Second)); err != nil {
		t.Error(err)
	}
	if s := wait(t, n, a); s.Exit.Code != 42 || s.Exit.Signal != 0 {
		t.Errorf("the stopped app ended as %+v", s.Exit)
	}
}

// killProxy kills the process that stands for an app, and returns when there is another one.
func killProxy(t *testing.T, a *pod.App) {
	t.Helper()
	const show = "systemctl show --value -P MainPID "
	old := strings.TrimSpace(sh(t, show+unit.App(string(a.ID))))
	sh(t, "kill -9 "+old)
	eventually(t, 10*time.Second, "another process stands for the app", func() bool {
		now := strings.TrimSpace(sh(t, show+unit.App(string(a.ID))))
		return now != old && now != "0"
	})
}

// testMachineProxyKilled: the process that stands for an app may be killed again and again.
// The app and who reads its log do not notice.
func testMachineProxyKilled(t *testing.T, n *node.Node, p *pod.Pod) {
	const lines = 6000
	a := newApp(t, n, p, shell(fmt.Sprintf(`i=0; while [ $i -lt %d ]; do i=$((i+1)); echo line $i; [ $((i%%7)) = 0 ] && echo error $i >&2; done
printf 'no end '; while [ ! -e /end/now ]; do sleep 0.1; done; echo 'of a line'; exit 7`, lines)), endBy(t))
	start(t, n, a)
	before, err := n.App(a.ID)
	if err != nil {
		t.Fatal(err)
	}
	kills := 0
	for said := ""; !strings.Contains(said, "no end ") && kills < 200; said = output(t, a) {
		killProxy(t, a)
		kills++
		if s, err := n.App(a.ID); err != nil || s.Phase != pod.Running || !s.Started.Equal(before.Started) {
			t.Fatalf("after kill %d: %+v, %v", kills, s, err)
		}
		if strings.Count(output(t, a), fmt.Sprintf("line %d\n", lines)) > 0 {
			break
		}
	}
	t.Logf("killed %d times", kills)
	killProxy(t, a) // in the middle of a line
	if out, code := execIn(t, n, a, pod.Process{Argv: []string{"sh", "-c", "exit 3"}}, ""); out != "" || code != 3 {
		t.Errorf("exec after the kills: %q, %d", out, code)
	}
	endNow(t, a)
	if s := wait(t, n, a); s.Exit.Code != 7 || s.Exit.Reason != pod.ReasonError || s.Exit.Message != "" || !s.Exit.Started.Equal(before.Started) {
		t.Errorf("it ended as %+v", s.Exit)
	}
	var out, errs strings.Builder
	for i := range lines {
		fmt.Fprintf(&out, "line %d\n", i+1)
		if (i+1)%7 == 0 {
			fmt.Fprintf(&errs, "error %d\n", i+1)
		}
	}
	out.WriteString("no end of a line\n")
	sameText(t, streamOf(t, a, "stdout"), out.String())
	sameText(t, streamOf(t, a, "stderr"), errs.String())
}

// testMachineEndsUnheard: the machine keeps an app's end, and what it said, until somebody asks.
func testMachineEndsUnheard(t *testing.T, n *node.Node, p *pod.Pod) {
	a := newApp(t, n, p, shell("echo up; while [ ! -e /end/now ]; do sleep 0.1; done; echo out; echo err >&2; touch /end/said; exit 42"), endBy(t))
	start(t, n, a)
	says(t, a, "up")
	name := unit.App(string(a.ID))
	sh(t, "systemctl kill -s STOP --kill-whom=main "+name)
	endNow(t, a)
	eventually(t, 10*time.Second, "it has said all", func() bool { _, err := os.Stat(a.Mounts[0].Source + "/said"); return err == nil })
	<-time.After(patience(500 * time.Millisecond)) // it ends
	if s, err := n.App(a.ID); err != nil || s.Phase != pod.Running || strings.Contains(output(t, a), "out") {
		t.Errorf("of what nobody has heard is known: %+v, %q, %v", s, output(t, a), err)
	}
	sh(t, "systemctl kill -s KILL --kill-whom=main "+name)
	if s := wait(t, n, a); s.Exit.Code != 42 {
		t.Errorf("it ended as %+v", s.Exit)
	}
	if out, errs := streamOf(t, a, "stdout"), streamOf(t, a, "stderr"); out != "up\nout\n" || errs != "err\n" {
		t.Errorf("it said %q and %q", out, errs)
	}
}

// endBy gives an app a directory in which endNow makes a file.
func endBy(t *testing.T) appOption {
	dir := t.TempDir()
	return with(func(s *engine.AppSpec) { s.Mounts = append(s.Mounts, pod.Mount{Path: "/end", HostPath: dir}) })
}

func endNow(t *testing.T, a *pod.App) {
	t.Helper()
	for _, m := range a.Mounts {
		if m.Path == "/end" {
			if err := os.WriteFile(m.Source+"/now", nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// streamOf is what an app wrote to one stream.
func streamOf(t *testing.T, a *pod.App, stream string) string {
	t.Helper()
	data, err := os.ReadFile(a.LogPath)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for line := range strings.Lines(string(data)) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		if len(fields) != 4 || fields[1] != stream {
			continue
		}
		b.WriteString(fields[3])
		if fields[2] == "F" {
			b.WriteByte('\n')
		}
	}
	return b.String()
}

func testMachineTerminalKilled(t *testing.T, n *node.Node, p *pod.Pod) {
	a := newApp(t, n, p, shell("for i in 1 2 3; do echo before $i; done; printf 'half '; while [ ! -e /end/now ]; do sleep 0.1; done; echo full; tty; exit 9"),
		with(func(s *engine.AppSpec) { s.TTY, s.Stdin = true, true }), endBy(t))
	start(t, n, a)
	eventually(t, 20*time.Second, "the app writes", func() bool { return strings.Contains(output(t, a), "before 3") })
	killProxy(t, a)
	killProxy(t, a)
	endNow(t, a)
	if s := wait(t, n, a); s.Exit.Code != 9 {
		t.Errorf("it ended as %+v", s.Exit)
	}
	sameText(t, output(t, a), "before 1\r\nbefore 2\r\nbefore 3\r\nhalf full\r\n/dev/pts/0\r\n")
}

// testMachineInputKilled: what is said to an app comes once, whoever is killed meanwhile.
func testMachineInputKilled(t *testing.T, n *node.Node, p *pod.Pod) {
	a := newApp(t, n, p, shell("cat; exit 4"), with(func(s *engine.AppSpec) { s.Stdin, s.StdinOnce = true, true }))
	start(t, n, a)
	ours, theirs := io.Pipe()
	attached := make(chan error, 1)
	go func() {
		attached <- n.Attach(t.Context(), a.ID, engine.Streams{Stdin: ours, Stdout: io.Discard, Stderr: io.Discard})
	}()
	var want strings.Builder
	for i := range 30000 {
		line := fmt.Sprintf("line %d\n", i)
		want.WriteString(line)
		if _, err := io.WriteString(theirs, line); err != nil {
			t.Fatal(err)
		}
		if i%8000 == 1000 {
			killProxy(t, a)
		}
	}
	theirs.Close()
	if s := wait(t, n, a); s.Exit.Code != 4 {
		t.Errorf("it ended as %+v", s.Exit)
	}
	if err := <-attached; err != nil {
		t.Errorf("the session ended with %v", err)
	}
	sameText(t, output(t, a), want.String())
}

// testMachineStopAway: an app is stopped as any other while there is nobody who stands for it,
// and a unit that is stopped is not started again.
func testMachineStopAway(t *testing.T, n *node.Node, p *pod.Pod) {
	a := newApp(t, n, p, shell(untilTerm))
	start(t, n, a)
	says(t, a, "up")
	sh(t, "systemctl kill -s KILL --kill-whom=main "+unit.App(string(a.ID)))
	if err := n.StopApp(t.Context(), a.ID, patience(10*time.Second)); err != nil {
		t.Error(err)
	}
	if s := wait(t, n, a); s.Exit.Code != 42 {
		t.Errorf("the stopped app ended as %+v", s.Exit)
	}
	b := newApp(t, n, p, shell(untilTerm))
	start(t, n, b)
	says(t, b, "up")
	sh(t, "systemctl kill -s KILL --kill-whom=main "+unit.App(string(b.ID))+" && systemctl stop "+unit.App(string(b.ID)))
	// Whether there is somebody again by then is a matter of luck.
	if s := wait(t, n, b); s.Exit.Code != 42 && s.Exit.Code != 137 {
		t.Errorf("the app whose unit was stopped ended as %+v", s.Exit)
	}
	c := newApp(t, n, p, shell("trap '' TERM; echo up; while :; do sleep 0.1; done"))
	start(t, n, c)
	says(t, c, "up")
	if err := n.StopApp(t.Context(), c.ID, time.Second); err != nil {
		t.Error(err)
	}
	if s := wait(t, n, c); s.Exit.Code != 137 || s.Exit.Reason != pod.ReasonError {
		t.Errorf("the app that does not stop ended as %+v", s.Exit)
	}
}

// testMachineNumbers: limits are changed in the machine, and numbers come from there.
func testMachineNumbers(t *testing.T, n *node.Node, p *pod.Pod) {
	a := newApp(t, n, p, shell("head -c 400000 /dev/zero >/file; echo up; exec sleep 1000"), limits(pod.Resources{Memory: 64 << 20, Pids: 100}))
	start(t, n, a)
	says(t, a, "up")
	inForce := func(want string) {
		t.Helper()
		got, _ := execIn(t, n, a, pod.Process{Argv: []string{"sh", "-c", "cd /sys/fs/cgroup; echo $(cat memory.max pids.max)"}}, "")
		if got != want+"\n" {
			t.Errorf("in force are %q, want %q", got, want)
		}
	}
	inForce("67108864 100")
	if err := n.UpdateApp(t.Context(), a.ID, pod.Resources{Memory: 96 << 20, Pids: 50}); err != nil {
		t.Error(err)
	}
	for name, err := range map[string]error{
		"has 256": n.UpdateApp(t.Context(), a.ID, pod.Resources{Memory: 10 << 30}),
		"change":  n.UpdatePod(t.Context(), p.ID, pod.PodResources{Resources: &pod.Resources{Memory: 10 << 30}}),
	} {
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("more memory than the machine has: %v", err)
		}
	}
	inForce("100663296 50")
	if s, err := n.App(a.ID); err != nil || s.Current.Memory != 96<<20 || s.Current.Pids != 50 {
		t.Errorf("recorded are %+v, %v", s.Current, err)
	}
	if err := n.UpdatePod(t.Context(), p.ID, pod.PodResources{Resources: &pod.Resources{CPUShares: 512}}); err != nil {
		t.Error(err)
	}
	of, err := n.AppStats(t.Context(), a.ID)
	if err != nil || of.CPUNanos == 0 || of.MemoryLimit != 96<<20 || of.MemoryWorkingSet == 0 || of.MemoryUsage > 64<<20 || of.Pids != 1 {
		t.Errorf("statistics %+v, %v", of, err)
	}
	eventually(t, 10*time.Second, "what it has written is counted", func() bool {
		of, err := n.AppStats(t.Context(), a.ID)
		return err == nil && of.RootfsBytes >= 400000 && of.RootfsBytes < 2<<20 && of.RootfsInodes > 0
	})
	m, err := n.AppMetrics(t.Context(), a.ID)
	if err != nil || m.Processes != 1 || m.PidsLimit != 50 || m.Rootfs.Bytes < 512<<20 || m.Rootfs.Bytes > 1<<30 {
		t.Errorf("metrics %+v, %v", m, err)
	}
	whole, err := n.PodStats(t.Context(), p.ID)
	if err != nil || whole.MemoryUsage < of.MemoryUsage+32<<20 || whole.Processes < 3 || len(whole.Interfaces) == 0 {
		t.Errorf("of the pod %+v, %v", whole, err)
	}
	if err := n.StopApp(t.Context(), a.ID, 0); err != nil {
		t.Error(err)
	}
}

func testMachineOOM(t *testing.T, n *node.Node, p *pod.Pod) {
	a := newApp(t, n, p, shell("tail /dev/zero"), limits(pod.Resources{Memory: 24 << 20}))
	start(t, n, a)
	if s := wait(t, n, a); s.Exit.Code != 137 || s.Exit.Reason != pod.ReasonOOMKilled {
		t.Errorf("it ended as %+v", s.Exit)
	}
}

// testMachinePort: what listens on the machine's loopback alone is reached.
func testMachinePort(t *testing.T, n *node.Node, p *pod.Pod) {
	a := newApp(t, n, p, shell("mkdir /www; echo hello >/www/index.html; httpd -p 127.0.0.1:8080 -h /www; echo up; exec sleep 1000"))
	start(t, n, a)
	says(t, a, "up")
	get := func(port uint16) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), patience(10*time.Second))
		defer cancel()
		ours, theirs := net.Pipe()
		done := make(chan error, 1)
		go func() {
			done <- n.PortForward(ctx, p.ID, port, theirs)
			theirs.Close()
		}()
		_, _ = io.WriteString(ours, "GET / HTTP/1.0\r\n\r\n") // an error shows in the answer
		said, _ := io.ReadAll(ours)
		return string(said), <-done
	}
	if got, err := get(8080); err != nil || !strings.HasPrefix(got, "HTTP/1.") || !strings.HasSuffix(got, "\nhello\n") {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := get(8081); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("a port that nobody listens on: %q, %v", got, err)
	}
	if err := n.StopApp(t.Context(), a.ID, 0); err != nil {
		t.Error(err)
	}
}

// testMachineHangs: nobody waits for a machine that does not answer, and its apps can be
// ended all the same.
func testMachineHangs(t *testing.T, n *node.Node, p *pod.Pod) {
	a := newApp(t, n, p, shell("echo up; exec sleep 1000"))
	start(t, n, a)
	says(t, a, "up")
	machine := unit.Machine(string(p.ID))
	sh(t, "systemctl kill -s STOP --kill-whom=main "+machine)
	began := time.Now()
	if _, err := n.AppStats(t.Context(), a.ID); !errors.Is(err, pod.ErrUnavailable) || time.Since(began) > 10*time.Second {
		t.Errorf("statistics after %s: %v", time.Since(began), err)
	}
	if err := n.StopApp(t.Context(), a.ID, 0); err != nil {
		t.Error(err)
	}
	if s := wait(t, n, a); s.Exit.Code != 137 || s.Exit.Message != "the pod's machine does not answer" {
		t.Errorf("it ended as %+v", s.Exit)
	}
	sh(t, "systemctl kill -s CONT --kill-whom=main "+machine)
}

func testMachineKilled(t *testing.T, n *node.Node, p *pod.Pod) {
	endsWith(t, n, p, pod.ReasonError, "the pod's machine has ended: killed by SIGKILL", func(*pod.App) {
		sh(t, "systemctl kill -s KILL --kill-whom=main "+unit.Machine(string(p.ID)))
	})
}

// endsWith ends a pod's machine, and looks at what is said of its apps and of the pod.
func endsWith(t *testing.T, n *node.Node, p *pod.Pod, reason, message string, end func(*pod.App), options ...appOption) {
	t.Helper()
	a := newApp(t, n, p, append([]appOption{shell(untilTerm)}, options...)...)
	b := newApp(t, n, p, shell("echo up; exec sleep 1000"))
	for _, app := range []*pod.App{a, b} {
		start(t, n, app)
		says(t, app, "up")
	}
	end(a)
	for _, app := range []*pod.App{a, b} {
		if s := wait(t, n, app); s.Exit.Code != 137 || s.Exit.Signal != 9 || s.Exit.Reason != reason || s.Exit.Message != message {
			t.Errorf("it ended as %+v, want %s: %s", s.Exit, reason, message)
		}
	}
	eventually(t, 20*time.Second, "the pod is not ready", func() bool {
		s, err := n.Pod(p.ID)
		return err == nil && !s.Ready
	})
}

// TestKVMEnds: however a machine ends, its apps' ends say why. Each has one of its own.
func TestKVMEnds(t *testing.T) {
	guard(t)
	n := openMachines(t)
	t.Run("its kernel panics", func(t *testing.T) {
		p := machinePod(t, n)
		endsWith(t, n, p, pod.ReasonError, "the kernel of the pod's machine panicked: see journalctl -u "+unit.Machine(string(p.ID)), func(a *pod.App) {
			// The exec ends with the machine.
			ctx, cancel := context.WithTimeout(t.Context(), patience(10*time.Second))
			defer cancel()
			_, _ = n.Exec(ctx, a.ID, pod.Process{Argv: []string{"sh", "-c", "echo c >/proc/sysrq-trigger"}}, engine.Streams{Stdout: io.Discard, Stderr: io.Discard})
		}, with(func(s *engine.AppSpec) { s.Security.MaskedPaths, s.Security.ReadOnlyPaths = []string{}, []string{} }))
	})
	t.Run("its emulator is told to end", func(t *testing.T) {
		p := machinePod(t, n)
		name := unit.Machine(string(p.ID))
		endsWith(t, n, p, pod.ReasonError, "the pod's machine was told to stop: see journalctl -u "+name, func(*pod.App) {
			sh(t, "systemctl kill -s TERM --kill-whom=main "+name)
		})
	})
	t.Run("its unit is stopped", func(t *testing.T) { // after those of the apps
		p := machinePod(t, n)
		a := newApp(t, n, p, shell(untilTerm))
		start(t, n, a)
		says(t, a, "up")
		sh(t, "systemctl stop "+unit.Machine(string(p.ID)))
		if s := wait(t, n, a); s.Exit.Code != 42 {
			t.Errorf("it ended as %+v", s.Exit)
		}
	})
	t.Run("its files are gone", func(t *testing.T) {
		p := machinePod(t, n)
		endsWith(t, n, p, pod.ReasonError, "the server of the pod's files has ended: killed by SIGKILL", func(*pod.App) {
			sh(t, "systemctl kill -s KILL "+unit.FileServer(string(p.ID)))
		})
	})
	t.Run("the host wants its memory", func(t *testing.T) {
		p := machinePod(t, n)
		endsWith(t, n, p, pod.ReasonOOMKilled, "the pod's machine was killed for want of memory on the host", func(*pod.App) {
			sh(t, "systemctl set-property --runtime "+unit.Machine(string(p.ID))+" MemoryMax=16M MemorySwapMax=0")
		})
	})
}
