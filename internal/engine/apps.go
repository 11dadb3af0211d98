package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/disk"
	"gantry/internal/isolator"
	"gantry/internal/pod"
	"gantry/internal/stdio"
	"gantry/internal/unit"
)

// CreateApp puts an app into a pod. No process is started, but everything that
// can be wrong is found out here.
func (e *Engine) CreateApp(ctx context.Context, podID pod.ID, spec AppSpec) (*pod.App, error) {
	key := fmt.Sprintf("create app %s/%s#%d", podID, spec.Name, spec.Attempt)
	id, err := e.joins.do(ctx, key, func(ctx context.Context) (pod.ID, error) {
		ctx, cancel := context.WithTimeout(ctx, opTime)
		defer cancel()
		return e.createApp(ctx, podID, spec)
	})
	if err != nil {
		return nil, err
	}
	s, err := e.App(id)
	return s.App, err
}

func (e *Engine) createApp(ctx context.Context, podID pod.ID, spec AppSpec) (pod.ID, error) {
	s, err := e.Pod(podID)
	if err != nil {
		return "", err
	}
	for _, a := range s.Apps {
		if a.Name == spec.Name && a.Attempt == spec.Attempt {
			if a.Phase == pod.Prepared && s.Owner == pod.OwnerCRI {
				return a.ID, e.stillKeepsImages(ctx, s.Pod, a.App)
			}
			return "", fmt.Errorf("app %s of pod %s is %s: %w", a.Name, podID, a.Phase, pod.ErrExists)
		}
	}
	if !s.Ready {
		return "", fmt.Errorf("create app %s: pod %s is not ready: %w", spec.Name, podID, pod.ErrState)
	}
	began := time.Now()
	app, secret, err := e.resolve(ctx, s.Pod, spec)
	if err == nil && app.Namespaces.PID == pod.NamespaceTarget {
		_, err = e.targetPID(s.Pod, app)
	}
	if err == nil {
		app.Created = appCreated(s, spec.Name)
		_, _, err = e.plan(s.Pod, app, secret, app.Resources, notYet)
	}
	if err != nil {
		return "", fmt.Errorf("create app %s: %w (after %s)", spec.Name, err, round(time.Since(began)))
	}
	lock, err := e.lockPod(ctx, podID)
	if err != nil {
		return "", err
	}
	err = e.run(ctx, e.appCreation(app, secret))
	err = also(err, e.reloadApp(podID, app.ID, false))
	if err == nil {
		err = e.keepsImages(ctx, s.Pod, app)
	}
	return app.ID, also(err, lock.Unlock())
}

// appCreated is now, or later: of the apps of one name the last counts.
func appCreated(s pod.PodStatus, name string) time.Time {
	var same []time.Time
	for _, a := range s.Apps {
		if a.Name == name {
			same = append(same, a.Created)
		}
	}
	return laterThan(same)
}

// keepsImages is for an image that was removed after the app's was looked up and before
// the app was there to need it. From then on it is kept.
func (e *Engine) keepsImages(ctx context.Context, p *pod.Pod, a *pod.App) error {
	for _, id := range imagesOf(a) {
		has, err := e.cfg.Images.Has(ctx, id)
		if has && err == nil {
			continue
		}
		if err == nil {
			err = fmt.Errorf("image %s was removed meanwhile: %w", id, pod.ErrNotFound)
		}
		err = fmt.Errorf("create app %s: %w", a.Name, err)
		return also(err, e.run(ctx, e.appRemoval(p, a)), e.reloadApp(p.ID, a.ID, false))
	}
	return nil
}

// stillKeepsImages is for an app that was made before, perhaps by a program that died
// before it had looked.
func (e *Engine) stillKeepsImages(ctx context.Context, p *pod.Pod, a *pod.App) error {
	lock, err := e.lockPod(ctx, p.ID)
	if err != nil {
		return err
	}
	return errors.Join(e.keepsImages(ctx, p, a), lock.Unlock())
}

func (e *Engine) appCreation(a *pod.App, secret pod.Secret) operation {
	return operation{"create app", []step{{
		"record", func(context.Context) error { return e.store.CreateApp(a, secret) },
		func(context.Context) error { return e.store.RemoveApp(a) },
	}}}
}

// pids are the processes whose PID namespaces an app joins.
type pids struct{ holder, target int }

// notYet stands in for processes that are not there yet, when an app is only
// being checked.
var notYet = pids{1, 1}

