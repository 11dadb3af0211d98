package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"gantry/internal/pod"
	"gantry/internal/unit"
)

// A stop may come while the app is being started: kubelet gave the start up, say,
// and it goes on. An app that reads as prepared then is about to run.

// startTime bounds how long a stop waits for a start under way.
const startTime = 30 * time.Second

func startKey(id pod.ID) string { return "start app " + string(id) }

// afterStart returns an app that read as prepared as it is once nobody starts it:
// this program, or another, which has the pod's lock. For one that nobody starts
// that is at once.
func (e *Engine) afterStart(ctx context.Context, s pod.AppStatus) (pod.AppStatus, error) {
	bounded, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	err := e.joins.wait(bounded, startKey(s.ID))
	if err == nil {
		s, err = e.settle(bounded, s)
	}
	if err != nil && bounded.Err() != nil && ctx.Err() == nil {
		err = fmt.Errorf("%w: %w", pod.ErrUnavailable, err)
	}
	if err != nil {
		return s, fmt.Errorf("stop app %s: %w", s.ID, err)
	}
	return s, nil
}

func (e *Engine) settle(ctx context.Context, s pod.AppStatus) (pod.AppStatus, error) {
	lock, err := e.lockPod(ctx, s.Pod)
	if err != nil {
		return s, err
	}
	now, err := e.App(s.ID)
	if err == nil && now.Phase == pod.Prepared {
		err = e.endStart(ctx, now)
	}
	return now, errors.Join(err, lock.Unlock())
}

// endStart is for a prepared app whose pod we have locked. If it has a unit, who
// started it was killed, and the app is on its way still. What never was said to
// run gets no grace.
func (e *Engine) endStart(ctx context.Context, s pod.AppStatus) error {
	e.view.mu.RLock()
	t := e.view.entries[s.Pod]
	starting := t != nil && t.apps[s.ID] != nil && t.apps[s.ID].unit.Loaded
	e.view.mu.RUnlock()
	if !starting {
		return nil
	}
	if err := e.kill(ctx, s); err != nil {
		return err
	}
	err := e.stopUnit(ctx, unit.App(string(s.ID)), func() bool { return e.appHangs(s.App) })
	return also(err, e.reloadApp(s.Pod, s.ID, false))
}

// endStarts ends the apps of a pod that were prepared before its lock was had, and
// may have been started meanwhile.
func (e *Engine) endStarts(ctx context.Context, before pod.PodStatus) error {
	prepared := map[pod.ID]bool{}
	for _, a := range before.Apps {
		if a.Phase == pod.Prepared {
			prepared[a.ID] = true
		}
	}
	if len(prepared) == 0 {
		return nil
	}
	now, err := e.Pod(before.ID)
	if err != nil {
		return ignore(err, pod.ErrNotFound)
	}
	var errs []error
	for _, a := range now.Apps {
		switch {
		case !prepared[a.ID]:
		case a.Phase == pod.Prepared:
			errs = append(errs, e.endStart(ctx, a))
		default:
			errs = append(errs, e.StopApp(ctx, a.ID, 0))
		}
	}
	return errors.Join(errs...)
}
