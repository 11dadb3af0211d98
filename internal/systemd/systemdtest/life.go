package systemdtest

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"gantry/internal/systemd"
	"gantry/internal/unit"
)

const (
	sigKill = 9
	sigTerm = 15
)

// enqueueStart queues the start of a loaded unit, or joins the one under way.
func (f *Fake) enqueueStart(name string) (*job, error) {
	u := f.units[name]
	switch {
	case u == nil:
		return nil, systemd.ErrNotFound
	case u.starting != nil:
		return u.starting, nil
	case u.stopping != nil:
		return ended("canceled"), nil
	case u.state.Active == systemd.Active:
		return ended("done"), nil
	}
	for _, dep := range append(requirements(u.def), stringsOf(u.def, "Requisite")...) {
		if f.units[dep] == nil {
			f.unload(u)
			return nil, fmt.Errorf("%w: %s", systemd.ErrNotFound, dep)
		}
	}
	j := &job{done: make(chan struct{})}
	u.starting, u.asked = j, make(chan struct{})
	go f.live(u)
	return j, nil
}

// enqueueStop queues the stop of a unit after that of those that require it.
func (f *Fake) enqueueStop(u *fakeUnit) *job {
	if u.stopping != nil {
		return u.stopping
	}
	if u.starting == nil && (u.state.Active == systemd.Inactive || u.state.Active == systemd.Failed) {
		return ended("done")
	}
	j := &job{done: make(chan struct{})}
	u.stopping = j
	var first []*job
	for _, other := range f.units {
		if other != u && slices.Contains(propagators(other.def), u.def.Name) && other.up() {
			first = append(first, f.enqueueStop(other))
		}
	}
	go func() {
		for _, j := range first {
			<-j.done
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		f.finishJob(u, &u.starting, "canceled")
		u.state.Active, u.state.Sub = systemd.Deactivating, "stop-sigterm"
		close(u.asked)
	}()
	return j
}

func (u *fakeUnit) up() bool {
	return u.starting != nil || u.stopping != nil || u.state.Active == systemd.Active
}

func ended(result string) *job {
	j := &job{result: result, done: make(chan struct{})}
	close(j.done)
	return j
}

// live is one run of a unit, from its start job to its end.
func (f *Fake) live(u *fakeUnit) {
	if !f.require(u) {
		f.down(u, "dependency", "", Exit{})
		return
	}
	f.mu.Lock()
	u.state.InvocationID = newInvocation()
	if u.stopping == nil {
		u.state.Active, u.state.Sub = systemd.Activating, "start"
	}
	f.mu.Unlock()

	e, result := f.main(u)
	f.mu.Lock()
	u.state.MainPID, u.state.Result = 0, result
	started := u.starting == nil
	if u.state.Active == systemd.Active {
		u.state.Active, u.state.Sub = systemd.Deactivating, "stop"
	}
	f.mu.Unlock()
	if started {
		f.lines(u, "ExecStop", nil)
	}
	f.lines(u, "ExecStopPost", postEnv(result, e))
	f.down(u, "failed", result, e)
}

// require starts what the unit requires and waits for it.
func (f *Fake) require(u *fakeUnit) bool {
	for _, dep := range stringsOf(u.def, "Requisite") {
		if s, err := f.State(context.Background(), dep); err != nil || s.Active != systemd.Active {
			return false
		}
	}
	for _, dep := range requirements(u.def) {
		f.mu.Lock()
		j, err := f.enqueueStart(dep)
		f.mu.Unlock()
		if err != nil {
			return false
		}
		<-j.done
		if j.result != "done" {
			return false
		}
	}
	return true
}

// main runs what makes the unit active, and returns when that is over.
func (f *Fake) main(u *fakeUnit) (Exit, string) {
	kind, _ := u.def.Get("Type").(unit.String)
	stay, _ := u.def.Get("RemainAfterExit").(unit.Bool)
	commands, _ := u.def.Get("ExecStart").(unit.Commands)
	var e Exit
	switch {
	case strings.HasSuffix(u.def.Name, ".mount"):
		if e = f.run(u, "Mount", nil, nil); !e.ok() {
			return e, "exit-code"
		}
		stay = true
	case !strings.HasSuffix(u.def.Name, ".service"):
		stay = true
	default:
		for _, c := range commands {
			if e = f.run(u, "ExecStart", c.Args, nil); !e.ok() && !c.IgnoreFailure {
				return e, resultOf(e)
			}
			if f.is(u, systemd.Deactivating) {
				return e, "success"
			}
		}
		if kind == "notify" && f.is(u, systemd.Activating) {
			return e, "protocol"
		}
	}
	if stay || kind == "oneshot" {
		f.ready(u)
	}
	if stay {
		<-u.asked
	}
	return e, "success"
}

func (f *Fake) is(u *fakeUnit, active string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return u.state.Active == active
}

// ready ends the start job well.
func (f *Fake) ready(u *fakeUnit) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if u.starting == nil {
		return
	}
	u.state.Active, u.state.Sub = systemd.Active, "running"
	if u.proc == nil {
		u.state.Sub = "exited"
	}
	f.finishJob(u, &u.starting, "done")
}

// lines runs all commands of a kind, one after the other.
func (f *Fake) lines(u *fakeUnit, line string, env map[string]string) {
	commands, _ := u.def.Get(line).(unit.Commands)
	for _, c := range commands {
		if e := f.run(u, line, c.Args, env); !e.ok() && !c.IgnoreFailure {
			return
		}
	}
}

