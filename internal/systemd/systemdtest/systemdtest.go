// Package systemdtest has a fake of PID 1 for tests, and the suite that the fake
// and the real port both pass, so that the fake cannot lie.
package systemdtest

import (
	"context"
	"crypto/rand"
	"errors"
	"strings"
	"testing"
	"time"

	"gantry/internal/systemd"
	"gantry/internal/unit"
)

// Manager is what systemd.Manager and Fake have in common.
type Manager interface {
	Start(ctx context.Context, u unit.Unit, aux ...unit.Unit) (systemd.State, error)
	Launch(ctx context.Context, u unit.Unit, aux ...unit.Unit) error
	Ensure(ctx context.Context, u unit.Unit) error
	StartUnit(ctx context.Context, name string) error
	Stop(ctx context.Context, name string) error
	Kill(ctx context.Context, name, who string, signal int) error
	State(ctx context.Context, name string) (systemd.State, error)
	Units(ctx context.Context, patterns ...string) ([]systemd.State, error)
	SetProperties(ctx context.Context, name string, props []unit.Property) error
	ResetFailed(ctx context.Context, name string) error
	Watch(ctx context.Context) (<-chan systemd.Event, error)
	Close() error
}

// patience is for a PID 1 in an emulated machine.
const patience = time.Minute

// Run is the contract. newManager's Manager must be able to run /bin/true,
// /bin/false, /bin/sleep and /bin/sh. blink takes the bus from it for a moment.
func Run(t *testing.T, newManager func(t *testing.T) Manager, blink func(t *testing.T, m Manager)) {
	t.Helper()
	for name, test := range map[string]func(*testing.T, *bench){
		"start and stop":                        testStartStop,
		"a name can be used once at a time":     testExists,
		"a short program is started well":       testShort,
		"a failed start says why":               testFailedStart,
		"a failed unit stays until it is reset": testResetFailed,
		"a unit that is not there":              testUnknown,
		"kill ends a unit and is watched":       testKill,
		"requisite that is not active":          testRequisite,
		"a stop takes dependents along":         testStopDependents,
		"a shared unit lives while it is used":  testShared,
		"a shared unit under load":              testSharedRace,
		"ensure":                                testEnsure,
		"an ended context":                      testContext,
		"bad units are refused":                 testRefused,
		"names with backslashes":                testEscapedName,
		"properties can be changed":             testSetProperties,
		"a bus that goes and comes is told of":  func(t *testing.T, b *bench) { testBlink(t, b, blink) },
	} {
		t.Run(name, func(t *testing.T) {
			m := newManager(t)
			t.Cleanup(func() {
				if err := m.Close(); err != nil {
					t.Error(err)
				}
			})
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			test(t, &bench{Manager: m, t: t, ctx: ctx, prefix: "gantry-test-" + strings.ToLower(rand.Text()[:8]) + "-"})
		})
	}
}

// bench is a Manager with what the tests say again and again.
type bench struct {
	Manager
	t      *testing.T
	ctx    context.Context // of the test that this value lives in
	prefix string
}

func (b *bench) service(name string, args ...string) unit.Unit {
	b.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(b.ctx), patience)
		defer cancel()
		if err := b.Stop(ctx, b.prefix+name+".service"); err != nil {
			b.t.Logf("clean up: %v", err)
		}
	})
	return unit.Unit{Name: b.prefix + name + ".service", Properties: []unit.Property{
		{Name: "Description", Value: unit.String("test " + name)},
		{Name: "CollectMode", Value: unit.String("inactive-or-failed")},
		{Name: "Type", Value: unit.String("exec")},
		{Name: "TimeoutStopUSec", Value: unit.Duration(20 * time.Second)},
		{Name: "ExecStart", Value: unit.Commands{{Path: args[0], Args: args}}},
	}}
}

func with(u unit.Unit, name string, v unit.Value) unit.Unit {
	props := []unit.Property{}
	for _, p := range u.Properties {
		if p.Name != name {
			props = append(props, p)
		}
	}
	u.Properties = append(props, unit.Property{Name: name, Value: v})
	return u
}

func (b *bench) start(u unit.Unit, aux ...unit.Unit) systemd.State {
	b.t.Helper()
	s, err := b.Start(b.ctx, u, aux...)
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

func (b *bench) stop(u unit.Unit) {
	b.t.Helper()
	if err := b.Stop(b.ctx, u.Name); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) state(u unit.Unit) systemd.State {
	b.t.Helper()
	s, err := b.State(b.ctx, u.Name)
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

// eventually waits until a unit is as wanted.
func (b *bench) eventually(u unit.Unit, what string, ok func(systemd.State) bool) {
	b.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		s := b.state(u)
		if ok(s) {
			return
		}
		select {
		case <-tick.C:
		case <-b.ctx.Done():
			b.t.Fatalf("%s is not %s: %+v", u.Name, what, s)
		}
	}
}

func gone(s systemd.State) bool { return !s.Loaded() }

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("error %v, want %v", err, want)
	}
}

func wantJob(t *testing.T, err error, result string) {
	t.Helper()
	var job *systemd.JobError
	if !errors.As(err, &job) {
		t.Fatalf("error %v, want a job error", err)
	}
	if job.Result != result || !strings.HasPrefix(job.Unit, "gantry-test-") {
		t.Errorf("job of %s: %s, want %s", job.Unit, job.Result, result)
	}
}
