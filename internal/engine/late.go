package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"gantry/internal/isolator"
	"gantry/internal/pod"
	"gantry/internal/systemd"
)

// beginLate begins to start late units, while the pod's network is made.
func (m *making) beginLate(ctx context.Context) error {
	cancelled, cancel := context.WithCancel(ctx)
	m.late = &lateStart{cancel: cancel, over: make(chan struct{})}
	m.late.up = m.e.begin("start the late units of a pod", func() error {
		defer close(m.late.over)
		err := m.furnishLate(ctx)
		if err == nil {
			err = m.startLate(cancelled)
		}
		return err
	})
	return nil
}

// lateStart is a start of late units that was begun.
type lateStart struct {
	up     func() error  // waits for them
	over   chan struct{} // closed at the end of that
	cancel context.CancelFunc
}

// lateNews is how long a failure of a late unit takes until it is told here.
const lateNews = 500 * time.Millisecond

// failed ends the start, and tells why it had failed before.
func (l *lateStart) failed() error {
	select {
	case <-l.over:
	case <-time.After(lateNews):
	}
	l.cancel()
	if err := l.up(); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// awaitLate tells the late units that the network is there, and waits until they are up.
func (m *making) awaitLate(context.Context) error {
	defer m.late.cancel()
	if iso, ok := m.e.iso[m.p.Isolator].(isolator.Belated); ok && !m.p.HostNetwork() {
		if err := iso.Networked(m.e.dirs(m.p.ID, "")); err != nil {
			return err
		}
	}
	return m.late.up()
}

// furnishLate makes what all pods' late units need. It is not ended with the making of one
// pod: others wait for it too, and what was not finished would be in the way.
func (m *making) furnishLate(ctx context.Context) error {
	if iso, ok := m.e.iso[m.p.Isolator].(isolator.Belated); ok {
		return iso.Furnish(ctx)
	}
	return nil
}

// startLate starts what needs the pod's unit, and stops with it.
func (m *making) startLate(ctx context.Context) error {
	if err := m.up(); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	last := len(m.plan.Late) - 1
	err := m.e.cfg.Systemd.Launch(ctx, m.plan.Late[last], m.plan.Late[:last]...)
	var job *systemd.JobError
	if !errors.As(err, &job) {
		return err
	}
	if iso, ok := m.e.iso[m.p.Isolator].(isolator.Belated); ok {
		// What they say at their end may be all that they say. The undoing stops them again.
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		_ = m.stopLateUnits(stop)
		cancel()
		for _, file := range iso.LateErrors(m.e.dirs(m.p.ID, "")) {
			if why, readErr := os.ReadFile(file); readErr == nil {
				return fmt.Errorf("%s: %w", why, pod.ErrUnavailable)
			}
		}
	}
	return fmt.Errorf("%w: %w", pod.ErrUnavailable, err)
}

// stopLate ends the start, which may be waiting for what does not come, and then what was
// started.
func (m *making) stopLate(ctx context.Context) error {
	if m.late == nil {
		return nil
	}
	m.late.cancel()
	_ = m.late.up() // its error is told by who waits for it
	return m.stopLateUnits(ctx)
}

func (m *making) stopLateUnits(ctx context.Context) error {
	var names []string
	for _, u := range m.plan.Late {
		names = append(names, u.Name)
	}
	slices.Reverse(names)
	return m.e.stopUnits(ctx, names)
}

// lateUnits are those of a pod that there is, the last one first.
func (e *Engine) lateUnits(p *pod.Pod) []string {
	if iso, ok := e.iso[p.Isolator].(isolator.Belated); ok {
		return iso.LateUnits(p.ID)
	}
	return nil
}
