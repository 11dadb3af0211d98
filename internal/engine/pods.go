package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"gantry/internal/disk"
	"gantry/internal/isolator"
	"gantry/internal/namespace"
	"gantry/internal/network"
	"gantry/internal/pod"
	"gantry/internal/podstore/writer"
	"gantry/internal/systemd"
	"gantry/internal/unit"
)

// CreatePod makes a pod and returns it ready. The same pod asked for again joins
// the call under way, or returns the pod that is there.
func (e *Engine) CreatePod(ctx context.Context, p pod.Pod) (*pod.Pod, error) {
	key := creationOf(&p)
	id, err := e.joins.do(ctx, key, func(ctx context.Context) (pod.ID, error) {
		ctx, cancel := context.WithTimeout(ctx, opTime)
		defer cancel()
		return e.createPod(ctx, p)
	})
	if err != nil {
		return nil, err
	}
	s, err := e.Pod(id)
	return s.Pod, err
}

// creationOf names the call that makes a pod.
func creationOf(p *pod.Pod) string {
	return fmt.Sprintf("create pod %s/%s/%s/%s#%d", p.Owner, p.Namespace, p.Name, p.UID, p.Attempt)
}

func (e *Engine) createPod(ctx context.Context, p pod.Pod) (pod.ID, error) {
	began := time.Now()
	if id, ok, err := e.settleTwin(ctx, &p); err != nil || ok {
		return id, err
	}
	iso, err := e.choose(&p)
	if err != nil {
		return "", err
	}
	p.ID, p.Isolator = e.newPodID(), iso.Name()
	p.Created = e.podCreated(&p)
	e.shareHost(&p, &p.Namespaces)
	if p.Slice, err = sliceOf(&p); err != nil {
		return "", err
	}
	var plan isolator.Plan
	if !p.HostNetwork() { // where it does, nothing is mapped
		err = pod.CheckPorts(p.Ports)
	}
	if err == nil {
		plan, err = iso.Sandbox(isolator.Sandbox{Pod: &p, Dir: e.dirs(p.ID, ""), Unlimited: e.unlimited(&p)})
	}
	if err != nil {
		return "", fmt.Errorf("create pod %s: %w (after %s)", p.Name, err, round(time.Since(began)))
	}
	// It is on disk long before it is ready, and those who list pods must not take it for one
	// that has failed. Where nobody waits for it any more they may, and end it.
	e.setMaking(p.ID, creationOf(&p))
	defer e.setMaking(p.ID, "")
	m := &making{e: e, p: &p, plan: plan}
	if err := e.run(ctx, m.operation()); err != nil {
		return "", err
	}
	// The end of a unit takes the namespaces away before it is signalled: either they
	// are gone by now, or the signal is still to come.
	whole := disk.Exists(e.runDir(p.ID))
	if !whole {
		err = fmt.Errorf("create pod %s: its unit was stopped meanwhile: %w", p.Name, pod.ErrUnavailable)
	}
	return p.ID, also(err, e.reloadPod(p.ID, whole), m.lock.Unlock())
}

// unlimited looks at the slice that the pod was given. One of ours, which is not there
// yet, gets the limits that the pod has.
func (e *Engine) unlimited(p *pod.Pod) isolator.Unlimited {
	none := func(file string) bool {
		data, err := os.ReadFile(filepath.Join(e.cfg.Cgroups, unit.CgroupOf(p.Slice), file))
		return err == nil && bytes.HasPrefix(data, []byte("max"))
	}
	if p.CgroupParent == "" {
		return isolator.Unlimited{}
	}
	return isolator.Unlimited{Memory: none("memory.max"), CPU: none("cpu.max")}
}

// podCreated is now, or later: kubelet takes the pod that was created last for the one
// that counts, and clocks are set back.
func (e *Engine) podCreated(p *pod.Pod) time.Time {
	e.view.mu.RLock()
	defer e.view.mu.RUnlock()
	var same []time.Time
	for _, t := range e.view.entries {
		if q := t.pod; q.Owner == p.Owner && q.Name == p.Name && q.Namespace == p.Namespace {
			same = append(same, q.Created)
		}
	}
	return laterThan(same)
}

