package engine

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"gantry/internal/network"
	"gantry/internal/pod"
	"gantry/internal/podstore"
	"gantry/internal/systemd"
	"gantry/internal/systemd/systemdtest"
	"gantry/internal/unit"
)

// TestDaemonReloadEndsNothing: in a daemon-reload PID 1 tells of every unit that it
// is removed.
func TestDaemonReloadEndsNothing(t *testing.T) {
	t.Parallel()
	w := newLiveWorld(t)
	p := w.pod()
	a := w.app(p)
	w.run(a)
	w.load()
	removed := func(reloading bool) {
		t.Helper()
		for _, name := range []string{unit.App(string(a.ID)), unit.Pod(string(p.ID))} {
			w.onUnit(t.Context(), systemd.Event{Kind: systemd.UnitRemoved, Unit: name}, reloading)
		}
	}
	w.want(p, a, true, pod.Running)
	if !w.onUnit(t.Context(), systemd.Event{Kind: systemd.Reload, Begin: true}, false) {
		t.Error("the beginning of a reload was not noticed")
	}
	removed(true)
	w.want(p, a, true, pod.Running)
	removed(false) // its beginning was lost
	w.want(p, a, true, pod.Running)

	w.stop(unit.App(string(a.ID)))
	removed(true) // what really went meanwhile
	if w.onUnit(t.Context(), systemd.Event{Kind: systemd.Reload}, true) {
		t.Error("the end of a reload was not noticed")
	}
	w.want(p, a, true, pod.Exited)
	w.stop(unit.Pod(string(p.ID)))
	removed(false)
	w.want(p, a, false, pod.Exited)
}

// TestChanged: who waits hears of a change when it can be seen, and of nothing before.
func TestChanged(t *testing.T) {
	t.Parallel()
	w := newLiveWorld(t)
	p := w.pod()
	a := w.app(p)
	w.run(a)
	w.load()
	heard := func(ch <-chan struct{}) bool {
		select {
		case <-ch:
			return true
		default:
			return false
		}
	}
	changed := w.Changed()
	w.want(p, a, true, pod.Running) // to look is no change
	if heard(changed) {
		t.Error("told of a change before there was one")
	}
	w.stop(unit.App(string(a.ID)))
	w.onUnit(t.Context(), systemd.Event{Kind: systemd.UnitRemoved, Unit: unit.App(string(a.ID))}, false)
	if !heard(changed) {
		t.Error("not told of the end of an app")
	}
	w.want(p, a, true, pod.Exited)
	changed = w.Changed()
	if err := w.store.RemoveApp(a); err != nil {
		t.Fatal(err)
	}
	if err := w.reloadApp(p.ID, a.ID, false); err != nil {
		t.Fatal(err)
	}
	if !heard(changed) {
		t.Error("not told of the removal of an app")
	}
	for _, stale := range []error{pod.ErrUnavailable, nil} {
		changed = w.Changed()
		w.setStale(stale)
		if !heard(changed) {
			t.Errorf("not told that Ready answers %v", stale)
		}
	}
}

// TestAnOlderLookReplacesNoNewerOne: what is started while the machine is looked at
// is seen, whoever looks.
func TestAnOlderLookReplacesNoNewerOne(t *testing.T) {
	t.Parallel()
	for name, look := range map[string]func(*world, *pod.Pod){
		"everything": func(w *world, _ *pod.Pod) { w.load() },
		"one pod":    func(w *world, p *pod.Pod) { w.podMoved(w.t.Context(), p.ID) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newLiveWorld(t)
			p := w.pod()
			a := w.app(p)
			w.stop(unit.Pod(string(p.ID)))
			w.load()
			started := make(chan error, 1)
			w.manager.looked = func() {
				w.start(unit.Pod(string(p.ID)))
				go func() { started <- w.reloadPod(p.ID, true) }()
				select { // as if it were quicker than the look, if it can be
				case err := <-started:
					started <- err
				case <-time.After(50 * time.Millisecond):
				}
			}
			look(w, p)
			if err := <-started; err != nil {
				t.Fatal(err)
			}
			w.want(p, a, true, pod.Prepared)
		})
	}
}

// TestAppStartedWhileAllIsLookedAt: its unit was not there yet when units were
// asked for, its record was when records were read.
func TestAppStartedWhileAllIsLookedAt(t *testing.T) {
	t.Parallel()
	w := newLiveWorld(t)
	p := w.pod()
	a := w.app(p)
	w.manager.looked = func() { w.run(a) }
	w.load()
	w.want(p, a, true, pod.Running)
}

