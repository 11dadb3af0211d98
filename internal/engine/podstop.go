package engine

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"gantry/internal/disk"
	"gantry/internal/isolator"
	"gantry/internal/namespace"
	"gantry/internal/pod"
	"gantry/internal/unit"
)

// StopPod ends a pod's apps, at once, and gives back its network and namespaces.
// Its records stay. It is idempotent, and works when any part is gone already.
func (e *Engine) StopPod(ctx context.Context, id pod.ID) error {
	_, err := e.joins.do(ctx, "stop pod "+string(id), func(ctx context.Context) (pod.ID, error) {
		ctx, cancel := context.WithTimeout(ctx, opTime)
		defer cancel()
		return id, e.stopPod(ctx, id)
	})
	return err
}

func (e *Engine) stopPod(ctx context.Context, id pod.ID) error {
	s, err := e.Pod(id)
	if errors.Is(err, pod.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	// Once they are killed nothing of the apps uses the network: it is given back
	// while their ends are recorded.
	if err := e.killApps(ctx, s); err != nil {
		return err
	}
	ended := e.begin("stop the apps of a pod", func() error { return e.stopApps(ctx, s) })
	lock, err := e.lockPod(ctx, id)
	if err != nil {
		return errors.Join(ignore(err, pod.ErrNotFound), ended())
	}
	if err = e.endStarts(ctx, s); err == nil {
		err = e.run(ctx, e.podStop(s.Pod, lock, ended))
	}
	return also(err, ignoreSame(ended(), err), e.reloadPodAsIs(ctx, id), lock.Unlock())
}

// ignoreSame drops an error that another one tells of already.
func ignoreSame(err, told error) error {
	if err != nil && errors.Is(told, err) {
		return nil
	}
	return err
}

func (e *Engine) killApps(ctx context.Context, s pod.PodStatus) error {
	var g errgroup.Group
	for _, a := range s.Apps {
		if a.Phase == pod.Running || a.Phase == pod.Unknown {
			g.Go(func() error {
				err := noPanic(e.log, "kill an app", func() error { return e.kill(ctx, a) })
				if err != nil {
					return fmt.Errorf("kill app %s: %w", a.ID, err)
				}
				return nil
			})
		}
	}
	return g.Wait()
}

func (e *Engine) stopApps(ctx context.Context, s pod.PodStatus) error {
	var g errgroup.Group
	for _, a := range s.Apps {
		if a.Phase == pod.Running || a.Phase == pod.Unknown {
			g.Go(func() error {
				return noPanic(e.log, "stop an app", func() error { return e.StopApp(ctx, a.ID, 0) })
			})
		}
	}
	return g.Wait()
}

// podStop undoes what CreatePod did, in reverse order, by steps that have no
// undo: a failed one is tried again by the next call. ended waits for the ends of
// the pod's apps.
func (e *Engine) podStop(p *pod.Pod, lock *disk.Lock, ended func() error) operation {
	network := step{name: "network", do: func(ctx context.Context) error { return e.down.delNetwork(ctx, p, lock) }}
	apps := step{name: "apps", do: func(context.Context) error { return ended() }}
	namespaces := step{name: "namespaces", do: func(context.Context) error { return namespace.Remove(e.runDir(p.ID)) }}
	unit := step{name: "unit", do: func(ctx context.Context) error { return e.stopPodUnit(ctx, p) }}
	steps := []step{network, apps, namespaces, unit}
	if late := e.lateUnits(p); len(late) > 0 { // they use the network and the namespaces
		steps = []step{apps, {name: "late units", do: func(ctx context.Context) error { return e.stopUnits(ctx, late) }}, network, namespaces, unit}
	}
	if p.HostNetwork() { // its unit alone makes it ready
		steps = []step{network, apps, unit, namespaces}
	}
	return operation{"stop pod", steps}
}

// noApps is for a pod none of whose apps runs.
func noApps() error { return nil }

// RemovePod stops a pod and forgets it, with all its apps. It is idempotent.
func (e *Engine) RemovePod(ctx context.Context, id pod.ID) error {
	if err := e.StopPod(ctx, id); err != nil {
		return err
	}
	s, err := e.Pod(id)
	if errors.Is(err, pod.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, a := range s.Apps {
		if err := e.RemoveApp(ctx, a.ID); err != nil {
			return err
		}
	}
	lock, err := e.lockPod(ctx, id)
	if errors.Is(err, pod.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	err = e.run(ctx, e.podRemoval(s.Pod))
	return also(err, e.reloadPodAsIs(ctx, id), lock.Unlock())
}

// podRemoval forgets a pod that is stopped and has no apps any more.
func (e *Engine) podRemoval(p *pod.Pod) operation {
	return operation{"remove pod", []step{
		{name: "isolator", do: func(ctx context.Context) error {
			iso, ok := e.iso[p.Isolator]
			if !ok {
				return nil // it is not on this node any more, and neither is what it made
			}
			return e.undone(p, iso.Cleanup(ctx, p))
		}},
		{name: "record", do: func(ctx context.Context) error { return e.forgetPod(ctx, p) }},
	}}
}

// undone takes it that an isolator is there no more that could undo what it made: its file
// was removed, or does not run. Its pods could never be removed otherwise.
func (e *Engine) undone(p *pod.Pod, err error) error {
	if !errors.Is(err, isolator.ErrCannotUndo) {
		return err
	}
	e.log.Warn("an isolator cannot be asked to undo what it made", "isolator", p.Isolator, "pod", p.ID, "err", err)
	return nil
}

// forgetPod removes a pod's record, and its slice if it has one of its own. That goes by
// itself with the last unit that needs it, unless a job of that one was under way just
// then: systemd does not look again.
func (e *Engine) forgetPod(ctx context.Context, p *pod.Pod) error {
	if p.CgroupParent == "" {
		if err := e.stopUnit(ctx, unit.PodSlice(string(p.ID)), func() bool { return e.podHangs(p) }); err != nil {
			return err
		}
	}
	return e.store.RemovePod(p.ID)
}
