package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"gantry/internal/pod"
	"gantry/internal/systemd"
	"gantry/internal/unit"
)

// Watch loads the view and keeps it true until ctx ends: by the spool of exits,
// by systemd's signals, and by a watch on the directory of pods, which other
// programs change too. Whenever an event may have been missed all is read anew.
func (e *Engine) Watch(ctx context.Context) error {
	e.setStale(fmt.Errorf("the state is being loaded: %w", pod.ErrUnavailable))
	e.view.mu.Lock()
	e.view.live = true
	e.view.mu.Unlock()
	events, err := e.cfg.Systemd.Watch(ctx)
	if err != nil {
		return err
	}
	disk, err := e.watchDisk(ctx)
	if err != nil {
		return err
	}
	e.resync(ctx)
	go e.follow(ctx, events, disk)
	go e.sweepExecs(ctx)
	return nil
}

func (e *Engine) setStale(err error) {
	defer e.view.write()()
	e.view.stale = err
}

// resync loads until it works. Meanwhile callers get Unavailable, never a list
// that may be wrong.
func (e *Engine) resync(ctx context.Context) {
	for wait := 50 * time.Millisecond; ctx.Err() == nil; wait = min(2*wait, 2*time.Second) {
		err := e.load(ctx)
		e.setStale(err)
		e.exits.wakeAll()
		if err == nil {
			return
		}
		e.log.Warn("cannot load the state; trying again", "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

func (e *Engine) follow(ctx context.Context, events <-chan systemd.Event, disk <-chan diskEvent) {
	// Without events the view becomes wrong, sooner or later: then rather none.
	defer e.setStale(fmt.Errorf("the watch on the state has ended: %w", pod.ErrUnavailable))
	reloading := false
	for {
		select {
		case <-ctx.Done():
			return
		case ev, ok := <-events:
			if !ok {
				return
			}
			reloading = e.onUnit(ctx, ev, reloading)
		case ev, ok := <-disk:
			if !ok {
				return
			}
			e.onDisk(ctx, ev)
		}
	}
}

// onUnit returns whether PID 1 is in the middle of a daemon-reload. It says of all
// units that they are removed then, and makes them again: that is no news, and what
// really went meanwhile is found by looking at everything afterwards.
func (e *Engine) onUnit(ctx context.Context, ev systemd.Event, reloading bool) bool {
	switch ev.Kind {
	case systemd.Disconnected:
		e.busLost()
	case systemd.Reconnected, systemd.Overflow: // the signal of a reload may be among what was missed
		e.resync(ctx)
		e.busBack() // after an overflow too: that it is back may be among what was missed
		e.rewriteLimits(ctx)
		return false
	case systemd.Reload:
		if !ev.Begin {
			e.resync(ctx)
			e.rewriteLimits(ctx)
		}
		return ev.Begin
	case systemd.UnitRemoved:
		if !reloading {
			e.unitGone(ctx, ev.Unit)
		}
	case systemd.JobRemoved:
		if id, ok := unit.AppID(ev.Unit); ok {
			e.appStarted(ctx, pod.ID(id))
		}
	}
	return reloading
}

// busGrace is how long systemd may be away before the view is not shown any more: a
// restart of dbus, or of PID 1, is over by then, and no list has to fail for it.
const busGrace = 2 * time.Second

// busLost gives the bus some time to come back. A timer does, and not the reader of
// events: that one may be waiting for the bus itself.
func (e *Engine) busLost() {
	e.view.mu.Lock()
	defer e.view.mu.Unlock()
	if e.view.lost != nil {
		return
	}
	err := fmt.Errorf("the bus to systemd is away since %s: %w", time.Now().Format(time.TimeOnly), pod.ErrUnavailable)
	lost := &outage{}
	lost.grace = time.AfterFunc(busGrace, func() {
		if e.busAway(lost, err) {
			e.log.Warn("no pods are listed until it is back", "err", err)
		}
	})
	e.view.lost = lost
}

// outage is a time without the bus.
type outage struct{ grace *time.Timer }

// busAway does nothing for a loss that is over.
func (e *Engine) busAway(lost *outage, err error) bool {
	defer e.view.write()()
	if e.view.lost != lost {
		return false
	}
	e.view.away = err
	return true
}

// busBack is for a view that was made anew after the bus came back.
func (e *Engine) busBack() {
	defer e.view.write()()
	if e.view.lost != nil {
		e.view.lost.grace.Stop()
	}
	e.view.lost, e.view.away = nil, nil
}

func (e *Engine) unitGone(ctx context.Context, name string) {
	if id, ok := unit.AppID(name); ok {
		e.appGone(ctx, pod.ID(id))
		return
	}
	if id, ok := unit.PodID(name); ok {
		e.podMoved(ctx, pod.ID(id))
	}
}

// appGone is for an app whose unit ended. The signal alone does not prove that: the
// beginning of a daemon-reload may have been missed. If another unit is still
// recording how, the app is not called ended before that: the spool will tell.
func (e *Engine) appGone(ctx context.Context, id pod.ID) {
	own, exit := unit.App(string(id)), unit.Exit(string(id))
	there, recording := false, false
	e.appChanged(id, func() bool {
		units, err := e.cfg.Systemd.Units(ctx, own, exit)
		for _, s := range units {
			there = there || s.Name == own && s.Loaded()
			recording = recording || s.Name == exit && (s.Running() || s.Job)
		}
		return err != nil || there || recording // when the bus is back all is looked at again
	})
	if !recording {
		return
	}
	go func() {
		select {
		case <-ctx.Done():
		case <-time.After(recordTime):
			e.appChanged(id, gone)
		}
	}()
}

// recordTime bounds how long an end may take to be recorded.
const recordTime = time.Minute

// appStarted is for an app that was being started when the view was loaded, by a
// program that was killed: nothing else tells of its record. One whose unit may be started
// again has another process then.
func (e *Engine) appStarted(ctx context.Context, id pod.ID) {
	e.view.mu.RLock()
	t, ok := e.view.entries[e.view.owner[id]]
	waiting := ok && t.apps[id] != nil && t.apps[id].unit.Loaded && (t.apps[id].Run == nil || t.apps[id].Run.InvocationID == "")
	e.view.mu.RUnlock()
	if !waiting {
		return
	}
	e.appChanged(id, func() bool {
		s, err := e.cfg.Systemd.State(ctx, unit.App(string(id)))
		return err != nil || s.Loaded()
	})
}

// appChanged reads an app again and wakes who waits for its end. running tells
// whether it has a unit.
func (e *Engine) appChanged(id pod.ID, running func() bool) {
	e.view.change.Lock()
	up := running()
	e.view.mu.RLock()
	p, ok := e.view.owner[id]
	e.view.mu.RUnlock()
	if ok {
		if err := e.reloadAppLocked(p, id, up); err != nil {
			e.log.Error("cannot read an app that changed", "app", id, "err", err)
		}
	}
	e.view.change.Unlock()
	e.exits.wake(id)
}

func gone() bool { return false }

// ending: the unit is loaded for a moment more; the exit record counts.
func ending() bool { return true }

func (e *Engine) onDisk(ctx context.Context, ev diskEvent) {
	switch ev.kind {
	case diskOverflow:
		e.resync(ctx)
	case diskExit:
		e.appChanged(pod.ID(ev.name), ending)
	case diskPod:
		e.podMoved(ctx, pod.ID(ev.name))
	}
}

// podMoved is for pods that came or went, or whose unit did; those that we made or
// removed ourselves are known already.
func (e *Engine) podMoved(ctx context.Context, id pod.ID) {
	if _, err := pod.ParseID(string(id)); err != nil {
		return
	}
	if err := e.reloadPodAsIs(ctx, id); err != nil {
		e.log.Error("cannot read a pod that changed", "pod", id, "err", err)
	}
}

type diskEvent struct {
	kind diskEventKind
	name string
}

type diskEventKind int

const (
	diskExit diskEventKind = iota
	diskPod
	diskOverflow
)

// watchDisk watches the spool of exits and the directory of pods.
func (e *Engine) watchDisk(ctx context.Context) (<-chan diskEvent, error) {
	exits := filepath.Join(e.cfg.Run, "exits")
	w, err := newInotify(map[string]diskEventKind{exits: diskExit, e.store.Pods(): diskPod})
	if err != nil {
		return nil, err
	}
	out := make(chan diskEvent, 256)
	go func() {
		<-ctx.Done()
		w.file.Close()
	}()
	go func() {
		defer close(out)
		if err := w.read(func(ev diskEvent) { out <- ev }); err != nil && ctx.Err() == nil {
			e.log.Error("watch on the state directory ended", "err", err)
		}
	}()
	return out, nil
}

type inotify struct {
	file  *os.File
	kinds map[int32]diskEventKind
}

func newInotify(dirs map[string]diskEventKind) (*inotify, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch directories: %w", err)
	}
	w := &inotify{os.NewFile(uintptr(fd), "inotify"), map[int32]diskEventKind{}}
	for dir, kind := range dirs {
		wd, err := unix.InotifyAddWatch(fd, dir, unix.IN_MOVED_TO|unix.IN_MOVED_FROM|unix.IN_ONLYDIR)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("watch %s: %w", dir, err), w.file.Close())
		}
		w.kinds[int32(wd)] = kind
	}
	return w, nil
}

