package engine

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gantry/internal/pod"
	"gantry/internal/podstore"
	"gantry/internal/systemd"
	"gantry/internal/systemd/systemdtest"
	"gantry/internal/unit"
)

// TestTargetOfAnotherPod: an app joins the processes of its own pod only.
func TestTargetOfAnotherPod(t *testing.T) {
	t.Parallel()
	w := newLiveWorld(t)
	mine, other := w.pod(), w.pod()
	target := w.app(other)
	w.run(target)
	w.load()
	a := &pod.App{Namespaces: pod.Namespaces{PID: pod.NamespaceTarget, Target: target.ID}}
	if _, err := w.joinedPIDs(t.Context(), mine, a); !errors.Is(err, pod.ErrInvalid) {
		t.Errorf("joins the processes of another pod: %v", err)
	}
	if got, err := w.joinedPIDs(t.Context(), other, a); err != nil || got.target != 4242 {
		t.Errorf("joins an app of its pod: %+v, %v", got, err)
	}
}

// newStarting is the start of a prepared app, in a world of its own.
func newStarting(t *testing.T) (*world, *starting) {
	t.Helper()
	w := newLiveWorld(t)
	p := w.pod()
	a := w.app(p)
	w.load()
	s, err := w.App(a.ID)
	if err != nil {
		t.Fatal(err)
	}
	return w, &starting{e: w.Engine, p: p, a: s, unit: unit.Unit{Name: unit.App(string(a.ID))}}
}

// launching is a PID 1 whose jobs fail after something has happened.
type launching struct {
	*systemdtest.Fake
	launched func()
}

func (l *launching) Launch(_ context.Context, u unit.Unit, _ ...unit.Unit) error {
	l.launched()
	return &systemd.JobError{Unit: u.Name, Result: systemd.Failed}
}

// TestStartOfAnAppThatEnded: the bus was away when the job was done, and all that
// can be seen is a unit that failed. Whether the app ran is in its record.
func TestStartOfAnAppThatEnded(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		ran  bool
		exit pod.Exit
		want string
	}{
		"ran and failed": {true, pod.Exit{Code: 33, Reason: pod.ReasonError}, ""},
		"was killed":     {true, pod.Exit{Code: 137, Reason: pod.ReasonError, Message: "not running"}, ""},
		"never ran":      {false, pod.Exit{Code: 128, Reason: pod.ReasonStartError, Message: "no such file"}, "StartError: no such file"},
		"did not start":  {true, pod.Exit{Code: 128, Reason: pod.ReasonStartError, Message: "no such file"}, "StartError: no such file"},
		"no memory":      {false, pod.Exit{Code: 137, Reason: pod.ReasonOOMKilled, Message: "too small"}, "OOMKilled: too small"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, st := newStarting(t)
			w.cfg.Systemd = &launching{w.manager.Fake, func() { w.ended(st.a.App, c.ran, c.exit) }}
			if err := st.startUnit(t.Context()); err == nil && c.want != "" || err != nil && err.Error() != c.want {
				t.Errorf("start: %v, want %q", err, c.want)
			}
		})
	}
}

// existing is a PID 1 that has the unit already, of a start by a killed program.
type existing struct {
	*systemdtest.Fake
	states []systemd.State
}

func (x *existing) Launch(context.Context, unit.Unit, ...unit.Unit) error {
	return systemd.ErrUnitExists
}

func (x *existing) State(context.Context, string) (systemd.State, error) {
	s := x.states[0]
	x.states = x.states[1:]
	return s, nil
}

// TestStartIsJoined: a start that is asked for again while PID 1 is at it waits for
// its end, and does not stop the app.
func TestStartIsJoined(t *testing.T) {
	t.Parallel()
	at := systemd.State{Load: systemd.Loaded, Active: systemd.Activating, Job: true}
	none := systemd.State{Load: systemd.NotFound, Active: systemd.Inactive}
	for name, c := range map[string]struct {
		last systemd.State
		ran  bool
		exit *pod.Exit
		want string
	}{
		"runs":     {systemd.State{Load: systemd.Loaded, Active: systemd.Active}, true, nil, ""},
		"ended":    {none, true, &pod.Exit{Code: 3, Reason: pod.ReasonError}, ""},
		"failed":   {none, false, &pod.Exit{Code: 128, Reason: pod.ReasonStartError, Message: "no such file"}, "StartError: no such file"},
		"vanished": {none, false, nil, "failed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, st := newStarting(t)
			if c.exit != nil {
				w.ended(st.a.App, c.ran, *c.exit)
			}
			w.cfg.Systemd = &existing{w.manager.Fake, []systemd.State{at, at, c.last}}
			err := st.startUnit(t.Context())
			if err == nil && c.want != "" || err != nil && (c.want == "" || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("start: %v, want %q", err, c.want)
			}
		})
	}
}

// ended writes an app's records as gantry-init does.
func (w *world) ended(a *pod.App, ran bool, e pod.Exit) {
	w.t.Helper()
	if ran {
		w.ran(a)
	}
	data, err := json.Marshal(e)
	if err == nil {
		err = os.WriteFile(filepath.Join(w.store.App(a.Pod, a.ID), podstore.ExitFile), data, 0o644)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}