// laterThan is now, but later than all of some times.
func laterThan(times []time.Time) time.Time {
	now := time.Now()
	for _, t := range times {
		if !now.After(t) {
			now = t.Add(1)
		}
	}
	return now
}

// newPodID makes an ID with an SELinux level of its own.
func (e *Engine) newPodID() pod.ID {
	e.view.mu.RLock()
	defer e.view.mu.RUnlock()
	taken := make(map[string]bool, len(e.view.entries))
	for id := range e.view.entries {
		taken[pod.Level(id)] = true
	}
	for {
		if id := pod.NewID(); !taken[pod.Level(id)] {
			return id
		}
	}
}

func sliceOf(p *pod.Pod) (string, error) {
	if p.CgroupParent == "" {
		return unit.PodSlice(string(p.ID)), nil
	}
	slice, err := unit.SliceOf(p.CgroupParent)
	if err != nil {
		return "", fmt.Errorf("%w: %w", pod.ErrInvalid, err)
	}
	return slice, nil
}

// settleTwin finds a pod that is the same by name. One of the CRI that is ready is
// the pod that is wanted. One that is not ready and has no app is what a killed
// program left of an earlier try, and is taken away. Whatever else is there is in
// the way, and the caller's to remove.
func (e *Engine) settleTwin(ctx context.Context, p *pod.Pod) (pod.ID, bool, error) {
	twin, err := e.findTwin(p)
	if err != nil || twin == nil {
		return "", false, err
	}
	if p.Owner == pod.OwnerCRI && twin.Ready {
		return twin.ID, true, nil
	}
	if e.unfinished(twin) {
		gone, err := e.removeUnfinished(ctx, twin.ID)
		if gone || err != nil {
			return "", false, err
		}
	}
	return "", false, fmt.Errorf("pod %s/%s is %s already: %w", p.Namespace, p.Name, twin.ID, pod.ErrExists)
}

func (e *Engine) findTwin(p *pod.Pod) (*pod.PodStatus, error) {
	pods, err := e.Pods(Filter{Owner: p.Owner})
	if err != nil {
		return nil, err
	}
	for _, have := range pods {
		if have.Name == p.Name && have.Namespace == p.Namespace && have.UID == p.UID && have.Attempt == p.Attempt {
			return &have, nil
		}
	}
	return nil, nil
}

// unfinished tells of a pod that holds nothing of anybody's: no app either of which nothing
// but that it is there can be read.
func (e *Engine) unfinished(s *pod.PodStatus) bool {
	return !s.Ready && len(s.Apps) == 0 && !e.hides(s.ID)
}

// removeUnfinished removes a pod that nobody works on and that is unfinished
// still. It waits for the pod's lock: whoever holds it may just be making it.
func (e *Engine) removeUnfinished(ctx context.Context, id pod.ID) (gone bool, err error) {
	lock, err := e.lockPod(ctx, id)
	if errors.Is(err, pod.ErrNotFound) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	s, err := e.Pod(id)
	if errors.Is(err, pod.ErrNotFound) {
		return true, nil
	}
	if err != nil || !e.unfinished(&s) {
		return false, err
	}
	return true, e.removeLocked(ctx, s.Pod, lock)
}

// removeLocked takes down and forgets a pod without apps, whose lock we have.
func (e *Engine) removeLocked(ctx context.Context, p *pod.Pod, lock *disk.Lock) error {
	err := e.run(ctx, e.podStop(p, lock, noApps))
	if err == nil {
		err = e.run(ctx, e.podRemoval(p))
	}
	return also(err, e.reloadPodAsIs(ctx, p.ID))
}

