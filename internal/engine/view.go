package engine

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"time"

	"gantry/internal/disk"
	"gantry/internal/network"
	"gantry/internal/pod"
	"gantry/internal/podstore"
	"gantry/internal/systemd"
	"gantry/internal/unit"
)

// view is what the engine knows of pods: the records on disk and what systemd
// says. A one-shot program loads it for each question; a program that calls Watch
// keeps it true by events, so that lists need neither disk nor D-Bus.
type view struct {
	// change is held from before the machine is looked at until entries say what was
	// seen, so that an older look never replaces a newer one. It comes before mu.
	change sync.Mutex
	mu     sync.RWMutex
	live   bool  // kept true by Watch
	stale  error // why the view is not complete right now
	// away is why it may be wrong: systemd has not been heard for longer than busGrace,
	// which lost waits for; nil if the bus is there.
	away    error
	lost    *outage
	entries map[pod.ID]*entry
	owner   map[pod.ID]pod.ID // app -> pod
	// unread are pods whose records are damaged, and why: they, or apps of them, are in
	// no list, but they are not gone either.
	unread map[pod.ID]error
	// making are pods that this program makes, and by which call: they are on disk, and not yet
	// what they will be.
	making map[pod.ID]string
	// changed is closed when something of the above changes; nil if nobody waits.
	changed chan struct{}
}

// write locks the view for a change, which those who wait hear of when it is done.
func (v *view) write() (done func()) {
	v.mu.Lock()
	return func() {
		if v.changed != nil {
			close(v.changed)
			v.changed = nil
		}
		v.mu.Unlock()
	}
}

// Changed is closed when, after the call, a pod or an app of a watched machine or what
// Ready answers has changed, or may have. Who asks first and looks then misses nothing.
func (e *Engine) Changed() <-chan struct{} {
	e.view.mu.Lock()
	defer e.view.mu.Unlock()
	if e.view.changed == nil {
		e.view.changed = make(chan struct{})
	}
	return e.view.changed
}

// entry is one pod.
type entry struct {
	pod  *pod.Pod
	up   bool // its unit is active
	ips  []string
	net  bool // the network record is there
	apps map[pod.ID]*appEntry
	// hidden is why an app that is down is not among them.
	hidden error
}

type appEntry struct {
	podstore.Record
	unit pod.UnitState
}

// ready: a pod without its network record was never finished, or is being
// stopped.
func (t *entry) ready() bool { return t.up && (t.net || t.pod.HostNetwork()) }

func (t *entry) status(bootID string) pod.PodStatus {
	s := pod.PodStatus{Pod: t.pod, Ready: t.ready(), IPs: t.ips}
	for _, a := range t.apps {
		s.Apps = append(s.Apps, a.observe(bootID))
	}
	sort.Slice(s.Apps, func(i, j int) bool { return s.Apps[i].Created.Before(s.Apps[j].Created) })
	return s
}

// statusLocked is a pod as it is seen now.
func (e *Engine) statusLocked(t *entry) pod.PodStatus {
	s := t.status(e.bootID)
	if call, ok := e.view.making[t.pod.ID]; ok {
		s.Making = e.joins.wanted(call)
	}
	return s
}

// setMaking notes that a pod is being made by a call, "" no more.
func (e *Engine) setMaking(id pod.ID, call string) {
	defer e.view.write()()
	if call == "" {
		delete(e.view.making, id)
		return
	}
	if e.view.making == nil {
		e.view.making = map[pod.ID]string{}
	}
	e.view.making[id] = call
}

func (a *appEntry) observe(bootID string) pod.AppStatus {
	return pod.Observe(pod.AppFacts{
		App: a.App, Run: a.Run, Exit: a.Exit, Updated: a.Updated, Unit: a.unit, BootID: bootID,
	})
}

// Ready returns nil when the view is complete, and what keeps it true is heard. What is
// under way already goes on without the latter: a call waits for the bus by itself.
func (e *Engine) Ready() error {
	e.view.mu.RLock()
	defer e.view.mu.RUnlock()
	if e.view.stale != nil {
		return e.view.stale
	}
	return e.view.away
}

// Pods lists pods with their apps, oldest first.
func (e *Engine) Pods(f Filter) ([]pod.PodStatus, error) {
	if err := e.look(); err != nil {
		return nil, err
	}
	if f.Owner != pod.OwnerCRI {
		if err := e.readForeign(); err != nil {
			return nil, err
		}
	}
	e.view.mu.RLock()
	defer e.view.mu.RUnlock()
	var out []pod.PodStatus
	for _, t := range e.view.entries {
		if f.matches(t.pod) {
			out = append(out, e.statusLocked(t))
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Created.Before(out[j].Created) })
	return out, nil
}

