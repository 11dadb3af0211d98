package engine

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"gantry/internal/disk"
	"gantry/internal/initproc"
	"gantry/internal/isolator"
	"gantry/internal/pod"
	"gantry/internal/unit"
)

// resizer is an isolator that can say what new limits mean for a running app.
type resizer interface {
	Resources(pod.Resources) ([]unit.Property, []isolator.CgroupFile, error)
}

// updater is an isolator that sets the limits of a running app itself: they are not its
// unit's. It changes nothing that it cannot do.
type updater interface {
	Update(ctx context.Context, d isolator.Dirs, app pod.ID, was, now pod.Resources) error
}

// podResizer is an isolator that cannot give a running pod whatever it asks for.
type podResizer interface {
	PodResources(p *pod.Pod, d isolator.Dirs, r pod.Resources) ([]unit.Property, []isolator.CgroupFile, error)
}

// UpdateApp changes the limits of an app. One that does not run keeps them for its
// start. What is in force is looked at under the pod's lock: another update, or the
// start, may have been under way.
func (e *Engine) UpdateApp(ctx context.Context, id pod.ID, r pod.Resources) error {
	s, err := e.App(id)
	if err != nil {
		return err
	}
	lock, err := e.lockPod(ctx, s.Pod)
	if err != nil {
		return err
	}
	return errors.Join(e.updateLocked(ctx, id, r), lock.Unlock())
}

func (e *Engine) updateLocked(ctx context.Context, id pod.ID, r pod.Resources) error {
	s, err := e.App(id)
	if err != nil {
		return err
	}
	if s.Phase != pod.Running && s.Phase != pod.Prepared {
		return fmt.Errorf("update app %s: it is %s: %w", id, s.Phase, pod.ErrState)
	}
	p, err := e.Pod(s.Pod)
	if err != nil {
		return err
	}
	iso, ok := e.iso[p.Isolator].(resizer)
	if !ok {
		return fmt.Errorf("update app %s: isolator %s: %w", id, p.Isolator, pod.ErrUnsupported)
	}
	if err := e.checkHardware(r); err != nil {
		return fmt.Errorf("update app %s: %w", id, err)
	}
	want := merge(s.Current, r)
	props, files, err := iso.Resources(want)
	if err != nil {
		return fmt.Errorf("update app %s: %w", id, err)
	}
	set := func(ctx context.Context) error { return e.setLimits(ctx, s, limits{props, files, want.OOMScoreAdj}) }
	if far, ok := e.iso[p.Isolator].(updater); ok {
		set = func(ctx context.Context) error { return e.setLimitsFar(ctx, far, p.Pod, s, want) }
	}
	err = e.run(ctx, e.update(s, want, set))
	return also(err, e.reloadApp(s.Pod, id, s.Phase == pod.Running))
}

// UpdatePod tells a pod its new sizes; what is not told stays. Kubelet asks before it
// changes a cgroup that is its own.
func (e *Engine) UpdatePod(ctx context.Context, id pod.ID, r pod.PodResources) error {
	lock, err := e.lockPod(ctx, id)
	if err != nil {
		return err
	}
	return errors.Join(e.updatePodLocked(ctx, id, r), lock.Unlock())
}

func (e *Engine) updatePodLocked(ctx context.Context, id pod.ID, r pod.PodResources) error {
	p, err := e.Pod(id)
	if err != nil {
		return err
	}
	if !p.Ready {
		return fmt.Errorf("update pod %s: it is not ready: %w", id, pod.ErrState)
	}
	want := p.PodResources
	want.Resources, want.Overhead = mergeInto(want.Resources, r.Resources), mergeInto(want.Overhead, r.Overhead)
	iso, ok := e.iso[p.Isolator].(resizer)
	if !ok {
		return fmt.Errorf("update pod %s: isolator %s: %w", id, p.Isolator, pod.ErrUnsupported)
	}
	var props []unit.Property
	far, isFar := e.iso[p.Isolator].(podResizer)
	if want.Resources != nil && (p.CgroupParent == "" || isFar) {
		var files []isolator.CgroupFile
		if isFar {
			props, files, err = far.PodResources(p.Pod, e.dirs(id, ""), *want.Resources)
		} else {
			props, files, err = iso.Resources(*want.Resources)
		}
		if err != nil {
			return fmt.Errorf("update pod %s: %w", id, err)
		}
		if p.CgroupParent != "" { // kubelet changes it
			props, files = nil, nil
		}
		for _, f := range files {
			if f.Name != "cpu.max" { // the property is as good, to a hundredth of a CPU
				return fmt.Errorf("update pod %s: %s of a pod's slice: %w", id, f.Name, pod.ErrUnsupported)
			}
		}
	}
	err = e.run(ctx, e.podUpdate(p.Pod, want, props))
	return also(err, e.reloadPodAsIs(ctx, id))
}