// plan asks the isolator for an app's plan; the units are the app's own, last, and
// those of the images it needs, first.
func (e *Engine) plan(p *pod.Pod, a *pod.App, secret pod.Secret, r pod.Resources, join pids) (isolator.Plan, []unit.Unit, error) {
	in := isolator.App{
		Pod: p, App: a, Secret: secret, Dir: e.dirs(p.ID, a.ID), Resources: r,
		HolderPID: join.holder, TargetPID: join.target, ImageVolumes: map[string]isolator.Tree{},
	}
	var mounts []unit.Unit
	tree := func(id string) (isolator.Tree, error) {
		img, err := e.cfg.Images.Image(id)
		if err != nil {
			return isolator.Tree{}, err
		}
		t := e.cfg.Images.Tree(img)
		if !slices.ContainsFunc(mounts, func(u unit.Unit) bool { return u.Name == t.Mount.Name }) {
			mounts = append(mounts, t.Mount)
		}
		return isolator.Tree{Path: t.Path, Unit: t.Mount.Name}, nil
	}
	var err error
	if in.Rootfs, err = tree(a.Image.ID); err != nil {
		return isolator.Plan{}, nil, err
	}
	for _, m := range a.Mounts {
		if m.Image == nil {
			continue
		}
		if in.ImageVolumes[m.Image.ID], err = tree(m.Image.ID); err != nil {
			return isolator.Plan{}, nil, err
		}
	}
	if in.SeccompProfile, err = seccompProfile(a); err != nil {
		return isolator.Plan{}, nil, err
	}
	iso, err := e.isolatorOf(p)
	if err != nil {
		return isolator.Plan{}, nil, err
	}
	plan, err := iso.App(in)
	if err != nil {
		return isolator.Plan{}, nil, err
	}
	return plan, mounts, nil
}

// stops knows which apps are being stopped by this program, so that a second stop
// does not send the signal again.
type stops struct {
	mu     sync.Mutex
	sent   map[pod.ID]int
	killed map[pod.ID]int
}

// kill marks an app as being killed until the returned function is called.
func (s *stops) kill(id pod.ID) (done func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.killed == nil {
		s.killed = map[pod.ID]int{}
	}
	s.killed[id]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.killed[id]--; s.killed[id] <= 0 {
			delete(s.killed, id)
		}
	}
}

// dying tells whether an app is being killed.
func (s *stops) dying(id pod.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.killed[id] > 0
}

// unlessKilled does what must not come between the kill of an app and its end.
func (s *stops) unlessKilled(id pod.ID, do func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.killed[id] > 0 {
		return nil
	}
	return do()
}

func (s *stops) begin(id pod.ID) (first bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sent == nil {
		s.sent = map[pod.ID]int{}
	}
	s.sent[id]++
	return s.sent[id] == 1
}

func (s *stops) end(id pod.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sent[id]--; s.sent[id] <= 0 {
		delete(s.sent, id)
	}
}

// StopApp sends the app its stop signal and kills it after grace. Each call keeps
// its own grace, so of two that overlap the shorter one wins.
func (e *Engine) StopApp(ctx context.Context, id pod.ID, grace time.Duration) error {
	began := time.Now()
	if err := e.stopApp(ctx, id, grace); err != nil {
		return fmt.Errorf("stop app %s: %w (after %s)", id, err, round(time.Since(began)))
	}
	return nil
}

func (e *Engine) stopApp(ctx context.Context, id pod.ID, grace time.Duration) error {
	s, err := e.App(id)
	if errors.Is(err, pod.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if s.Phase == pod.Prepared {
		if s, err = e.afterStart(ctx, s); err != nil {
			return ignore(err, pod.ErrNotFound)
		}
	}
	if s.Phase != pod.Running && s.Phase != pod.Unknown {
		return nil
	}
	if grace < 0 {
		grace = s.StopTimeout
	}
	if grace > 0 {
		first := e.stops.begin(id)
		defer e.stops.end(id)
		if first {
			if err := e.signalApp(ctx, s); err != nil {
				return err
			}
		}
		if done, err := e.waitFor(ctx, id, grace); done || err != nil {
			return err
		}
	}
	return e.killApp(ctx, s)
}

// killTime bounds the wait for processes that were killed.
const killTime = 10 * time.Second

// liftAgain is how often a killed app's CPU limit is lifted: PID 1 writes it again
// when it starts the recorder of the end and there was a daemon-reload before.
const liftAgain = 500 * time.Millisecond

func (e *Engine) killApp(ctx context.Context, s pod.AppStatus) error {
	// The limit that killCgroup lifts must not come back before the end is recorded.
	defer e.stops.kill(s.ID)()
	if err := e.kill(ctx, s); err != nil {
		return fmt.Errorf("kill app %s: %w", s.ID, err)
	}
	return e.awaitDeath(ctx, s)
}

// awaitDeath waits for the end of an app that was killed.
func (e *Engine) awaitDeath(ctx context.Context, s pod.AppStatus) error {
	for began := time.Now(); time.Since(began) < killTime; e.liftCPU(s) {
		if done, err := e.waitFor(ctx, s.ID, liftAgain); err != nil || done {
			return err
		}
	}
	if iso, _, err := e.signalerOf(s.App); err == nil && iso != nil {
		if err := e.drop(ctx, s); err != nil {
			return err
		}
		if done, err := e.waitFor(ctx, s.ID, recordTime); err != nil || done {
			return err
		}
	}
	if dir, err := e.appCgroup(s.App); err == nil {
		if list, err := e.hangingIn(dir); err == nil && len(list) > 0 {
			return e.giveUp(ctx, s, dir)
		}
	}
	return fmt.Errorf("kill app %s: its processes do not die (see systemctl status %s): %w",
		s.ID, unit.App(string(s.ID)), pod.ErrUnavailable)
}

func (e *Engine) killCgroup(s pod.AppStatus) error {
	dir, err := e.appCgroup(s.App)
	if err != nil {
		return ignore(err, pod.ErrNotFound)
	}
	e.liftCPU(s)
	err = os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0)
	if errors.Is(err, unix.ENODEV) {
		return nil // it went while we opened it
	}
	return ignore(err, fs.ErrNotExist)
}