func (f Filter) matches(p *pod.Pod) bool {
	if f.Owner != "" && p.Owner != f.Owner || f.ID != "" && p.ID != f.ID {
		return false
	}
	for k, v := range f.Labels {
		if have, ok := p.Labels[k]; !ok || have != v {
			return false
		}
	}
	return true
}

// Pod returns one pod.
func (e *Engine) Pod(id pod.ID) (pod.PodStatus, error) {
	if err := e.look(); err != nil {
		return pod.PodStatus{}, err
	}
	e.view.mu.RLock()
	defer e.view.mu.RUnlock()
	if t, ok := e.view.entries[id]; ok {
		return e.statusLocked(t), nil
	}
	if err := e.view.unread[id]; err != nil {
		return pod.PodStatus{}, fmt.Errorf("pod %s is there, but: %w: %w", id, pod.ErrUnavailable, unkind(err))
	}
	return pod.PodStatus{}, fmt.Errorf("pod %s: %w", id, pod.ErrNotFound)
}

// unkind keeps the text of an error only: what is wrong with a record is no fault
// of the request.
func unkind(err error) error { return errors.New(err.Error()) }

// App returns one app.
func (e *Engine) App(id pod.ID) (pod.AppStatus, error) {
	if err := e.look(); err != nil {
		return pod.AppStatus{}, err
	}
	e.view.mu.RLock()
	defer e.view.mu.RUnlock()
	t, ok := e.view.entries[e.view.owner[id]]
	if !ok && e.inUnread(id) {
		return pod.AppStatus{}, fmt.Errorf("app %s: the records of its pod cannot be read: %w", id, pod.ErrUnavailable)
	}
	if !ok || t.apps[id] == nil {
		return pod.AppStatus{}, fmt.Errorf("app %s: %w", id, pod.ErrNotFound)
	}
	return t.apps[id].observe(e.bootID), nil
}

// inUnread tells whether an app is in a pod that cannot be read.
func (e *Engine) inUnread(app pod.ID) bool {
	for id := range e.view.unread {
		if disk.Exists(e.store.App(id, app)) {
			return true
		}
	}
	return false
}

// lookTime bounds the loading of the view for one question.
const lookTime = 30 * time.Second

// look makes sure that the view may be read.
func (e *Engine) look() error {
	e.view.mu.RLock()
	live, stale := e.view.live, e.view.stale
	e.view.mu.RUnlock()
	if live {
		return stale
	}
	ctx, cancel := context.WithTimeout(e.life, lookTime)
	defer cancel()
	return e.load(ctx)
}

// load reads everything anew: all records, and all our units in one call. Units
// are asked for first: an app whose unit is gone by then has its exit record.
func (e *Engine) load(ctx context.Context) error {
	e.view.change.Lock()
	defer e.view.change.Unlock()
	units, err := e.units(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", pod.ErrUnavailable, err)
	}
	ids, err := e.store.IDs()
	if err != nil {
		return err
	}
	entries, owner, unread := map[pod.ID]*entry{}, map[pod.ID]pod.ID{}, map[pod.ID]error{}
	for _, id := range ids {
		t, err := e.loadPod(id, units, e.lastKnown(id))
		if errors.Is(err, pod.ErrNotFound) {
			continue // removed while we looked
		}
		if errors.Is(err, pod.ErrInvalid) {
			unread[id] = err
			if err = e.mayHide(id, units, err); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			// No descriptor left, say: a list without this pod would make kubelet start
			// it a second time, and gc take what it has.
			return fmt.Errorf("%w: %w", pod.ErrUnavailable, err)
		}
		entries[id] = t
		if t.hidden != nil {
			unread[id] = t.hidden
		}
		for app := range t.apps {
			owner[app] = id
		}
	}
	if err := e.lookTwice(ctx, entries); err != nil {
		return fmt.Errorf("%w: %w", pod.ErrUnavailable, err)
	}
	defer e.view.write()()
	e.view.entries, e.view.owner, e.view.unread = entries, owner, unread
	return nil
}

