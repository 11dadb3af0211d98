package systemdtest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"gantry/internal/systemd"
	"gantry/internal/unit"
)

// Exit is how a process ended: by itself with Code, or by Signal if that is not 0.
type Exit struct {
	Code   int
	Signal int
	OOM    bool // the kernel killed it for memory; Signal is 9 then
}

func (e Exit) ok() bool {
	return e == Exit{} || e.Signal == 15 || e.Signal == 2 || e.Signal == 1 || e.Signal == 13
}

// Process is one command of a unit that is being run.
type Process struct {
	Unit         unit.Unit
	Line         string // ExecStart, ExecStop or ExecStopPost; Mount for a mount unit
	Args         []string
	PID          int
	InvocationID string
	// Env has what systemd gives to ExecStopPost: SERVICE_RESULT, EXIT_CODE and
	// EXIT_STATUS; and INVOCATION_ID.
	Env map[string]string
	// Signals gets all signals but SIGKILL, which ends the context.
	Signals <-chan int
	// Ready is READY=1 of a Type=notify service.
	Ready func()
}

// Program stands for all programs that units run. It returns when the process
// ends; it must return soon after ctx ended, and what it returns then is ignored.
type Program func(ctx context.Context, p Process) Exit

// Fake is a PID 1 in memory. It knows services, mounts and slices, jobs,
// invocations, Requires=, Requisite=, BindsTo=, StopWhenUnneeded= and CollectMode=.
// It runs nothing: a Program stands for the programs.
type Fake struct {
	program Program

	mu      sync.Mutex
	units   map[string]*fakeUnit
	queues  map[*systemd.Queue]struct{}
	lastPID int
	closed  bool
}

// New makes a Fake with no units. A nil program stands for Programs.
func New(program Program) *Fake {
	if program == nil {
		program = Programs
	}
	return &Fake{
		program: program, lastPID: 1000,
		units: map[string]*fakeUnit{}, queues: map[*systemd.Queue]struct{}{},
	}
}

// fakeUnit is a loaded unit. All but def is guarded by Fake.mu.
type fakeUnit struct {
	def      unit.Unit // as it was made
	now      unit.Unit // with what SetProperties changed
	state    systemd.State
	starting *job
	stopping *job
	proc     *process
	// asked is closed when somebody wants the unit to stop.
	asked chan struct{}
}

type job struct {
	result string
	done   chan struct{}
}

type process struct {
	signals chan int
	kill    context.CancelFunc
}

// Start is Manager.Start.
func (f *Fake) Start(ctx context.Context, u unit.Unit, aux ...unit.Unit) (systemd.State, error) {
	for _, v := range append([]unit.Unit{u}, aux...) {
		if err := systemd.Check(v); err != nil {
			return systemd.State{}, fmt.Errorf("start unit %s: %w", u.Name, err)
		}
	}
	j, err := f.define(ctx, u, aux)
	if err != nil {
		return systemd.State{}, fmt.Errorf("start unit %s: %w", u.Name, err)
	}
	if err := f.wait(ctx, u.Name, j); err != nil {
		return systemd.State{}, fmt.Errorf("start unit %s: %w", u.Name, err)
	}
	return f.State(ctx, u.Name)
}

// Launch is Manager.Launch.
func (f *Fake) Launch(ctx context.Context, u unit.Unit, aux ...unit.Unit) error {
	_, err := f.Start(ctx, u, aux...)
	return err
}

// define loads a unit and those of aux that are not there, and queues its start.
func (f *Fake) define(ctx context.Context, u unit.Unit, aux []unit.Unit) (*job, error) {
	if err := f.lockStill(ctx, aux); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	if f.units[u.Name] != nil {
		return nil, systemd.ErrUnitExists
	}
	for _, a := range aux {
		if f.units[a.Name] == nil {
			f.load(a)
		}
	}
	f.load(u)
	return f.enqueueStart(u.Name)
}