func (e *Engine) podUpdate(p *pod.Pod, r pod.PodResources, props []unit.Property) operation {
	return operation{"update pod", []step{
		{name: "limits", do: func(ctx context.Context) error {
			if len(props) == 0 {
				return nil
			}
			return e.cfg.Systemd.SetProperties(ctx, p.Slice, props)
		}},
		{name: "record", do: func(context.Context) error { return e.store.WritePodResources(p.ID, r) }},
	}}
}

// limits are an app's resources as its unit takes them.
type limits struct {
	props    []unit.Property
	files    []isolator.CgroupFile
	oomScore int // no unit that runs takes it
}

// update has no undo: limits that are in force and not on record are put there by
// a second try.
func (e *Engine) update(s pod.AppStatus, r pod.Resources, set func(context.Context) error) operation {
	return operation{"update app", []step{
		{name: "limits", do: set},
		{name: "record", do: func(context.Context) error { return e.store.WriteResources(s.App, r) }},
	}}
}

func (e *Engine) setLimits(ctx context.Context, s pod.AppStatus, l limits) error {
	if s.Phase != pod.Running {
		return nil
	}
	dir, err := e.appCgroup(s.App)
	if err != nil {
		return err
	}
	own := filepath.Join(dir, isolator.AppGroup)
	if !disk.Exists(own) {
		return e.setUnitLimits(ctx, s, l, dir)
	}
	// Its runtime may be about to leave still, and gives the unit its limits back then.
	lock, err := disk.AcquireLock(ctx, own)
	if err != nil {
		return fmt.Errorf("update app %s: %w", s.ID, err)
	}
	err = e.setUnitLimits(ctx, s, l, dir)
	if err == nil {
		err = initproc.CopyLimits(dir, own)
	}
	return errors.Join(err, lock.Unlock())
}

func (e *Engine) setLimitsFar(ctx context.Context, iso updater, p *pod.Pod, s pod.AppStatus, want pod.Resources) error {
	if s.Phase != pod.Running {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, updateTime)
	defer cancel()
	return iso.Update(ctx, e.dirs(p.ID, s.ID), s.ID, s.Current, want)
}

// updateTime bounds a change of limits elsewhere: to lower that of memory may take a while.
const updateTime = 30 * time.Second

func (e *Engine) setUnitLimits(ctx context.Context, s pod.AppStatus, l limits, dir string) error {
	if err := e.cfg.Systemd.SetProperties(ctx, unit.App(string(s.ID)), l.props); err != nil {
		return err
	}
	for _, f := range l.files {
		if err := initproc.WriteLimit(dir, initproc.CgroupFile(f)); err != nil {
			return fmt.Errorf("update app %s: %w", s.ID, err)
		}
	}
	if err := rescore(dir, s.Current.OOMScoreAdj, l.oomScore); err != nil {
		return fmt.Errorf("update app %s: %w", s.ID, err)
	}
	return nil
}

// mergeInto is merge where either may be missing.
func mergeInto(now, r *pod.Resources) *pod.Resources {
	if r == nil {
		return now
	}
	if now == nil {
		now = &pod.Resources{}
	}
	all := merge(*now, *r)
	return &all
}

// merge puts what is set in r over what is in force.
func merge(now, r pod.Resources) pod.Resources {
	for _, f := range []struct{ to, from *int64 }{
		{&now.CPUPeriod, &r.CPUPeriod},
		{&now.CPUQuota, &r.CPUQuota},
		{&now.CPUShares, &r.CPUShares},
		{&now.Memory, &r.Memory},
		{&now.MemorySwap, &r.MemorySwap},
		{&now.Pids, &r.Pids},
	} {
		if *f.from != 0 {
			*f.to = *f.from
		}
	}
	if r.OOMScoreAdj != 0 {
		now.OOMScoreAdj = r.OOMScoreAdj
	}
	if r.CPUSet != "" {
		now.CPUSet = r.CPUSet
	}
	if r.MemorySet != "" {
		now.MemorySet = r.MemorySet
	}
	if len(r.Hugepages) > 0 {
		now.Hugepages = r.Hugepages
	}
	unified := map[string]string{}
	for _, m := range []map[string]string{now.Unified, r.Unified} {
		for k, v := range m {
			unified[k] = v
		}
	}
	now.Unified = unified
	return now
}
