//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/ttrpc"

	"gantry/internal/guest"
	"gantry/internal/guest/guestpb"
	"gantry/internal/initproc"
)

// agent is what runs in a virtual machine, here without one: it makes the same cgroups,
// namespaces and root directories.
type agent struct {
	guestpb.GuestService
	t            *testing.T
	socket       string
	lower, upper string
}

func startAgent(t *testing.T) agent {
	t.Helper()
	const cgroups = "/sys/fs/cgroup/trial-guest"
	sh(t, "mkdir -p "+cgroups+"/apps /run/consoles && echo '+memory +pids +cpu' >"+cgroups+"/cgroup.subtree_control && echo '+memory +pids +cpu' >"+cgroups+"/apps/cgroup.subtree_control")
	t.Cleanup(func() { sh(t, "rmdir "+cgroups+"/apps "+cgroups+" /run/consoles") })
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "socket"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	served := make(chan error, 1)
	go func() { served <- guest.NewAgent("1.2.3", cgroups).Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil && ctx.Err() == nil {
			t.Error(err)
		}
	})
	a := agent{t: t, socket: l.Addr().String(), lower: t.TempDir(), upper: t.TempDir()}
	service, end := a.another()
	t.Cleanup(end)
	a.GuestService = service
	sh(t, "mkdir "+a.lower+"/bin && cp /bin/busybox "+a.lower+"/bin/ && for n in sh cat sleep ps id stty tty mount touch head; do ln -s busybox "+a.lower+"/bin/$n; done")
	return a
}

// another is one more connection.
func (a agent) another() (service guestpb.GuestService, end func()) {
	a.t.Helper()
	conn, err := net.Dial("unix", a.socket)
	if err != nil {
		a.t.Fatal(err)
	}
	client := ttrpc.NewClient(conn)
	return guestpb.NewGuestClient(client), func() { client.Close() }
}

// request is a request for an app that runs a script.
func (a agent) request(id, script string, change func(*initproc.Start, *initproc.Process)) *guestpb.RunRequest {
	s := initproc.Start{
		App: id, Rootfs: initproc.Rootfs{
			Lower: []string{a.lower}, Upper: filepath.Join(a.upper, id, "upper"), Work: filepath.Join(a.upper, id, "work"),
			Target: initproc.RunRoot + "/rootfs",
		},
		Self: &initproc.Self{
			Mounts: []initproc.Mount{
				{Target: "/proc", Type: "proc", Source: "proc"},
				{Target: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=755"}},
				{Target: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"newinstance", "ptmxmode=0666", "mode=0620"}},
			},
			Links: []initproc.Link{{Path: "/dev/ptmx", To: "pts/ptmx"}},
		},
	}
	p := initproc.Process{Args: []string{"sh", "-c", script}, Env: []string{"PATH=/bin"}, Cwd: "/", Bounding: []int{0, 1, 5}}
	if change != nil {
		change(&s, &p)
	}
	return &guestpb.RunRequest{App: id, Start: encode(a.t, s), Process: encode(a.t, p), Stdin: true}
}

func encode(t *testing.T, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func (a agent) run(r *guestpb.RunRequest) *guestpb.Ref {
	a.t.Helper()
	if _, err := a.Run(a.t.Context(), r); err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() {
		if _, err := a.Forget(context.WithoutCancel(a.t.Context()), &guestpb.ForgetRequest{Ref: &guestpb.Ref{App: r.App}}); err != nil {
			a.t.Error(err)
		}
	})
	return &guestpb.Ref{App: r.App}
}

// end waits for a process and reads all that it said.
func (a agent) end(ref *guestpb.Ref) (out, errs string, end *guestpb.WaitResponse) {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(a.t.Context(), patience(20*time.Second))
	defer cancel()
	said := [2]strings.Builder{}
	for i := range said {
		for eof := false; !eof; {
			r, err := a.Read(ctx, &guestpb.ReadRequest{Ref: ref, Stream: uint32(i + 1), Offset: uint64(said[i].Len())})
			if err != nil {
				a.t.Fatalf("read stream %d after %q: %v", i+1, said[i].String(), err)
			}
			said[i].Write(r.Data)
			eof = r.Eof
		}
	}
	end, err := a.Wait(ctx, &guestpb.WaitRequest{Ref: ref})
	if err != nil {
		a.t.Fatal(err)
	}
	return said[0].String(), said[1].String(), end
}

