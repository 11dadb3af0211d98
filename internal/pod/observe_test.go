package pod

import (
	"testing"
	"time"
)

func TestObserve(t *testing.T) {
	t.Parallel()
	const boot, other = "boot-now", "boot-before"
	began := time.Unix(1000, 0)
	run := &Run{BootID: boot, Unit: "gantry-app-a.service", InvocationID: "i1", PID: 42, Started: began}
	before := &Run{BootID: other, InvocationID: "i0", PID: 42, Started: began}
	exit := &Exit{Code: 3, Reason: ReasonError, Finished: began.Add(time.Second)}
	loaded := UnitState{Loaded: true, Active: "active", InvocationID: "i1"}
	gone := UnitState{Active: "inactive"}

	for name, c := range map[string]struct {
		facts  AppFacts
		want   Phase
		reason string
		pid    int
	}{
		"created":                              {AppFacts{Unit: gone}, Prepared, "", 0},
		"created, unit is being started":       {AppFacts{Unit: UnitState{Loaded: true, Active: "activating"}}, Prepared, "", 0},
		"running":                              {AppFacts{Run: run, Unit: loaded}, Running, "", 42},
		"running, invocation not told":         {AppFacts{Run: run, Unit: UnitState{Loaded: true, Active: "active"}}, Running, "", 42},
		"exited, unit gone":                    {AppFacts{Run: run, Exit: exit, Unit: gone}, Exited, ReasonError, 0},
		"exited, unit runs its last commands":  {AppFacts{Run: run, Exit: exit, Unit: loaded}, Exited, ReasonError, 0},
		"exited, systemd not asked":            {AppFacts{Run: run, Exit: exit}, Exited, ReasonError, 0},
		"never ran, but failed to start":       {AppFacts{Exit: exit, Unit: gone}, Exited, ReasonError, 0},
		"ran before a reboot":                  {AppFacts{Run: before, Unit: gone}, Exited, ReasonUnknown, 0},
		"ran and exited before a reboot":       {AppFacts{Run: before, Exit: exit, Unit: gone}, Exited, ReasonError, 0},
		"unit gone without a record":           {AppFacts{Run: run, Unit: gone}, Exited, ReasonUnknown, 0},
		"another unit of the same name":        {AppFacts{Run: run, Unit: UnitState{Loaded: true, Active: "active", InvocationID: "x"}}, Exited, ReasonUnknown, 0},
		"systemd not asked: never called gone": {AppFacts{Run: run}, Unknown, "", 42},
		"systemd not asked, before a reboot":   {AppFacts{Run: before}, Exited, ReasonUnknown, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.facts.App, c.facts.BootID = &App{ID: "a"}, boot
			got := Observe(c.facts)
			if got.Phase != c.want || got.PID != c.pid {
				t.Errorf("phase %s, PID %d; want %s, %d", got.Phase, got.PID, c.want, c.pid)
			}
			if got.Phase != Exited {
				return
			}
			if got.Exit.Reason != c.reason {
				t.Errorf("reason %q, want %q", got.Exit.Reason, c.reason)
			}
			if got.Finished.IsZero() || got.Finished.Before(got.Started) {
				t.Errorf("finished at %v, started at %v", got.Finished, got.Started)
			}
		})
	}
}

func TestObserveTellsUpdatedLimits(t *testing.T) {
	t.Parallel()
	app := &App{Resources: Resources{Memory: 1}}
	if got := Observe(AppFacts{App: app}); got.Current.Memory != 1 {
		t.Errorf("limits of the app: %d", got.Current.Memory)
	}
	if got := Observe(AppFacts{App: app, Updated: &Resources{Memory: 2}}); got.Current.Memory != 2 {
		t.Errorf("limits after an update: %d", got.Current.Memory)
	}
}

func TestID(t *testing.T) {
	t.Parallel()
	seen := map[ID]bool{}
	for range 1000 {
		id := NewID()
		if _, err := ParseID(string(id)); err != nil || seen[id] {
			t.Fatalf("id %q: seen %v, %v", id, seen[id], err)
		}
		seen[id] = true
	}
	for _, bad := range []string{"", "abc", "ABCDEFGHIJKLMNOPQRSTUVWX", "abcdefghijklmnopqrstuvw1", "../abcdefghijklmnopqrstu", "abcdefghijklmnopqrstuvwxy"} {
		if _, err := ParseID(bad); err == nil {
			t.Errorf("%q is taken for an ID", bad)
		}
	}
}
