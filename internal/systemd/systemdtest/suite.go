package systemdtest

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"gantry/internal/systemd"
	"gantry/internal/unit"
)

func testStartStop(t *testing.T, b *bench) {
	u := b.service("main", "/bin/sleep", "1000")
	s := b.start(u)
	if !s.Running() || s.MainPID <= 1 || len(s.InvocationID) != 32 {
		t.Errorf("started: %+v", s)
	}
	got := b.state(u)
	if got.Active != systemd.Active || got.Sub != "running" || got.Description != "test main" ||
		got.MainPID != s.MainPID || got.InvocationID != s.InvocationID {
		t.Errorf("state: %+v, started as %+v", got, s)
	}
	list, err := b.Units(b.ctx, b.prefix+"*")
	if err != nil || len(list) != 1 || list[0].Name != u.Name || list[0].Active != systemd.Active {
		t.Errorf("units: %+v, %v", list, err)
	}
	b.stop(u)
	b.eventually(u, "gone", gone)
	b.stop(u)
	if again := b.start(u); again.InvocationID == s.InvocationID {
		t.Error("a second run has the invocation of the first")
	}
}

func testExists(t *testing.T, b *bench) {
	u := b.service("main", "/bin/sleep", "1000")
	b.start(u)
	_, err := b.Start(b.ctx, u)
	wantErr(t, err, systemd.ErrUnitExists)
}

func testShort(t *testing.T, b *bench) {
	for i := range 5 {
		u := b.service(fmt.Sprint("short", i), "/bin/true")
		b.start(u)
		b.eventually(u, "gone", gone)
	}
}

func testFailedStart(t *testing.T, b *bench) {
	u := with(b.service("main", "/bin/sh", "-c", "exit 3"), "Type", unit.String("oneshot"))
	_, err := b.Start(b.ctx, u)
	wantJob(t, err, "failed")
	b.eventually(u, "gone", gone)
	u = with(b.service("notify", "/bin/true"), "Type", unit.String("notify"))
	_, err = b.Start(b.ctx, u)
	wantJob(t, err, "failed")
}

func testResetFailed(t *testing.T, b *bench) {
	u := with(b.service("main", "/bin/sh", "-c", "exit 3"), "CollectMode", unit.String("inactive"))
	b.start(u)
	b.eventually(u, "failed", func(s systemd.State) bool { return s.Active == systemd.Failed })
	if s := b.state(u); s.Result != "exit-code" || s.ExecCode != 1 || s.ExecStatus != 3 || s.InvocationID == "" {
		t.Errorf("failed unit: %+v", s)
	}
	_, err := b.Start(b.ctx, u)
	wantErr(t, err, systemd.ErrUnitExists)
	for range 2 {
		if err := b.ResetFailed(b.ctx, u.Name); err != nil {
			t.Error(err)
		}
		b.eventually(u, "gone", gone)
	}
}

func testUnknown(t *testing.T, b *bench) {
	name := b.prefix + "none.service"
	s, err := b.State(b.ctx, name)
	if err != nil || s != (systemd.State{Name: name, Load: systemd.NotFound}) {
		t.Errorf("state: %+v, %v", s, err)
	}
	if err := b.Stop(b.ctx, name); err != nil {
		t.Error(err)
	}
	wantErr(t, b.Kill(b.ctx, name, "main", 15), systemd.ErrNotFound)
	wantErr(t, b.StartUnit(b.ctx, name), systemd.ErrNotFound)
	wantErr(t, b.SetProperties(b.ctx, name, []unit.Property{{Name: "TasksMax", Value: unit.Uint64(9)}}), systemd.ErrNotFound)
}