// liftCPU takes the limit of an app that dies away. What dies, and what records how,
// would share a hundredth of a CPU with the start of systemd's executor: seconds.
// Without this it is only slow.
func (e *Engine) liftCPU(s pod.AppStatus) {
	if dir, err := e.appCgroup(s.App); err == nil {
		_ = writeExisting(filepath.Join(dir, "cpu.max"), "max")
	}
}

// appCgroup is the directory of an app's cgroup.
func (e *Engine) appCgroup(a *pod.App) (string, error) {
	p, err := e.podRecord(a.Pod)
	if err != nil {
		return "", err
	}
	return filepath.Join(e.cfg.Cgroups, unit.CgroupOf(p.Slice), unit.App(string(a.ID))), nil
}

// waitFor waits for an app's end, for at most d; false means that it runs on.
func (e *Engine) waitFor(ctx context.Context, id pod.ID, d time.Duration) (bool, error) {
	bounded, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	_, err := e.WaitApp(bounded, id)
	switch {
	case err == nil, errors.Is(err, pod.ErrNotFound), errors.Is(err, pod.ErrState):
		return true, nil
	case ctx.Err() == nil && bounded.Err() != nil:
		return false, nil
	default:
		return false, err
	}
}

// RemoveApp kills an app if it runs and forgets it. The log file stays: it is the
// caller's. It is idempotent.
func (e *Engine) RemoveApp(ctx context.Context, id pod.ID) error {
	s, err := e.App(id)
	if errors.Is(err, pod.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := e.StopApp(ctx, id, 0); err != nil {
		return err
	}
	p, err := e.Pod(s.Pod)
	if err != nil {
		return ignore(err, pod.ErrNotFound)
	}
	lock, err := e.lockPod(ctx, s.Pod)
	if errors.Is(err, pod.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	err = e.run(ctx, e.appRemoval(p.Pod, s.App))
	return also(err, e.reloadApp(s.Pod, id, false), lock.Unlock())
}

// forgetter is an isolator whose runtime may remember an app beyond its unit.
type forgetter interface {
	Forget(ctx context.Context, app pod.ID) error
}

// podForgetter is one that has to know the pod, too.
type podForgetter interface {
	ForgetIn(ctx context.Context, d isolator.Dirs, app pod.ID) error
}

// appRemoval takes the record last: what goes after it, nobody would know of.
func (e *Engine) appRemoval(p *pod.Pod, a *pod.App) operation {
	return operation{"remove app", []step{
		{name: "unit", do: func(ctx context.Context) error {
			return e.stopAppUnits(ctx, a)
		}},
		{name: "runtime", do: func(ctx context.Context) error {
			if iso, ok := e.iso[p.Isolator].(forgetter); ok {
				return e.undone(p, iso.Forget(ctx, a.ID))
			}
			if iso, ok := e.iso[p.Isolator].(podForgetter); ok {
				bounded, cancel := context.WithTimeout(ctx, remoteTime)
				defer cancel()
				return iso.ForgetIn(bounded, e.dirs(p.ID, a.ID), a.ID)
			}
			return nil
		}},
		{name: "output", do: func(ctx context.Context) error { return e.dropOutput(ctx, a) }},
		{name: "spool", do: func(context.Context) error { return e.forgetExit(a.ID) }},
		{name: "record", do: func(context.Context) error {
			e.usage.forget(a.ID)
			return e.store.RemoveApp(a)
		}},
	}}
}

// dropOutput ends what gantry-stdio keeps for an app that was started, should its
// end not have done so. Without gantry-stdio there is nothing kept.
func (e *Engine) dropOutput(ctx context.Context, a *pod.App) error {
	if !disk.Exists(filepath.Join(e.store.App(a.Pod, a.ID), stdio.SpecName)) {
		return nil
	}
	// Its own bound is for the streams; it may hang on another app's log before that.
	bounded, cancel := context.WithTimeout(ctx, 2*drainTime+time.Second)
	defer cancel()
	err := e.cfg.Stdio.Drain(bounded, a.ID, drainTime)
	if errors.Is(err, pod.ErrUnavailable) || bounded.Err() != nil && ctx.Err() == nil {
		e.log.Warn("gantry-stdio is not asked to give up an app's output", "app", a.ID, "err", err)
		return nil
	}
	return err
}

// ReopenLog makes all that an app writes from now on go to a new log file.
func (e *Engine) ReopenLog(ctx context.Context, id pod.ID) error {
	s, err := e.App(id)
	if err != nil {
		return err
	}
	if s.Phase != pod.Running {
		return fmt.Errorf("reopen log of app %s: it is %s: %w", id, s.Phase, pod.ErrState)
	}
	return e.cfg.Stdio.Reopen(ctx, id)
}
