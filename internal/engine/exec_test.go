package engine

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/disk"
	"gantry/internal/isolator"
	"gantry/internal/pod"
	"gantry/internal/unit"
)

// TestTerminalOfAnExecThatDidNotStart: the app ended just before, so that there is
// no cgroup to start the command in.
func TestTerminalOfAnExecThatDidNotStart(t *testing.T) {
	t.Parallel()
	r := &execRun{dir: t.TempDir(), group: &execGroup{path: "exec-1"}, streams: Streams{TTY: true}}
	s, err := r.terminal(t.Context(), &exec.Cmd{})
	if err != nil {
		t.Fatal(err)
	}
	s.close()
	left, err := os.ReadDir(r.dir)
	if err != nil || len(left) != 0 {
		t.Errorf("the socket for the terminal is left: %v, %v", left, err)
	}
}

// TestExecsOfKilledPrograms: what they left is ended, and nothing else.
func TestExecsOfKilledPrograms(t *testing.T) {
	t.Parallel()
	b := newBench(t, false, nil)
	app := b.running()
	cgroup, err := b.appCgroup(app.App)
	if err != nil {
		t.Fatal(err)
	}
	// What a runtime with cgroups of its own runs is in another place.
	if err := os.MkdirAll(filepath.Join(cgroup, isolator.AppGroup), 0o755); err != nil {
		t.Fatal(err)
	}
	hold := func(group string) *execGroup {
		t.Helper()
		g, err := b.newExecGroup(app, group)
		if err != nil {
			t.Fatal(err)
		}
		s, err := net.ListenUnix("unix", &net.UnixAddr{Name: b.socketOf(g), Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		s.SetUnlinkOnClose(false)
		t.Cleanup(func() { s.Close() })
		return g
	}
	stale, alive, daemons := hold(isolator.AppGroup), hold(""), hold("")
	if err := stale.lock.Unlock(); err != nil { // as the kernel does when a program is killed
		t.Fatal(err)
	}
	member := filepath.Join(daemons.path, "member") // what is in the group still
	if err := os.Mkdir(member, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := daemons.mark(); err != nil {
		t.Fatal(err)
	}
	if err := daemons.lock.Unlock(); err != nil {
		t.Fatal(err)
	}
	report, err := b.GC(t.Context(), GCOptions{DryRun: true})
	if err != nil || len(report.Items) != 3 {
		t.Errorf("gc would take %+v, %v; want a group and two sockets", report.Items, err)
	}
	b.wantThere(true, stale.path, alive.path, daemons.path, b.socketOf(stale))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if err := b.Watch(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the stale socket is gone", func() bool { return !disk.Exists(b.socketOf(stale)) && !disk.Exists(b.socketOf(daemons)) })
	b.wantThere(false, stale.path)
	b.wantThere(true, alive.path, daemons.path, b.socketOf(alive))
	if err := alive.close(); err != nil {
		t.Error(err)
	}
	b.wantThere(false, alive.path)
}

// TestLeftGroups: what an exec left in the app has its group, and no longer: an exec that
// comes after its end takes that away.
func TestLeftGroups(t *testing.T) {
	t.Parallel()
	b := newBench(t, false, nil)
	app := b.running()
	leave := func(member bool) *execGroup {
		t.Helper()
		g, err := b.newExecGroup(app, "")
		if err != nil {
			t.Fatal(err)
		}
		if member { // what is in the group still
			if err := os.Mkdir(filepath.Join(g.path, "member"), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		return g
	}
	daemons, held := leave(true), leave(true)
	for _, g := range []*execGroup{daemons, held} {
		if err := g.mark(); err != nil {
			t.Fatal(err)
		}
	}
	if err := daemons.lock.Unlock(); err != nil {
		t.Fatal(err)
	}
	b.wantThere(true, leave(false).path, daemons.path)
	for _, g := range []*execGroup{daemons, held} {
		if err := os.Remove(filepath.Join(g.path, "member")); err != nil {
			t.Fatal(err)
		}
	}
	b.wantThere(true, leave(false).path, held.path)
	b.wantThere(false, daemons.path)
}

// TestExecOfAnEndedApp: an app may end just before its exec has a cgroup.
func TestExecOfAnEndedApp(t *testing.T) {
	t.Parallel()
	b := newBench(t, false, nil)
	app := b.running()
	dir, err := b.appCgroup(app.App)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Exec(t.Context(), app.ID, pod.Process{Argv: []string{"true"}}, Streams{}); !errors.Is(err, pod.ErrState) {
		t.Errorf("got %v", err)
	}
}

// TestKillOfAStaleGroup: what runs in it is killed before it is removed.
func TestKillOfAStaleGroup(t *testing.T) {
	t.Parallel()
	app := t.TempDir()
	kill := filepath.Join(app, "exec-1", "cgroup.kill")
	if err := errors.Join(os.Mkdir(filepath.Dir(kill), 0o755), os.WriteFile(kill, nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	_, err := staleGroups(app, func(_ GCItem, remove func() error) error { return remove() })
	if data, _ := os.ReadFile(kill); string(data) != "1" || !errors.Is(err, unix.ENOTEMPTY) {
		t.Errorf("cgroup.kill got %q (%v)", data, err)
	}
}

func (b *bench) socketOf(g *execGroup) string {
	return filepath.Join(b.dir, "run", "exec", filepath.Base(g.path)+socketSuffix)
}

func (b *bench) wantThere(want bool, paths ...string) {
	b.t.Helper()
	for _, p := range paths {
		if disk.Exists(p) != want {
			b.t.Errorf("%s: is there: %t, want %t", p, !want, want)
		}
	}
}

// running makes an app that runs, in a pod of its own.
func (b *bench) running() pod.AppStatus {
	b.t.Helper()
	return b.runningWith("running", pod.Resources{})
}

func (b *bench) runningWith(name string, r pod.Resources) pod.AppStatus {
	b.t.Helper()
	a := b.prepared(name, r)
	if err := b.StartApp(b.t.Context(), a.ID); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { // what records its end must not write while the directory goes
		if err := b.pid1.Stop(context.WithoutCancel(b.t.Context()), unit.App(string(a.ID))); err != nil {
			b.t.Error(err)
		}
	})
	s, err := b.App(a.ID)
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

// prepared makes an app that was never started, in a pod of its own.
func (b *bench) prepared(name string, r pod.Resources) *pod.App {
	b.t.Helper()
	return b.preparedIn(hostPod(name), r)
}

func (b *bench) preparedIn(spec pod.Pod, r pod.Resources) *pod.App {
	b.t.Helper()
	p, err := b.CreatePod(b.t.Context(), spec)
	if err != nil {
		b.t.Fatal(err)
	}
	a, err := b.CreateApp(b.t.Context(), p.ID, AppSpec{Name: spec.Name, Image: b.image, Command: []string{"app"}, Resources: r})
	if err != nil {
		b.t.Fatal(err)
	}
	return a
}

// TestExecThatHangs: with an isolator without a runtime the command is our own child. It
// is killed when its time is over, and does not die: whoever waits for it hears so, its
// streams are closed, and its cgroup goes when the kernel lets go of it.
func TestExecThatHangs(t *testing.T) {
	t.Parallel()
	b := newBench(t, false, nil)
	id := b.running().ID
	r, cmd := b.hang(id)
	if held, err := lockExecGroup(r.group.path); held != nil || err != nil {
		t.Errorf("its cgroup is not held any more: %v", err)
	}
	b.hung.add(id, hungMost-1)
	if _, err := b.Exec(t.Context(), id, pod.Process{Argv: []string{"true"}}, Streams{}); !errors.Is(err, pod.ErrUnavailable) {
		t.Errorf("one more beside so many that hang: %v", err)
	}
	if err := cmd.Process.Kill(); err != nil { // as the kernel, when it lets go
		t.Fatal(err)
	}
	eventually(t, "its cgroup is gone", func() bool { return !disk.Exists(r.group.path) })
	if err := b.hung.check(id); err != nil {
		t.Errorf("after that: %v", err)
	}
}

// hang has a command of an app killed that does not die.
func (b *bench) hang(id pod.ID) (*execRun, *exec.Cmd) {
	b.t.Helper()
	app, err := b.App(id)
	if err != nil {
		b.t.Fatal(err)
	}
	// The cgroup is a plain directory here, so that to kill it kills nobody.
	group, err := b.newExecGroup(app, "")
	if err != nil {
		b.t.Fatal(err)
	}
	r, cmd := &execRun{group: group, streams: Streams{Stdout: io.Discard}}, exec.Command("/bin/sleep", "1000")
	end, err := r.pipes(cmd)
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = cmd.Process.Kill() })
	end.started()
	ctx, cancel := context.WithTimeout(b.t.Context(), time.Millisecond)
	defer cancel()
	told := make(chan error, 1)
	go func() {
		_, err := r.wait(ctx, cmd, end, nil)
		told <- err
	}()
	limit := time.After(20 * time.Second)
	select {
	case err := <-told:
		if !errors.Is(err, context.DeadlineExceeded) {
			b.t.Errorf("its caller got %v", err)
		}
	case <-limit:
		b.t.Fatal("its caller waits for it")
	}
	select {
	case <-end.out:
	case <-limit:
		b.t.Error("its output is still copied")
	}
	end.close()
	b.endExec(id, r)
	return r, cmd
}