// TestAppOfAKilledStarter: the program that started it was killed; another one
// looked before gantry-init had written the record.
func TestAppOfAKilledStarter(t *testing.T) {
	t.Parallel()
	w := newLiveWorld(t)
	p := w.pod()
	a := w.app(p)
	w.start(unit.App(string(a.ID)))
	w.load()
	w.want(p, a, true, pod.Prepared)
	w.ran(a)
	w.onUnit(t.Context(), systemd.Event{Kind: systemd.JobRemoved, Unit: unit.App(string(a.ID)), Result: "done"}, false)
	w.want(p, a, true, pod.Running)
}

// TestPodReadDuringAStart: the record of an app is there before its start is over.
func TestPodReadDuringAStart(t *testing.T) {
	t.Parallel()
	w := newLiveWorld(t)
	p := w.pod()
	a := w.app(p)
	w.load()
	w.run(a)
	w.podMoved(t.Context(), p.ID)
	w.want(p, a, true, pod.Running)
}

// TestDamagedPods: what runs is listed as it was last known, whatever becomes of its
// records. A program that never knew lists nothing, until what it would hide is down.
func TestDamagedPods(t *testing.T) {
	t.Parallel()
	w := newLiveWorld(t)
	p, damaged := w.pod(), w.pod()
	a, b := w.app(p), w.app(damaged)
	w.run(a)
	w.run(b)
	w.load()
	for _, file := range []string{podstore.PodFile, podstore.NetworkFile, "apps/" + string(b.ID) + "/" + podstore.AppFile} {
		w.damage(damaged, file)
		w.load()
		w.podMoved(t.Context(), damaged.ID)
		w.want(p, a, true, pod.Running)
		w.want(damaged, b, true, pod.Running)
	}
	again := w.restarted()
	err := again.Engine.load(t.Context())
	if !errors.Is(err, pod.ErrUnavailable) || errors.Is(err, pod.ErrInvalid) {
		t.Errorf("a pod that runs and was never read: %v", err)
	}
	units := unit.Pod(string(damaged.ID)) + " " + unit.App(string(b.ID))
	for _, word := range []string{podstore.PodFile, w.store.Pod(damaged.ID), "systemctl stop " + units, "gantry gc"} {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%v does not say %q", err, word)
		}
	}
	w.stop(unit.Pod(string(damaged.ID)))
	w.unitGone(t.Context(), unit.Pod(string(damaged.ID)))
	w.want(damaged, b, false, pod.Running)
	if err := again.Engine.load(t.Context()); !errors.Is(err, pod.ErrUnavailable) {
		t.Errorf("its app still runs: %v", err)
	}
	w.stop(unit.App(string(b.ID)))
	w.unitGone(t.Context(), unit.App(string(b.ID)))
	w.want(damaged, b, false, pod.Exited)
	again.load()
	again.want(p, a, true, pod.Running)
	if pods, err := again.Pods(Filter{}); err != nil || len(pods) != 1 {
		t.Errorf("listed: %+v, %v", pods, err)
	}
	if _, err := again.Pod(damaged.ID); !errors.Is(err, pod.ErrUnavailable) {
		t.Errorf("a damaged pod that is down: %v", err)
	}
}

// TestDamagedApp: one that is down is hidden, and its pod is not.
func TestDamagedApp(t *testing.T) {
	t.Parallel()
	w := newLiveWorld(t)
	p := w.pod()
	a, damaged := w.app(p), w.app(p)
	record := filepath.Join("apps", string(damaged.ID), podstore.AppFile)
	if err := os.Remove(filepath.Join(w.store.Pod(p.ID), record)); err != nil {
		t.Fatal(err)
	}
	w.load()
	w.want(p, a, true, pod.Prepared)
	if _, err := w.App(damaged.ID); !errors.Is(err, pod.ErrUnavailable) {
		t.Errorf("the app: %v", err)
	}
	if !w.ImageInUse("sha256:other") {
		t.Error("its image, whatever it is, may be removed")
	}
	w.run(damaged)
	if err := w.Engine.load(t.Context()); !errors.Is(err, pod.ErrUnavailable) || !strings.Contains(err.Error(), podstore.AppFile) {
		t.Errorf("it runs: %v", err)
	}
}

// damage tears a record of a pod.
func (w *world) damage(p *pod.Pod, file string) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.store.Pod(p.ID), file), []byte("{"), 0o644); err != nil {
		w.t.Fatal(err)
	}
}

// restarted is another program on the same machine, which has seen nothing yet.
func (w *world) restarted() *world {
	w.t.Helper()
	e, err := New(w.t.Context(), w.cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { e.Close() })
	e.view.live = true
	return &world{e, w.t, w.manager}
}