// making is a pod that is being made.
type making struct {
	e    *Engine
	p    *pod.Pod
	plan isolator.Plan
	lock *disk.Lock
	up   func() error // waits for the start of the unit, once that was begun
	late *lateStart   // of a pod that has late units, once that was begun
	net  network.Result
}

// operation: systemd starts the unit, and the holder in the pod's user namespace,
// while the plugins make the network; neither needs the other. Nor do late units, until
// they are told. A pod that has some is ready when they are up: its network is recorded
// then.
func (m *making) operation() operation {
	steps := []step{
		{"record", m.record, m.unrecord},
		{"namespaces", m.makeNamespaces, m.removeNamespaces},
		// With the holder, in the pod's user namespace. A pod of the host's network is
		// ready when its unit is active: nothing of it may be missing then.
		{"unit", m.beginUnit, m.stopUnit},
	}
	up := step{"unit is up", func(context.Context) error { return m.up() }, nil}
	var net, recorded []step
	if !m.p.HostNetwork() {
		net = []step{{"network", m.addNetwork, m.delNetwork}}
		recorded = []step{{"network record", m.recordNetwork, nil}}
	}
	if len(m.plan.Late) == 0 {
		return operation{"create pod", slices.Concat(steps, net, recorded, []step{up})}
	}
	begin := step{"late units", m.beginLate, m.stopLate}
	late := step{"late units are up", m.awaitLate, m.stopLate}
	return operation{"create pod", slices.Concat(steps, []step{begin}, net, []step{up, late}, recorded)}
}

func (e *Engine) stopUnits(ctx context.Context, names []string) error {
	var errs []error
	for _, name := range names {
		errs = append(errs, ignore(e.cfg.Systemd.Stop(ctx, name), systemd.ErrNotFound))
	}
	return errors.Join(errs...)
}

func (m *making) record(context.Context) error {
	files := make([]writer.File, len(m.plan.Files))
	for i, f := range m.plan.Files {
		files[i] = writer.File{Path: f.Path, Data: f.Data, Mode: fs.FileMode(f.Mode)}
	}
	lock, err := m.e.store.CreatePod(m.p, files)
	m.lock = lock
	return err
}

func (m *making) unrecord(ctx context.Context) error {
	err := m.e.forgetPod(ctx, m.p)
	if m.lock != nil {
		err = errors.Join(err, m.lock.Unlock())
	}
	return err
}

func (m *making) beginUnit(ctx context.Context) error {
	m.up = m.e.begin("start the unit of a pod", func() error {
		last := len(m.plan.Units) - 1
		return m.e.cfg.Systemd.Launch(ctx, m.plan.Units[last], m.plan.Units[:last]...)
	})
	return nil
}

// begin runs f in the background. What it returns waits for the end of f, and may be
// called again.
func (e *Engine) begin(what string, f func() error) (wait func() error) {
	wait = sync.OnceValue(func() error { return noPanic(e.log, what, f) })
	go wait()
	return wait
}

func (m *making) stopUnit(ctx context.Context) error {
	if m.up != nil {
		_ = m.up() // a stop before the start would stop nothing; its error is told
	}
	return m.e.stopPodUnit(ctx, m.p)
}

// stopPodUnit stops the pod's unit and the holder of its PID namespace, which
// nothing needs any more then.
func (e *Engine) stopPodUnit(ctx context.Context, p *pod.Pod) error {
	hangs := func() bool { return e.podHangs(p) }
	err := e.stopUnit(ctx, unit.Pod(string(p.ID)), hangs)
	if p.Namespaces.PID == pod.NamespacePod && !e.ownKernel(p) {
		err = errors.Join(err, e.stopUnit(ctx, unit.Holder(string(p.ID)), hangs))
	}
	return err
}

// shmSize is what /dev/shm of a pod may hold, as with other engines.
const shmSize = 64 << 20