// read passes events on until the file is closed.
func (w *inotify) read(to func(diskEvent)) error {
	buf := make([]byte, 16<<10)
	for {
		n, err := w.file.Read(buf)
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		w.parse(buf[:n], to)
	}
}

func (w *inotify) parse(b []byte, to func(diskEvent)) {
	for len(b) >= unix.SizeofInotifyEvent {
		ev := (*unix.InotifyEvent)(unsafe.Pointer(&b[0]))
		name := b[unix.SizeofInotifyEvent : unix.SizeofInotifyEvent+ev.Len]
		b = b[unix.SizeofInotifyEvent+ev.Len:]
		if ev.Mask&unix.IN_Q_OVERFLOW != 0 {
			to(diskEvent{kind: diskOverflow})
			continue
		}
		to(diskEvent{w.kinds[ev.Wd], unix.ByteSliceToString(name)})
	}
}

// exitWatch lets callers wait for the end of an app. In a program that does not
// Watch it watches the spool by itself, from the first wait on.
type exitWatch struct {
	mu      sync.Mutex
	waiters map[pod.ID][]chan struct{}
	own     *inotify
}

// subscribe returns a channel that gets a token when something happened to the
// app, and the function that ends that.
func (x *exitWatch) subscribe(id pod.ID) (<-chan struct{}, func()) {
	c := make(chan struct{}, 1)
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.waiters == nil {
		x.waiters = map[pod.ID][]chan struct{}{}
	}
	x.waiters[id] = append(x.waiters[id], c)
	return c, func() { x.unsubscribe(id, c) }
}