// TestUnreadableRecord: a pod that could not be read, for want of a descriptor say, must
// not be missing in a list.
func TestUnreadableRecord(t *testing.T) {
	t.Parallel()
	w := newLiveWorld(t)
	p := w.pod()
	a := w.app(p)
	w.load()
	record := filepath.Join(w.store.Pod(p.ID), podstore.PodFile)
	if err := errors.Join(os.Remove(record), os.Mkdir(record, 0o755)); err != nil {
		t.Fatal(err)
	}
	if err := w.Engine.load(t.Context()); !errors.Is(err, pod.ErrUnavailable) {
		t.Errorf("a pod that cannot be read: %v", err)
	}
	w.want(p, a, true, pod.Prepared)
}

// TestNoListsWithoutEvents: a view that nothing keeps true is not shown.
func TestNoListsWithoutEvents(t *testing.T) {
	t.Parallel()
	w := newLiveWorld(t)
	w.load()
	events := make(chan systemd.Event)
	close(events)
	w.follow(t.Context(), events, nil)
	if err := w.Ready(); !errors.Is(err, pod.ErrUnavailable) {
		t.Errorf("the events have ended, and the engine is ready: %v", err)
	}
}

// TestNoListsWithoutABus: while the bus is away nothing tells of what ends. A moment of
// that is borne, and when it is over all is looked at anew.
func TestNoListsWithoutABus(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newLiveWorld(t)
		p := w.pod()
		a := w.app(p)
		w.run(a)
		w.load()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		events := make(chan systemd.Event)
		go w.follow(ctx, events, nil)
		ready := func(after time.Duration, want error) {
			t.Helper()
			<-time.After(after)
			if err := w.Ready(); !errors.Is(err, want) {
				t.Errorf("%s after the bus was lost or found: %v, want %v", after, err, want)
			}
		}
		for range 2 {
			events <- systemd.Event{Kind: systemd.Disconnected}
			ready(busGrace/2, nil)
			events <- systemd.Event{Kind: systemd.Disconnected} // PID 1, and then the bus
			ready(busGrace, pod.ErrUnavailable)
			if _, err := w.App(a.ID); err != nil {
				t.Errorf("what is under way does not go on: %v", err)
			}
			events <- systemd.Event{Kind: systemd.Reconnected}
			ready(time.Millisecond, nil)
		}
		events <- systemd.Event{Kind: systemd.Disconnected} // a blink
		events <- systemd.Event{Kind: systemd.Reconnected}
		ready(2*busGrace, nil)
		events <- systemd.Event{Kind: systemd.Disconnected}
		w.stop(unit.App(string(a.ID)))
		ready(2*busGrace, pod.ErrUnavailable)
		changed := w.Changed()
		events <- systemd.Event{Kind: systemd.Overflow} // the news that it is back was lost
		<-changed
		ready(time.Millisecond, nil)
		w.want(p, a, true, pod.Exited)
		w.stop(unit.Pod(string(p.ID))) // nothing may run on
	})
}

// hooked is a PID 1 that lets something happen right after it was looked at, once.
type hooked struct {
	*systemdtest.Fake
	looked func()
}

func (h *hooked) Units(ctx context.Context, patterns ...string) ([]systemd.State, error) {
	s, err := h.Fake.Units(ctx, patterns...)
	h.happen()
	return s, err
}

func (h *hooked) State(ctx context.Context, name string) (systemd.State, error) {
	s, err := h.Fake.State(ctx, name)
	h.happen()
	return s, err
}

func (h *hooked) happen() {
	if f := h.looked; f != nil {
		h.looked = nil
		f()
	}
}

// world is a machine with pods whose records and units are made by hand.
type world struct {
	*Engine
	t       *testing.T
	manager *hooked
}

// newLiveWorld has an engine that trusts in events.
func newLiveWorld(t *testing.T) *world {
	t.Helper()
	everythingWorks := func(context.Context, systemdtest.Process) systemdtest.Exit { return systemdtest.Exit{} }
	manager := &hooked{Fake: systemdtest.New(everythingWorks)}
	t.Cleanup(func() { manager.Close() })
	w := &world{newTestEngine(t, manager), t, manager}
	w.view.live = true
	return w
}