// run runs one command until it ends or is killed.
func (f *Fake) run(u *fakeUnit, line string, args []string, env map[string]string) Exit {
	ctx, kill := context.WithCancel(context.Background())
	defer kill()
	p := &process{signals: make(chan int, 16), kill: kill}
	isMain := line == "ExecStart" || line == "Mount"
	f.mu.Lock()
	f.lastPID++
	proc := Process{
		Unit: u.def, Line: line, Args: args, PID: f.lastPID, InvocationID: u.state.InvocationID,
		Env: map[string]string{"INVOCATION_ID": u.state.InvocationID}, Signals: p.signals, Ready: func() { f.ready(u) },
	}
	for k, v := range env {
		proc.Env[k] = v
	}
	if isMain && line != "Mount" {
		u.state.MainPID = proc.PID
	}
	u.proc = p
	asked := u.asked
	f.mu.Unlock()
	if kind, _ := u.def.Get("Type").(unit.String); isMain && kind != "notify" && kind != "oneshot" && line != "Mount" {
		f.ready(u)
	}

	done := make(chan Exit, 1)
	go func() { done <- f.program(ctx, proc) }()
	e := f.attend(ctx, u, p, done, asked, isMain)
	f.mu.Lock()
	u.proc, u.state.MainPID = nil, 0
	f.mu.Unlock()
	return e
}

// attend waits for a process and passes a stop on to it.
func (f *Fake) attend(ctx context.Context, u *fakeUnit, p *process, done <-chan Exit, asked chan struct{}, isMain bool) Exit {
	if !isMain {
		asked = nil // what runs because the unit stops is not told to stop
	}
	var late <-chan time.Time
	for {
		select {
		case e := <-done:
			return e
		case <-ctx.Done():
			return Exit{Signal: sigKill}
		case <-asked:
			asked = nil
			signal, ok := u.def.Get("KillSignal").(unit.Int32)
			if !ok {
				signal = sigTerm
			}
			p.send(int(signal))
			t := time.NewTimer(duration(u.def, "TimeoutStopUSec", 90*time.Second))
			defer t.Stop()
			late = t.C
		case <-late:
			p.kill()
		}
	}
}

// down ends the unit's run and its jobs, and unloads it as CollectMode= says.
func (f *Fake) down(u *fakeUnit, job, result string, e Exit) {
	f.mu.Lock()
	defer f.mu.Unlock()
	u.state.Active, u.state.Sub, u.state.MainPID = systemd.Inactive, "dead", 0
	if result != "" && result != "success" {
		u.state.Active, u.state.Sub = systemd.Failed, "failed"
	}
	u.state.ExecCode, u.state.ExecStatus = 1, e.Code
	if e.Signal != 0 {
		u.state.ExecCode, u.state.ExecStatus = 2, e.Signal
	}
	f.finishJob(u, &u.starting, job)
	mode, _ := u.def.Get("CollectMode").(unit.String)
	if u.state.Active == systemd.Inactive || mode == "inactive-or-failed" {
		f.unload(u)
	}
	f.finishJob(u, &u.stopping, "done")
	f.unneeded(u.def)
}

// unneeded stops what the unit was the last to need.
func (f *Fake) unneeded(u unit.Unit) {
	for _, name := range requirements(u) {
		dep := f.units[name]
		if dep == nil || dep.def.Get("StopWhenUnneeded") != unit.Bool(true) || dep.state.Active != systemd.Active {
			continue
		}
		needed := false
		for _, other := range f.units {
			needed = needed || other.up() && slices.Contains(requirements(other.def), name)
		}
		if !needed {
			f.enqueueStop(dep)
		}
	}
}

func (f *Fake) finishJob(u *fakeUnit, j **job, result string) {
	if *j == nil {
		return
	}
	(*j).result = result
	close((*j).done)
	*j = nil
	f.emit(systemd.Event{Kind: systemd.JobRemoved, Unit: u.def.Name, Result: result})
}

func (f *Fake) unload(u *fakeUnit) {
	if f.units[u.def.Name] == u {
		delete(f.units, u.def.Name)
		f.emit(systemd.Event{Kind: systemd.UnitRemoved, Unit: u.def.Name})
	}
}

func (f *Fake) emit(e systemd.Event) {
	if e.Unit != "" && !strings.HasPrefix(e.Unit, "gantry-") {
		return
	}
	for q := range f.queues {
		q.Put(e)
	}
}

// requirements are started with the unit; propagators take it down with them.
func requirements(u unit.Unit) []string {
	return append(stringsOf(u, "Requires"), stringsOf(u, "BindsTo")...)
}

func propagators(u unit.Unit) []string {
	return append(append(requirements(u), stringsOf(u, "Requisite")...), stringsOf(u, "PartOf")...)
}

func stringsOf(u unit.Unit, name string) []string {
	v, _ := u.Get(name).(unit.Strings)
	return slices.Clone(v)
}

func resultOf(e Exit) string {
	switch {
	case e.OOM:
		return "oom-kill"
	case e.Signal != 0:
		return "signal"
	}
	return "exit-code"
}

// postEnv is what systemd.exec(5) says that ExecStopPost= finds.
func postEnv(result string, e Exit) map[string]string {
	env := map[string]string{"SERVICE_RESULT": result, "EXIT_CODE": "exited", "EXIT_STATUS": strconv.Itoa(e.Code)}
	if e.Signal != 0 {
		env["EXIT_CODE"], env["EXIT_STATUS"] = "killed", signalName(e.Signal)
	}
	return env
}

// signalName is a signal as systemd writes it, without SIG.
func signalName(n int) string {
	names := map[int]string{1: "HUP", 2: "INT", 3: "QUIT", 6: "ABRT", 9: "KILL", 10: "USR1", 11: "SEGV", 12: "USR2", 13: "PIPE", 15: "TERM"}
	if s, ok := names[n]; ok {
		return s
	}
	return strconv.Itoa(n)
}
