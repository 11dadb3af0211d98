package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"gantry/internal/isolator"
	"gantry/internal/pod"
	"gantry/internal/systemd"
	"gantry/internal/unit"
)

// signaler is an isolator whose apps are not processes of their units: what is in a unit
// stands for an app, and may be killed and started again without it.
type signaler interface {
	// Signal sends a signal to an app's first process, or to all of them.
	Signal(ctx context.Context, d isolator.Dirs, app pod.ID, signal int, all bool) error
}

// remoteTime bounds what is asked of where such an app is: it may hang.
const remoteTime = 5 * time.Second

// signalerOf is the isolator of an app if it is such a one, with the app's pod.
func (e *Engine) signalerOf(a *pod.App) (signaler, *pod.Pod, error) {
	p, err := e.podRecord(a.Pod)
	if err != nil {
		return nil, nil, err
	}
	iso, _ := e.iso[p.Isolator].(signaler)
	return iso, p, nil
}

// kill kills all processes of an app, wherever they are.
func (e *Engine) kill(ctx context.Context, s pod.AppStatus) error {
	iso, p, err := e.signalerOf(s.App)
	if err != nil {
		return ignore(err, pod.ErrNotFound)
	}
	if iso == nil {
		return e.killCgroup(s)
	}
	const sigKILL = 9
	bounded, cancel := context.WithTimeout(ctx, remoteTime)
	defer cancel()
	if err = iso.Signal(bounded, e.dirs(p.ID, s.ID), s.ID, sigKILL, true); err == nil {
		return nil
	}
	if !errors.Is(err, pod.ErrNotFound) {
		e.log.Warn("an app cannot be killed where it is: what stands for it is", "app", s.ID, "err", err)
	}
	return e.drop(ctx, s)
}

// drop ends what stands for an app, so that it is not started again. What records the end
// tries to end the app, too.
func (e *Engine) drop(ctx context.Context, s pod.AppStatus) error {
	name := unit.App(string(s.ID))
	stopping, cancel := context.WithTimeout(ctx, hangTime)
	defer cancel()
	// It is in vain if the app does not answer, but keeps systemd from another start.
	if err := e.cfg.Systemd.Stop(stopping, name); err != nil && stopping.Err() == nil && !errors.Is(err, systemd.ErrNotFound) {
		return fmt.Errorf("stop %s: %w", name, err)
	}
	return e.killCgroup(s)
}