func testKill(t *testing.T, b *bench) {
	events, err := b.Watch(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, signal := range []int{sigTerm, sigKill} {
		u := b.service(fmt.Sprint("main", signal), "/bin/sleep", "1000")
		b.start(u)
		if err := b.Kill(b.ctx, u.Name, "main", signal); err != nil {
			t.Error(err)
		}
		job := false
		for removed := false; !removed; {
			select {
			case e := <-events:
				job = job || e == systemd.Event{Kind: systemd.JobRemoved, Unit: u.Name, Result: "done"}
				removed = e.Kind == systemd.UnitRemoved && e.Unit == u.Name
			case <-b.ctx.Done():
				t.Fatalf("no word of the end of %s", u.Name)
			}
		}
		if !job {
			t.Errorf("no word of the start job of %s", u.Name)
		}
		b.eventually(u, "gone", gone)
	}
}

func testRequisite(t *testing.T, b *bench) {
	p, u := b.pod(), b.app("app")
	_, err := b.Start(b.ctx, u)
	wantErr(t, err, systemd.ErrNotFound)
	b.eventually(u, "gone", gone)

	failing := with(with(p, "CollectMode", unit.String("inactive")), "ExecStart", unit.Commands{{Path: "/bin/false", Args: []string{"false"}}})
	_, err = b.Start(b.ctx, failing)
	wantJob(t, err, "failed")
	_, err = b.Start(b.ctx, u)
	wantJob(t, err, "dependency")
	b.eventually(u, "gone", gone)

	if err := b.ResetFailed(b.ctx, p.Name); err != nil {
		t.Error(err)
	}
	b.eventually(p, "gone", gone)
	b.start(p)
	b.start(u)
}

// pod and app are as the engine makes them: a oneshot that stays, and a service
// that may not start without it.
func (b *bench) pod() unit.Unit {
	return with(with(b.service("pod", "/bin/true"), "Type", unit.String("oneshot")), "RemainAfterExit", unit.Bool(true))
}

func (b *bench) app(name string) unit.Unit {
	needs := unit.Strings{b.prefix + "pod.service"}
	return with(with(b.service(name, "/bin/sleep", "1000"), "Requisite", needs), "After", needs)
}

func testStopDependents(t *testing.T, b *bench) {
	p, u := b.pod(), b.app("app")
	s := b.start(p)
	if s.Active != systemd.Active || s.MainPID != 0 {
		t.Errorf("pod unit: %+v", s)
	}
	b.start(u)
	b.stop(p)
	b.eventually(u, "gone", gone)
	b.eventually(p, "gone", gone)
}

func (b *bench) shared(name string) unit.Unit {
	u := with(with(b.service(name, "/bin/true"), "Type", unit.String("oneshot")), "RemainAfterExit", unit.Bool(true))
	return with(u, "StopWhenUnneeded", unit.Bool(true))
}

func (b *bench) user(name string, of unit.Unit) unit.Unit {
	needs := unit.Strings{of.Name}
	return with(with(b.service(name, "/bin/sleep", "1000"), "Requires", needs), "After", needs)
}

func testShared(t *testing.T, b *bench) {
	shared := b.shared("shared")
	one, two := b.user("one", shared), b.user("two", shared)
	b.start(one, shared)
	first := b.state(shared)
	b.start(two, shared)
	b.stop(one)
	if s := b.state(shared); s.InvocationID != first.InvocationID || s.Active != systemd.Active {
		t.Errorf("the shared unit did not go on: %+v, was %+v", s, first)
	}
	b.stop(two)
	b.eventually(shared, "gone", gone)
}

// testSharedRace lets users of a shared unit come and go at the same time, so that
// starts meet it while it goes away.
func testSharedRace(t *testing.T, b *bench) {
	shared := b.shared("shared")
	var group sync.WaitGroup
	for i := range 6 {
		u := b.user(fmt.Sprint("user", i), shared)
		group.Go(func() {
			for range 5 {
				if _, err := b.Start(b.ctx, u, shared); err != nil {
					t.Error(err)
					return
				}
				if err := b.Stop(b.ctx, u.Name); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	b.eventually(shared, "gone", gone)
}

func testEnsure(t *testing.T, b *bench) {
	u := with(with(b.service("main", "/bin/sleep", "0.2"), "Type", unit.String("oneshot")), "RemainAfterExit", unit.Bool(true))
	var group sync.WaitGroup
	for range 5 {
		group.Go(func() {
			if err := b.Ensure(b.ctx, u); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	first := b.state(u)
	if err := b.Ensure(b.ctx, u); err != nil || b.state(u).InvocationID != first.InvocationID {
		t.Errorf("ensure started it again: %v", err)
	}
	bad := with(b.service("bad", "/bin/false"), "Type", unit.String("oneshot"))
	wantJob(t, b.Ensure(b.ctx, bad), "failed")
}

func testContext(t *testing.T, b *bench) {
	u := with(b.service("main", "/bin/sleep", "1000"), "Type", unit.String("notify")) // it never says that it is ready
	ctx, cancel := context.WithTimeout(b.ctx, 500*time.Millisecond)
	defer cancel()
	_, err := b.Start(ctx, u)
	wantErr(t, err, context.DeadlineExceeded)
	if s := b.state(u); s.Active != systemd.Activating || !s.Job {
		t.Errorf("after the context ended: %+v, want it to go on", s)
	}
	b.stop(u)
	b.eventually(u, "gone", gone)
}

func testRefused(t *testing.T, b *bench) {
	good := b.service("main", "/bin/true")
	for _, u := range []unit.Unit{
		{Name: "no type"},
		with(good, "ExecStart", unit.Commands{{Path: "/bin/sh", Args: []string{"sh", "-c", "echo $HOME"}}}),
		with(good, "KillSignal", unit.String("TERM")),
	} {
		if _, err := b.Start(b.ctx, u); err == nil {
			t.Errorf("no error for %s", u.Text())
		}
		if err := b.Ensure(b.ctx, u); err == nil {
			t.Errorf("ensure: no error for %s", u.Text())
		}
	}
	b.eventually(good, "not there", gone)
}

func testEscapedName(t *testing.T, b *bench) {
	u := b.service(unit.Escape("a-b c"), "/bin/sleep", "1000")
	b.start(u)
	if s := b.state(u); s.Active != systemd.Active {
		t.Errorf("state: %+v", s)
	}
	b.stop(u)
	b.eventually(u, "gone", gone)
}

func testSetProperties(t *testing.T, b *bench) {
	u := b.service("main", "/bin/sleep", "1000")
	b.start(u)
	if err := b.SetProperties(b.ctx, u.Name, []unit.Property{{Name: "TasksMax", Value: unit.Uint64(17)}}); err != nil {
		t.Error(err)
	}
	if err := b.SetProperties(b.ctx, u.Name, []unit.Property{{Name: "TasksMax", Value: unit.String("17")}}); err == nil {
		t.Error("no error for a wrong type")
	}
	if s := b.state(u); s.Active != systemd.Active {
		t.Errorf("state: %+v", s)
	}
}

// testBlink: what happened while the bus was away is not told, so that has to be.
func testBlink(t *testing.T, b *bench, blink func(*testing.T, Manager)) {
	events, err := b.Watch(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	u := b.service("main", "/bin/sleep", "1000")
	b.start(u)
	blink(t, b.Manager)
	for _, want := range []systemd.EventKind{systemd.Disconnected, systemd.Reconnected} {
		for seen := false; !seen; {
			select {
			case e := <-events:
				seen = e.Kind == want
				if e.Kind == systemd.Reconnected && !seen {
					t.Error("told that the bus is back, and not that it went")
				}
			case <-b.ctx.Done():
				t.Fatalf("not told: %s", want)
			}
		}
	}
	if s := b.state(u); s.Active != systemd.Active {
		t.Errorf("after that the unit is %+v", s)
	}
	b.stop(u)
}