// lockStill takes the lock at a moment when none of the units is going away.
func (f *Fake) lockStill(ctx context.Context, units []unit.Unit) error {
	for {
		f.mu.Lock()
		going := f.leaving(units)
		if going == nil {
			return nil
		}
		f.mu.Unlock()
		select {
		case <-going.done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (f *Fake) leaving(aux []unit.Unit) *job {
	for _, a := range aux {
		if u := f.units[a.Name]; u != nil && u.stopping != nil {
			return u.stopping
		}
	}
	return nil
}

func (f *Fake) load(u unit.Unit) {
	description, _ := u.Get("Description").(unit.String)
	f.units[u.Name] = &fakeUnit{def: u, now: u, state: systemd.State{
		Name: u.Name, Load: systemd.Loaded, Active: systemd.Inactive, Sub: "dead", Description: string(description),
	}}
}

// Ensure is Manager.Ensure.
func (f *Fake) Ensure(ctx context.Context, u unit.Unit) error {
	if err := systemd.Check(u); err != nil {
		return fmt.Errorf("bring up unit %s: %w", u.Name, err)
	}
	if err := f.lockStill(ctx, []unit.Unit{u}); err != nil {
		return fmt.Errorf("bring up unit %s: %w", u.Name, err)
	}
	if old := f.units[u.Name]; old != nil && old.state.Active == systemd.Failed {
		f.unload(old)
	}
	if f.units[u.Name] == nil {
		f.load(u)
	}
	j, err := f.enqueueStart(u.Name)
	f.mu.Unlock()
	if err == nil {
		err = f.wait(ctx, u.Name, j)
	}
	if err != nil {
		return fmt.Errorf("bring up unit %s: %w", u.Name, err)
	}
	return nil
}

// StartUnit is Manager.StartUnit.
func (f *Fake) StartUnit(ctx context.Context, name string) error {
	f.mu.Lock()
	j, err := f.enqueueStart(name)
	f.mu.Unlock()
	if err == nil {
		err = f.wait(ctx, name, j)
	}
	if err != nil {
		return fmt.Errorf("start unit %s: %w", name, err)
	}
	return nil
}

// Stop is Manager.Stop.
func (f *Fake) Stop(ctx context.Context, name string) error {
	f.mu.Lock()
	u := f.units[name]
	if u == nil {
		f.mu.Unlock()
		return nil
	}
	j := f.enqueueStop(u)
	f.mu.Unlock()
	if err := f.wait(ctx, name, j); err != nil {
		return fmt.Errorf("stop unit %s: %w", name, err)
	}
	return nil
}

// Kill is Manager.Kill.
func (f *Fake) Kill(_ context.Context, name, who string, signal int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	u := f.units[name]
	if u == nil || u.proc == nil && who != "all" {
		return fmt.Errorf("kill unit %s: %w", name, systemd.ErrNotFound)
	}
	if u.proc != nil {
		u.proc.send(signal)
	}
	return nil
}

// State is Manager.State.
func (f *Fake) State(_ context.Context, name string) (systemd.State, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	u := f.units[name]
	if u == nil {
		return systemd.State{Name: name, Load: systemd.NotFound}, nil
	}
	s := u.state
	s.Job = u.starting != nil || u.stopping != nil
	return s, nil
}

// Units is Manager.Units.
func (f *Fake) Units(_ context.Context, patterns ...string) ([]systemd.State, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	states := []systemd.State{}
	for name, u := range f.units {
		matches := func(p string) bool {
			// PID 1 takes a backslash for a backslash; so does this.
			ok, err := path.Match(strings.ReplaceAll(p, `\`, `\\`), name)
			return ok && err == nil
		}
		if len(patterns) == 0 || slices.ContainsFunc(patterns, matches) {
			states = append(states, systemd.State{
				Name: name, Load: u.state.Load, Active: u.state.Active, Sub: u.state.Sub,
				Description: u.state.Description, Job: u.starting != nil || u.stopping != nil,
			})
		}
	}
	return states, nil
}

// SetProperties is Manager.SetProperties.
func (f *Fake) SetProperties(_ context.Context, name string, props []unit.Property) error {
	if err := systemd.CheckProperties(props); err != nil {
		return fmt.Errorf("set properties of unit %s: %w", name, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	u := f.units[name]
	if u == nil {
		return fmt.Errorf("set properties of unit %s: %w", name, systemd.ErrNotFound)
	}
	u.now.Properties = slices.Clone(u.now.Properties)
	for _, p := range props {
		u.now.Properties = slices.DeleteFunc(u.now.Properties, func(q unit.Property) bool { return q.Name == p.Name })
		u.now.Properties = append(u.now.Properties, p)
	}
	return nil
}

// ResetFailed is Manager.ResetFailed.
func (f *Fake) ResetFailed(_ context.Context, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if u := f.units[name]; u != nil && u.state.Active == systemd.Failed {
		f.unload(u)
	}
	return nil
}

// Watch is Manager.Watch.
func (f *Fake) Watch(ctx context.Context) (<-chan systemd.Event, error) {
	q := systemd.NewQueue(1024)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, systemd.ErrClosed
	}
	f.queues[q] = struct{}{}
	context.AfterFunc(ctx, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.queues, q)
		q.Close()
	})
	return q.Events(), nil
}

// Blink is a bus that goes away and comes back.
func (f *Fake) Blink() {
	f.Emit(systemd.Event{Kind: systemd.Disconnected})
	f.Emit(systemd.Event{Kind: systemd.Reconnected})
}

// Emit sends an event to all who watch: Reload, Disconnected, Reconnected, Overflow.
func (f *Fake) Emit(e systemd.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.emit(e)
}

// Unit gives a loaded unit with its properties, for a test to look at.
func (f *Fake) Unit(name string) (unit.Unit, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	u := f.units[name]
	if u == nil {
		return unit.Unit{}, false
	}
	return u.now, true
}

// Close kills everything that runs.
func (f *Fake) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	for _, u := range f.units {
		if u.proc != nil {
			u.proc.kill()
		}
	}
	for q := range f.queues {
		q.Close()
	}
	clear(f.queues)
	return nil
}

func (f *Fake) wait(ctx context.Context, name string, j *job) error {
	select {
	case <-j.done:
	case <-ctx.Done():
		return fmt.Errorf("wait for job: %w", ctx.Err())
	}
	if j.result == "done" {
		return nil
	}
	s, err := f.State(ctx, name)
	if err != nil {
		return err
	}
	return &systemd.JobError{Unit: name, Result: j.result, State: s}
}

func (p *process) send(signal int) {
	if signal == sigKill {
		p.kill()
		return
	}
	select {
	case p.signals <- signal:
	default: // as the kernel: a signal that is pending already is lost
	}
}

func newInvocation() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// duration reads a time property, which may be given as microseconds too.
func duration(u unit.Unit, name string, otherwise time.Duration) time.Duration {
	switch v := u.Get(name).(type) {
	case unit.Duration:
		return time.Duration(v)
	case unit.Uint64:
		if v == unit.Infinity {
			return 1 << 62
		}
		return time.Duration(v) * time.Microsecond
	}
	return otherwise
}