// TestGuestAgent: an app of a virtual machine is alone with its processes and in its root
// directory, is fed and heard, and its end is known.
func TestGuestAgent(t *testing.T) {
	guard(t)
	a := startAgent(t)
	app := a.run(a.request("one", "echo $$; cat /proc/self/cgroup; cd /; echo *; cat; echo end >&2; exit 42", nil))
	again, err := a.Run(t.Context(), a.request("one", "echo another", nil))
	if err != nil || again.Started == 0 {
		t.Errorf("the same app again: %v, %v", again, err)
	}
	exec := &guestpb.Ref{App: "one", Exec: "probe"}
	process := initproc.Process{Args: []string{"sh", "-c", "ps | grep -c cat; echo in $(cat /proc/1/comm) >&2; exit 3"}, Env: []string{"PATH=/bin"}, Cwd: "/"}
	if _, err := a.Exec(t.Context(), &guestpb.ExecRequest{Ref: exec, Process: encode(t, process)}); err != nil {
		t.Fatal(err)
	}
	if out, errs, end := a.end(exec); end.Code != 3 || errs != "in sh\n" || strings.TrimSpace(out) == "0" {
		t.Errorf("exec: %q, %q, %v", out, errs, end)
	}
	for range 2 { // a proxy that was killed sends again
		if _, err := a.Write(t.Context(), &guestpb.WriteRequest{Ref: app, Data: []byte("hello\n")}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := a.Write(t.Context(), &guestpb.WriteRequest{Ref: app, Offset: 6, Eof: true}); err != nil {
		t.Fatal(err)
	}
	out, errs, end := a.end(app)
	if want := "1\n0::/\nbin dev proc\nhello\n"; out != want || errs != "end\n" || end.Code != 42 || end.Signal != 0 {
		t.Errorf("app: %q, want %q; %q, %v", out, want, errs, end)
	}
}

// TestGuestAgentRefuses: what cannot be run is said, and nothing of it stays.
func TestGuestAgentRefuses(t *testing.T) {
	guard(t)
	a := startAgent(t)
	for want, r := range map[string]*guestpb.RunRequest{
		"/bin/nope": a.request("none", "", func(_ *initproc.Start, p *initproc.Process) { p.Args = []string{"/bin/nope"} }),
		"is no ID":  a.request("../x", "", nil),
		"memory.max": a.request("limits", "", func(s *initproc.Start, _ *initproc.Process) {
			s.Cgroup = []initproc.CgroupFile{{Name: "memory.max", Value: "many"}}
		}),
		"is no limit": a.request("procs", "", func(s *initproc.Start, _ *initproc.Process) {
			s.Cgroup = []initproc.CgroupFile{{Name: "cgroup.procs", Value: "1"}}
		}),
	} {
		if _, err := a.Run(t.Context(), r); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("app %s: %v, want %q", r.App, err, want)
		}
	}
	if left, err := os.ReadDir("/sys/fs/cgroup/trial-guest/apps"); err != nil {
		t.Error(err)
	} else {
		for _, e := range left {
			if e.IsDir() {
				t.Errorf("cgroup %s is left", e.Name())
			}
		}
	}
}

// TestGuestAgentTerminal: a terminal has a size, an echo and one stream.
func TestGuestAgentTerminal(t *testing.T) {
	guard(t)
	a := startAgent(t)
	app := a.run(a.request("terminal", "read go; tty; stty size; exit 7", func(s *initproc.Start, p *initproc.Process) { p.TTY, s.Self.Console = true, true }))
	if _, err := a.Resize(t.Context(), &guestpb.ResizeRequest{Ref: app, Width: 132, Height: 43}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Write(t.Context(), &guestpb.WriteRequest{Ref: app, Data: []byte("go\n")}); err != nil {
		t.Fatal(err)
	}
	if out, errs, end := a.end(app); !strings.Contains(out, "43 132") || !strings.Contains(out, "/dev/pts/0") || errs != "" || end.Code != 7 {
		t.Errorf("%q, %q, %v", out, errs, end)
	}
}

// TestGuestAgentLimits: signals and memory end an app as what they are, and the numbers of
// its cgroup can be read.
func TestGuestAgentLimits(t *testing.T) {
	guard(t)
	a := startAgent(t)
	app := a.run(a.request("killed", "while :; do sleep 1000000; done", nil)) // it outlives what is killed before it
	stats, err := a.Stats(t.Context(), &guestpb.StatsRequest{App: "killed", Files: []string{"pids.current", "memory.current", "no.such"}})
	if err != nil || len(stats.Files) != 2 || strings.TrimSpace(stats.Files[0].Value) == "0" {
		t.Errorf("statistics %v, %v", stats, err)
	}
	if _, err := a.Signal(t.Context(), &guestpb.SignalRequest{Ref: app, Signal: 9, All: true}); err != nil {
		t.Fatal(err)
	}
	if _, _, end := a.end(app); end.Signal != 9 || end.Code != 137 || end.OomKills != 0 {
		t.Errorf("killed: %v", end)
	}
	app = a.run(a.request("hungry", "head -c 100000000 /dev/zero | cat >/dev/null; x=$(cat /proc/self/maps /bin/busybox /bin/busybox /bin/busybox | head -c 60000000); while :; do x=$x$x$x; done",
		func(s *initproc.Start, _ *initproc.Process) {
			s.Cgroup = []initproc.CgroupFile{{Name: "memory.max", Value: "16777216"}, {Name: "memory.swap.max", Value: "0"}, {Name: "memory.oom.group", Value: "1"}}
		}))
	if _, _, end := a.end(app); end.Signal != 9 || end.OomKills == 0 {
		t.Errorf("without memory: %v", end)
	}
}

// TestGuestAgentExecIsHeld: an exec lives as long as somebody holds it, and one whose caller
// was killed before it could is ended, too.
func TestGuestAgentExecIsHeld(t *testing.T) {
	guard(t)
	a := startAgent(t)
	a.run(a.request("held", "sleep 1000000", nil))
	process := encode(t, initproc.Process{Args: []string{"sh", "-c", "sleep 1000001 | sleep 1000002"}, Env: []string{"PATH=/bin"}, Cwd: "/"})
	running := func() string { return strings.TrimSpace(sh(t, "pgrep -fc 'sleep 100000[12]' || true")) }
	for name, hold := range map[string]bool{"caller": true, "nobody": false} {
		ref := &guestpb.Ref{App: "held", Exec: name}
		other, end := a.another()
		if _, err := other.Exec(t.Context(), &guestpb.ExecRequest{Ref: ref, Process: process}); err != nil {
			t.Fatal(err)
		}
		if hold {
			go func() { _, _ = other.Hold(context.WithoutCancel(t.Context()), &guestpb.HoldRequest{Ref: ref}) }() // ends with the connection
			eventually(t, 10*time.Second, "the exec runs", func() bool { return running() != "0" })
		}
		end()
		eventually(t, 20*time.Second, "the exec of "+name+" is ended and forgotten", func() bool {
			_, err := a.Wait(t.Context(), &guestpb.WaitRequest{Ref: ref})
			return running() == "0" && err != nil && strings.Contains(err.Error(), "has no process")
		})
		eventually(t, 5*time.Second, "its cgroup is gone", func() bool {
			return sh(t, "find /sys/fs/cgroup/trial-guest -name 'exec-*'") == ""
		})
	}
	kept := &guestpb.Ref{App: "held", Exec: "kept"}
	if _, err := a.Exec(t.Context(), &guestpb.ExecRequest{Ref: kept, Process: encode(t, initproc.Process{Args: []string{"true"}, Env: []string{"PATH=/bin"}, Cwd: "/"})}); err == nil {
		t.Error("the image has a program true") // so that the next one is what is tried
	}
	if _, err := a.Exec(t.Context(), &guestpb.ExecRequest{Ref: kept, Process: encode(t, initproc.Process{Args: []string{"sh", "-c", "exit 3"}, Env: []string{"PATH=/bin"}, Cwd: "/"})}); err != nil {
		t.Fatal(err)
	}
	held := make(chan error, 1)
	go func() {
		_, err := a.Hold(context.WithoutCancel(t.Context()), &guestpb.HoldRequest{Ref: kept})
		held <- err
	}()
	if _, _, end := a.end(kept); end.Code != 3 {
		t.Errorf("it ended as %v", end)
	}
	if _, err := a.Forget(t.Context(), &guestpb.ForgetRequest{Ref: kept}); err != nil {
		t.Error(err)
	}
	if err := <-held; err != nil {
		t.Errorf("to hold what is forgotten: %v", err)
	}
}

// TestGuestAgentUpdate: limits and OOM scores of what runs are changed.
func TestGuestAgentUpdate(t *testing.T) {
	guard(t)
	a := startAgent(t)
	r := a.request("sized", "sleep 1000000; true", nil)
	r.OomScoreAdj = 500
	a.run(r)
	scores := func() string {
		return strings.Join(strings.Fields(sh(t, "for p in $(cat /sys/fs/cgroup/trial-guest/apps/sized/cgroup.procs); do cat /proc/$p/oom_score_adj 2>/dev/null || true; done")), " ")
	}
	if got := scores(); !strings.HasPrefix(got, "500") {
		t.Errorf("the OOM scores are %q", got)
	}
	for _, c := range []struct{ file, value, want string }{{"memory.max", "33554432", "33554432"}, {"pids.max", "77", "77"}, {"memory.max", "max", "max"}} {
		if _, err := a.Update(t.Context(), &guestpb.UpdateRequest{App: "sized", Files: []*guestpb.File{{Name: c.file, Value: c.value}}, OomScoreWas: 500, OomScoreAdj: 600}); err != nil {
			t.Fatal(err)
		}
		if got := strings.TrimSpace(sh(t, "cat /sys/fs/cgroup/trial-guest/apps/sized/"+c.file)); got != c.want {
			t.Errorf("%s is %s, want %s", c.file, got, c.want)
		}
	}
	if got := scores(); got != "600 600" && got != "600" {
		t.Errorf("the OOM scores are %q", got)
	}
	if _, err := a.Update(t.Context(), &guestpb.UpdateRequest{App: "sized", Files: []*guestpb.File{{Name: "cgroup.procs", Value: "1"}}}); err == nil {
		t.Error("any file may be written")
	}
	s, err := a.Stats(t.Context(), &guestpb.StatsRequest{App: "sized", Files: []string{"memory.current"}, Disk: true})
	if err != nil || s.Processes == 0 || len(s.Files) != 1 {
		t.Errorf("statistics %v, %v", s, err)
	}
}