// lookTwice is for apps that ran, have not ended and have no unit: they may have
// been started after the units were asked for.
func (e *Engine) lookTwice(ctx context.Context, entries map[pod.ID]*entry) error {
	var units map[string]systemd.State
	for id, t := range entries {
		for app, a := range t.apps {
			if a.Run == nil || a.Exit != nil || a.unit.Loaded || a.Run.BootID != e.bootID {
				continue
			}
			if units == nil {
				var err error
				if units, err = e.units(ctx); err != nil {
					return err
				}
			}
			rec, err := e.readApp(id, app, a)
			switch {
			case errors.Is(err, pod.ErrNotFound):
				delete(t.apps, app) // removed while we looked
			case err != nil:
				return err
			default:
				t.apps[app] = e.settled(&appEntry{rec, unitState(appUnit(units, app))})
			}
		}
	}
	return nil
}

func (e *Engine) units(ctx context.Context) (map[string]systemd.State, error) {
	list, err := e.cfg.Systemd.Units(ctx, "gantry-app-*", "gantry-pod-*", "gantry-exit@*")
	if err != nil {
		return nil, err
	}
	out := map[string]systemd.State{}
	for _, s := range list {
		out[s.Name] = s
	}
	return out, nil
}

// loadPod reads one pod. A record that is damaged is replaced by the last one that was
// read, if old has it.
func (e *Engine) loadPod(id pod.ID, units map[string]systemd.State, old *entry) (*entry, error) {
	t := &entry{up: podUp(units[unit.Pod(string(id))]), apps: map[pod.ID]*appEntry{}}
	if old == nil {
		old = &entry{}
	}
	var err error
	if t.pod, err = e.store.ReadPod(id); errors.Is(err, pod.ErrInvalid) && old.pod != nil {
		e.toldDamaged(id, err)
		t.pod, err = old.pod, nil
	}
	if err != nil {
		return nil, err
	}
	var res network.Result
	if t.net, err = e.store.ReadNetwork(id, &res); errors.Is(err, pod.ErrInvalid) && old.pod != nil {
		e.toldDamaged(id, err)
		t.net, res.IPs, err = old.net, old.ips, nil
	}
	if err != nil {
		return nil, err
	}
	t.ips = res.IPs
	apps, err := e.store.AppIDs(id)
	if err != nil {
		return nil, err
	}
	for _, app := range apps {
		if err := e.loadApp(t, app, appUnit(units, app), old.apps[app]); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// loadApp reads one app of a pod. One that is damaged, and down, is hidden.
func (e *Engine) loadApp(t *entry, app pod.ID, u systemd.State, old *appEntry) error {
	rec, err := e.readApp(t.pod.ID, app, old)
	switch {
	case errors.Is(err, pod.ErrNotFound):
		return nil
	case errors.Is(err, pod.ErrInvalid) && !u.Loaded():
		e.log.Error("an app whose records are damaged is hidden", "pod", t.pod.ID, "app", app, "err", err)
		t.hidden = err
		return nil
	case err != nil:
		return err
	}
	t.apps[app] = e.settled(&appEntry{rec, unitState(u)})
	return nil
}

// settled hides the end of an app whose last output may not be in its log yet: who
// hears of an end reads the log. The recorder puts a file into the spool after that,
// and the unit stays until then.
func (e *Engine) settled(a *appEntry) *appEntry {
	if a.Run == nil || a.Exit == nil || !a.unit.Loaded || a.unit.Active == systemd.Inactive || a.unit.Active == systemd.Failed {
		return a
	}
	if !disk.Exists(filepath.Join(e.cfg.Run, "exits", string(a.App.ID))) {
		a.Exit = nil
	}
	return a
}

// podUp tells whether a pod's unit is there to stay: one that is active and has a job is
// being stopped, if only when an app that cannot die is given up.
func podUp(s systemd.State) bool { return s.Running() && (s.Active != systemd.Active || !s.Job) }

// appUnit is an app's unit, or the one that records its end in its place.
func appUnit(units map[string]systemd.State, app pod.ID) systemd.State {
	own, other := units[unit.App(string(app))], units[unit.Exit(string(app))]
	if !own.Loaded() && (other.Running() || other.Job) {
		return other
	}
	return own
}

// unitState translates; a unit that was not listed is not loaded. An exited unit
// that still runs its last commands has no main process but stays loaded, and its
// exit record, once there, is believed first.
func unitState(s systemd.State) pod.UnitState {
	if !s.Loaded() {
		return pod.UnitState{Active: systemd.Inactive}
	}
	return pod.UnitState{Loaded: true, Active: s.Active, InvocationID: strings.ReplaceAll(s.InvocationID, "-", ""), MainPID: s.MainPID}
}

// reloadPod reads one pod again, after it changed. For a view that is not live it
// does nothing: the next question loads.
func (e *Engine) reloadPod(id pod.ID, up bool) error {
	if !e.isLive() {
		return nil
	}
	e.view.change.Lock()
	defer e.view.change.Unlock()
	return e.reloadPodLocked(id, up)
}

func (e *Engine) reloadPodLocked(id pod.ID, up bool) error {
	defer e.view.write()()
	old := e.view.entries[id]
	t, err := e.loadPod(id, map[string]systemd.State{}, old)
	if errors.Is(err, pod.ErrNotFound) {
		e.dropLocked(id)
		delete(e.view.unread, id)
		return nil
	}
	if err != nil {
		return err
	}
	delete(e.view.unread, id)
	if t.hidden != nil {
		e.view.unread[id] = t.hidden
	}
	t.up = up
	for app, a := range t.apps {
		if old != nil && old.apps[app] != nil {
			a.unit = old.apps[app].unit
			if a.Run != nil && old.apps[app].Run == nil {
				a.unit = pod.UnitState{Loaded: true, Active: systemd.Active} // it is being started
			}
			e.settled(a)
		}
		e.view.owner[app] = id
	}
	e.view.entries[id] = t
	return nil
}

// reloadPodAsIs reads one pod again, after something was done to it that may have
// stopped half-way.
func (e *Engine) reloadPodAsIs(ctx context.Context, id pod.ID) error {
	if !e.isLive() {
		return nil
	}
	e.view.change.Lock()
	defer e.view.change.Unlock()
	if !disk.Exists(e.store.Pod(id)) {
		return e.reloadPodLocked(id, false)
	}
	s, err := e.briefState(context.WithoutCancel(ctx), unit.Pod(string(id)))
	if err != nil {
		return err
	}
	return e.reloadPodLocked(id, podUp(s))
}

// briefState is what systemd says of a unit in one answer, without the properties
// that each take another.
func (e *Engine) briefState(ctx context.Context, name string) (systemd.State, error) {
	units, err := e.cfg.Systemd.Units(ctx, name)
	if err != nil {
		return systemd.State{}, err
	}
	for _, s := range units {
		if s.Name == name {
			return s, nil
		}
	}
	return systemd.State{Name: name, Load: systemd.NotFound}, nil
}

// stopUnit stops a unit that systemd has. To be told to stop one that it has not
// makes systemd look for a file of that name, and tell all who watch it of that. hangs
// tells whether there is nothing to wait for.
func (e *Engine) stopUnit(ctx context.Context, name string, hangs func() bool) error {
	s, err := e.briefState(ctx, name)
	if err != nil || !s.Loaded() {
		return err
	}
	return e.stopUnless(ctx, name, hangs)
}

// stopAppUnits ends an app's unit and then what its failure started: that records
// the end, takes a moment longer, and would look for an app that is no more.
func (e *Engine) stopAppUnits(ctx context.Context, a *pod.App) error {
	hangs := func() bool { return e.appHangs(a) }
	for _, name := range []string{unit.App(string(a.ID)), unit.Exit(string(a.ID))} {
		if err := e.stopUnit(ctx, name, hangs); err != nil {
			return err
		}
	}
	return nil
}

func (e *Engine) isLive() bool {
	e.view.mu.RLock()
	defer e.view.mu.RUnlock()
	return e.view.live
}

func (e *Engine) dropLocked(id pod.ID) {
	if t := e.view.entries[id]; t != nil {
		for app := range t.apps {
			delete(e.view.owner, app)
			e.peaks.forget(app)
		}
	}
	delete(e.view.entries, id)
}

// reloadApp reads one app again; running tells whether systemd has its unit.
func (e *Engine) reloadApp(p, id pod.ID, running bool) error {
	if !e.isLive() {
		return nil
	}
	e.view.change.Lock()
	defer e.view.change.Unlock()
	return e.reloadAppLocked(p, id, running)
}

func (e *Engine) reloadAppLocked(p, id pod.ID, running bool) error {
	defer e.view.write()()
	t := e.view.entries[p]
	if t == nil {
		return nil
	}
	old := t.apps[id]
	rec, err := e.readApp(p, id, old)
	if errors.Is(err, pod.ErrNotFound) {
		delete(t.apps, id)
		delete(e.view.owner, id)
		e.peaks.forget(id)
		return nil
	}
	if err != nil {
		return err
	}
	a := &appEntry{rec, pod.UnitState{Active: systemd.Inactive}}
	// An app runs once: where its unit was seen to be gone, a start that tells late
	// that it went well does not bring it back.
	if over := old != nil && old.Run != nil && !old.unit.Loaded; running && !over {
		a.unit = pod.UnitState{Loaded: true, Active: systemd.Active}
	}
	t.apps[id] = e.settled(a)
	e.view.owner[id] = p
	return nil
}
