package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"gantry/internal/isolator"
	"gantry/internal/pod"
	"gantry/internal/unit"
)

// resizer is an isolator that can say what new limits mean for a running app.
type resizer interface {
	Resources(pod.Resources) ([]unit.Property, []isolator.CgroupFile, error)
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
	want := merge(s.Current, r)
	props, files, err := iso.Resources(want)
	if err != nil {
		return fmt.Errorf("update app %s: %w", id, err)
	}
	err = e.run(ctx, e.update(s, want, limits{props, files}))
	return errors.Join(err, e.reloadApp(s.Pod, id, s.Phase == pod.Running))
}

// limits are an app's resources as its unit takes them.
type limits struct {
	props []unit.Property
	files []isolator.CgroupFile
}

// update has no undo: limits that are in force and not on record are put there by
// a second try.
func (e *Engine) update(s pod.AppStatus, r pod.Resources, l limits) operation {
	return operation{"update app", []step{
		{name: "limits", do: func(ctx context.Context) error { return e.setLimits(ctx, s, l) }},
		{name: "record", do: func(context.Context) error { return e.store.WriteResources(s.App, r) }},
	}}
}

func (e *Engine) setLimits(ctx context.Context, s pod.AppStatus, l limits) error {
	if s.Phase != pod.Running {
		return nil
	}
	if err := e.cfg.Systemd.SetProperties(ctx, unit.App(string(s.ID)), l.props); err != nil {
		return err
	}
	dir, err := e.appCgroup(s.App)
	if err != nil {
		return err
	}
	for _, f := range l.files {
		if err := os.WriteFile(filepath.Join(dir, f.Name), []byte(f.Value), 0); err != nil {
			return fmt.Errorf("update app %s: %w", s.ID, err)
		}
	}
	return nil
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