func (x *exitWatch) unsubscribe(id pod.ID, c chan struct{}) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.waiters[id] = slices.DeleteFunc(x.waiters[id], func(have chan struct{}) bool { return have == c })
	if len(x.waiters[id]) == 0 {
		delete(x.waiters, id)
	}
}

func (x *exitWatch) wake(id pod.ID) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, c := range x.waiters[id] {
		poke(c)
	}
}

func (x *exitWatch) wakeAll() {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, list := range x.waiters {
		for _, c := range list {
			poke(c)
		}
	}
}

// poke leaves a token; one that is there already says as much.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// start watches the spool for a program that does not Watch.
func (x *exitWatch) start(dir string) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.own != nil {
		return nil
	}
	w, err := newInotify(map[string]diskEventKind{dir: diskExit})
	if err != nil {
		return err
	}
	x.own = w
	go func() {
		// It ends with close; an event that is lost before costs a second look.
		_ = w.read(func(ev diskEvent) {
			if ev.kind == diskOverflow {
				x.wakeAll()
				return
			}
			x.wake(pod.ID(ev.name))
		})
	}()
	return nil
}

func (x *exitWatch) close() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.own != nil {
		x.own.file.Close()
	}
}

// lookAgain bounds how long a waiter trusts in events alone.
const lookAgain = 2 * time.Second

// WaitApp waits until an app has exited and returns how. For one that was never
// started and cannot be any more it returns pod.ErrState.
func (e *Engine) WaitApp(ctx context.Context, id pod.ID) (pod.AppStatus, error) {
	if !e.isLive() {
		if err := e.exits.start(filepath.Join(e.cfg.Run, "exits")); err != nil {
			return pod.AppStatus{}, err
		}
	}
	event, unsubscribe := e.exits.subscribe(id)
	defer unsubscribe()
	for {
		s, err := e.App(id)
		if err != nil && !errors.Is(err, pod.ErrUnavailable) {
			return pod.AppStatus{}, err
		}
		if err == nil && s.Phase == pod.Exited {
			return s, nil
		}
		if err == nil && e.neverStarts(s) {
			return s, fmt.Errorf("wait for app %s: it was never started, and its pod is down: %w", id, pod.ErrState)
		}
		select {
		case <-event:
		case <-time.After(lookAgain):
		case <-ctx.Done():
			return s, fmt.Errorf("wait for app %s: %w", id, ctx.Err())
		}
	}
}

func (e *Engine) neverStarts(s pod.AppStatus) bool {
	if s.Phase != pod.Prepared {
		return false
	}
	p, err := e.Pod(s.Pod)
	return err == nil && s.NeverStarts(p.Ready)
}