func (m *making) makeNamespaces(context.Context) error {
	s := namespace.Spec{
		Dir: m.e.runDir(m.p.ID), Hostname: m.p.Hostname, Sysctls: m.p.Sysctls, Child: m.e.cfg.Init,
	}
	if m.e.ownKernel(m.p) {
		s.Sysctls = nil // they are of that kernel
	}
	if u := m.p.Namespaces.User; u != nil {
		s.Kinds = append(s.Kinds, namespace.User)
		s.UIDs, s.GIDs = idMaps(u.UIDs), idMaps(u.GIDs)
	}
	if m.p.Namespaces.IPC != pod.NamespaceNode {
		s.Kinds, s.ShmSize = append(s.Kinds, namespace.IPC), shmSize
	}
	if !m.p.HostNetwork() {
		// The name of the host goes with its network, as kubelet expects.
		s.Kinds = append(s.Kinds, namespace.Net, namespace.UTS)
	}
	return namespace.Create(s)
}

func idMaps(maps []pod.IDMap) []namespace.Map {
	out := make([]namespace.Map, len(maps))
	for i, m := range maps {
		out[i] = namespace.Map{Container: int(m.Container), Host: int(m.Host), Length: int(m.Length)}
	}
	return out
}

func (m *making) removeNamespaces(context.Context) error {
	return namespace.Remove(m.e.runDir(m.p.ID))
}

func (m *making) addNetwork(ctx context.Context) (err error) {
	m.net, err = m.e.cfg.Network.Add(ctx, m.e.down.attachment(m.p, m.lock))
	if m.late == nil {
		return err
	}
	if err != nil {
		// When a late unit fails the pod's unit goes, and its network namespace: plugins that
		// still work in it complain of that.
		if why := m.late.failed(); why != nil {
			return also(fmt.Errorf("late units, meanwhile: %w", why), err)
		}
		return err
	}
	// It is recorded for good when the late units are up. Until then whoever stops the
	// pod's unit has to know that there is something to give back.
	_, private := m.net.Split()
	return m.e.store.WriteAttachment(m.p.ID, private)
}

func (m *making) recordNetwork(context.Context) error {
	public, private := m.net.Split()
	return m.e.store.WriteNetwork(m.p.ID, public, private)
}

// delNetwork has nothing to do for an Add that did not begin, or undid itself: to
// call plugins would only add an error to the one that matters.
func (m *making) delNetwork(ctx context.Context) error {
	if !m.e.cfg.Network.Attached(m.p.ID) {
		return nil
	}
	return m.e.down.delNetwork(ctx, m.p, m.lock)
}

// staleAfter is how long a lock is waited for before we look whether the plugin of
// a killed program has it, and again and again after that.
const staleAfter = 2 * time.Second

// lockPod takes a pod for oneself. A program that holds the lock gives it back in
// time, or dies and gives it back by that. But a CNI plugin that it started may
// have it still, and hang: that one is ended when its time is over.
func (e *Engine) lockPod(ctx context.Context, id pod.ID) (*disk.Lock, error) {
	waiting, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		again := time.NewTicker(staleAfter)
		defer again.Stop()
		for {
			select {
			case <-waiting.Done():
				return
			case <-again.C:
				e.killStale(waiting, id)
			}
		}
	}()
	return e.store.Lock(ctx, id)
}

func (e *Engine) killStale(ctx context.Context, id pod.ID) {
	if err := e.cfg.Network.KillStale(ctx, id); err != nil && ctx.Err() == nil {
		e.log.Warn("cannot end plugins that hold a pod's lock", "pod", id, "err", err)
	}
}

func (e *Engine) dirs(p, app pod.ID) isolator.Dirs {
	d := isolator.Dirs{Pod: e.store.Pod(p), Run: e.runDir(p)}
	if app != "" {
		d.App = e.store.App(p, app)
	}
	return d
}

// forgetExit removes an app's file from the spool.
func (e *Engine) forgetExit(id pod.ID) error {
	return ignore(os.Remove(filepath.Join(e.cfg.Run, "exits", string(id))), fs.ErrNotExist)
}