func (w *world) load() {
	w.t.Helper()
	if err := w.Engine.load(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

// pod makes a pod that is ready.
func (w *world) pod() *pod.Pod {
	w.t.Helper()
	return w.podOf(pod.OwnerCRI)
}

func (w *world) podOf(owner pod.Owner) *pod.Pod {
	w.t.Helper()
	p := &pod.Pod{
		ID: pod.NewID(), Owner: owner, Name: "web", Isolator: "oci", Created: time.Now(),
		Namespaces: pod.Namespaces{Network: pod.NamespacePod, PID: pod.NamespaceApp, IPC: pod.NamespacePod},
	}
	p.Slice = unit.PodSlice(string(p.ID))
	lock, err := w.store.CreatePod(p, nil)
	if err == nil {
		err = lock.Unlock()
	}
	if err == nil {
		public, private := network.Result{IPs: []string{"10.0.0.2"}}.Split()
		err = w.store.WriteNetwork(p.ID, public, private)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.start(unit.Pod(string(p.ID)))
	return p
}

// app makes an app that is prepared.
func (w *world) app(p *pod.Pod) *pod.App {
	w.t.Helper()
	a := &pod.App{ID: pod.NewID(), Pod: p.ID, Name: "app", Namespaces: p.Namespaces, Created: time.Now(), Image: pod.Image{ID: "sha256:0"}}
	if err := w.store.CreateApp(a, pod.Secret{}); err != nil {
		w.t.Fatal(err)
	}
	return a
}

// run starts an app as gantry-init does.
func (w *world) run(a *pod.App) {
	w.t.Helper()
	w.start(unit.App(string(a.ID)))
	w.ran(a)
}

// ran writes the record of an app's start.
func (w *world) ran(a *pod.App) {
	w.t.Helper()
	data, err := json.Marshal(pod.Run{BootID: w.bootID, Unit: unit.App(string(a.ID)), PID: 4242, Started: time.Now()})
	if err == nil {
		err = os.WriteFile(filepath.Join(w.store.App(a.Pod, a.ID), podstore.RunFile), data, 0o644)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) start(name string) {
	w.t.Helper()
	_, err := w.manager.Start(w.t.Context(), unit.Unit{Name: name, Properties: []unit.Property{
		{Name: "Type", Value: unit.String("oneshot")},
		{Name: "RemainAfterExit", Value: unit.Bool(true)},
		{Name: "ExecStart", Value: unit.Commands{{Path: "/bin/true", Args: []string{"/bin/true"}}}},
	}})
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) stop(name string) {
	w.t.Helper()
	if err := w.manager.Stop(w.t.Context(), name); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) want(p *pod.Pod, a *pod.App, ready bool, phase pod.Phase) {
	w.t.Helper()
	s, err := w.Pod(p.ID)
	if err != nil {
		w.t.Fatal(err)
	}
	if s.Ready != ready || len(s.Apps) != 1 || s.Apps[0].ID != a.ID || s.Apps[0].Phase != phase {
		w.t.Errorf("ready is %t with apps %+v, want %t and one that is %s", s.Ready, s.Apps, ready, phase)
	}
}

// TestEndIsToldAfterTheLog: the record of an end is there before the app's last
// output is in its log. Until then the app runs on, whatever else is looked at.
func TestEndIsToldAfterTheLog(t *testing.T) {
	t.Parallel()
	w := newLiveWorld(t)
	p := w.pod()
	a := w.app(p)
	w.run(a)
	w.load()
	w.ended(a, true, pod.Exit{Code: 7, Reason: pod.ReasonError})
	w.podMoved(t.Context(), p.ID)
	w.want(p, a, true, pod.Running)
	w.load()
	w.want(p, a, true, pod.Running)
	spool := filepath.Join(w.cfg.Run, "exits", string(a.ID))
	if err := errors.Join(os.MkdirAll(filepath.Dir(spool), 0o755), os.WriteFile(spool, nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	w.onDisk(t.Context(), diskEvent{diskExit, string(a.ID)})
	w.want(p, a, true, pod.Exited)
}

// TestEndWithoutASpool: the recorder was killed in between, and the unit is gone.
func TestEndWithoutASpool(t *testing.T) {
	t.Parallel()
	w := newLiveWorld(t)
	p := w.pod()
	a := w.app(p)
	w.run(a)
	w.load()
	w.ended(a, true, pod.Exit{Code: 7, Reason: pod.ReasonError})
	w.stop(unit.App(string(a.ID)))
	w.unitGone(t.Context(), unit.App(string(a.ID)))
	w.want(p, a, true, pod.Exited)
}

// TestStartToldAfterTheEnd: the unit came and went, and nobody could record how,
// before the start's caller said that it is up.
func TestStartToldAfterTheEnd(t *testing.T) {
	t.Parallel()
	w := newLiveWorld(t)
	p := w.pod()
	a := w.app(p)
	w.load()
	w.run(a)
	w.stop(unit.App(string(a.ID)))
	w.unitGone(t.Context(), unit.App(string(a.ID)))
	if err := w.reloadApp(p.ID, a.ID, true); err != nil {
		t.Fatal(err)
	}
	w.want(p, a, true, pod.Exited)
}
