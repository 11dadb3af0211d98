package systemd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"

	"gantry/internal/unit"
)

// errConflict: a job of the opposite kind is queued for a unit that is needed.
var errConflict = errors.New("another job is in the way")

const (
	// modeFail refuses a job that would replace another; a stop may replace a start.
	modeFail    = "fail"
	modeReplace = "replace"

	// firstLook and lastLook bound how long a waiter trusts in a signal before it
	// looks by itself: signals get lost while PID 1 executes itself again.
	firstLook = time.Second
	lastLook  = 8 * time.Second

	done = "done"
)

// Start is Launch, and tells how the unit is then.
func (m *Manager) Start(ctx context.Context, u unit.Unit, aux ...unit.Unit) (State, error) {
	if err := m.Launch(ctx, u, aux...); err != nil {
		return State{}, err
	}
	s, err := m.started(ctx, u.Name)
	return s, wrap("start", u.Name, err)
}

// Launch makes a transient unit and starts it, and waits for the end of the start
// job. Units of aux are made in the same call where they are not running: they
// are what u requires and shares with others.
//
// ErrLost means that the unit is not there, and that it may or may not have run:
// whoever can tell (by a record that the unit leaves) may start it again. Units
// that stay when their program has ended are started again by Launch itself.
//
// When ctx ends the error says so and the unit is left as it is, but for a job
// that PID 1 did not begin: that is cancelled.
func (m *Manager) Launch(ctx context.Context, u unit.Unit, aux ...unit.Unit) error {
	props, err := transient(u)
	if err != nil {
		return wrap("start", u.Name, err)
	}
	// A shared unit that the last user just gave up answers UnitExists when it is
	// passed along, and is not found, or stops, when it is not.
	deadline := time.Now().Add(m.patience)
	for p := (pause{}); ; {
		need, err := m.absent(ctx, aux)
		if err != nil {
			return wrap("start", u.Name, err)
		}
		err = m.job(ctx, u.Name, once, "StartTransientUnit", u.Name, modeFail, props, need)
		if err == nil || time.Now().After(deadline) {
			return wrap("start", u.Name, err)
		}
		raced, err := m.raced(ctx, u.Name, err, aux, len(need) < len(aux))
		if !raced && !(errors.Is(err, ErrLost) && stays(u)) {
			return wrap("start", u.Name, err)
		}
		if err := p.wait(ctx, m.life); err != nil {
			return wrap("start", u.Name, err)
		}
	}
}

// raced tells whether a start failed only because a unit that it shares was just
// coming or going, and if not, with which error. assumed: one of aux was taken to
// be running and was not passed.
func (m *Manager) raced(ctx context.Context, name string, err error, aux []unit.Unit, assumed bool) (bool, error) {
	var job *JobError
	switch {
	case errors.Is(err, ErrUnitExists):
		// Is it u, or one of aux? A u of which only the record is left, of a try that
		// failed or a run that ended, is dropped by PID 1 in a moment.
		s, stateErr := m.brief(ctx, name)
		if stateErr != nil {
			return false, stateErr
		}
		return !s.Loaded() || s.Active == Inactive && !s.Job, err
	case errors.Is(err, ErrNotFound):
		// The message is all that tells which unit it is that was not found.
		for _, a := range aux {
			if strings.Contains(err.Error(), a.Name) {
				return true, err
			}
		}
		return false, err
	case errors.Is(err, errConflict):
		return len(aux) > 0, err
	case errors.As(err, &job):
		return assumed && job.Result == "dependency", err
	}
	return false, err
}

// stays tells whether a unit that was started is there until somebody stops it. If
// it is not, then it was not started, and to start it again does nothing twice.
func stays(u unit.Unit) bool {
	return u.Get("RemainAfterExit") == unit.Bool(true) || strings.HasSuffix(u.Name, ".mount") || strings.HasSuffix(u.Name, ".slice")
}

// absent gives those of aux that PID 1 does not keep running, in D-Bus form.
func (m *Manager) absent(ctx context.Context, aux []unit.Unit) ([]auxUnit, error) {
	need := []auxUnit{}
	if len(aux) == 0 {
		return need, nil
	}
	running := map[string]bool{}
	names := make([]string, len(aux))
	for i, u := range aux {
		names[i] = glob(u.Name)
	}
	states, err := m.Units(ctx, names...)
	if err != nil {
		return nil, err
	}
	for _, s := range states {
		running[s.Name] = s.Running()
	}
	for _, u := range aux {
		props, err := transient(u)
		if err != nil {
			return nil, err
		}
		if !running[u.Name] {
			need = append(need, auxUnit{u.Name, props})
		}
	}
	return need, nil
}

// Ensure brings a unit up that many may ask for at once, such as a mount. It is
// nil when the unit runs, whoever started it.
func (m *Manager) Ensure(ctx context.Context, u unit.Unit) error {
	deadline := time.Now().Add(m.patience)
	for p := (pause{}); ; {
		err := m.ensureOnce(ctx, u)
		if err == nil {
			return nil
		}
		retry := errors.Is(err, ErrUnitExists) || errors.Is(err, ErrNotFound) || errors.Is(err, errConflict) || errors.Is(err, ErrLost)
		if !retry || time.Now().After(deadline) {
			return wrap("bring up", u.Name, err)
		}
		if err := p.wait(ctx, m.life); err != nil {
			return wrap("bring up", u.Name, err)
		}
	}
}

func (m *Manager) ensureOnce(ctx context.Context, u unit.Unit) error {
	s, err := m.brief(ctx, u.Name)
	switch {
	case err != nil:
		return err
	case s.Active == Active && !s.Job:
		return nil
	case s.Active == Failed:
		if err := m.ResetFailed(ctx, u.Name); err != nil {
			return err
		}
	case s.Active == Activating, s.Active == Active:
		return m.job(ctx, u.Name, again, "StartUnit", u.Name, modeFail)
	}
	props, err := transient(u)
	if err != nil {
		return err
	}
	return m.job(ctx, u.Name, once, "StartTransientUnit", u.Name, modeFail, props, []auxUnit{})
}

// StartUnit starts a unit that PID 1 knows, or has a file of, and waits.
func (m *Manager) StartUnit(ctx context.Context, name string) error {
	return wrap("start", name, m.job(ctx, name, again, "StartUnit", name, modeFail))
}

const stopMethod = "StopUnit"

// Stop stops a unit and waits until it has stopped. One that is not loaded is
// stopped. When ctx ends only the wait does: the unit will be stopped all the same.
func (m *Manager) Stop(ctx context.Context, name string) error {
	err := m.job(ctx, name, again, stopMethod, name, modeReplace)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return wrap("stop", name, err)
}

// job calls a method that answers with a job of the named unit, and waits for the
// job's end. A result other than done is a *JobError.
func (m *Manager) job(ctx context.Context, name string, d delivery, method string, args ...any) error {
	if err := unit.ValidName(name); err != nil {
		return err // it becomes part of a match rule
	}
	result, err := m.enqueue(ctx, name, d, method, args...)
	switch {
	case errors.Is(err, ErrLost):
		return m.settle(ctx, name, method == stopMethod, err)
	case err != nil:
		return err
	case result == done:
		return nil
	}
	// The state is for the message only; that it cannot be read is no news.
	s, _ := m.State(ctx, name)
	return &JobError{Unit: name, Result: result, State: s}
}

// enqueue sends the call until it was taken, and waits on the connection that it
// was sent on. ErrLost means that the job may have been queued and even be over.
func (m *Manager) enqueue(ctx context.Context, name string, d delivery, method string, args ...any) (string, error) {
	deadline := time.Now().Add(m.patience)
	for p := (pause{}); ; {
		s, err := m.session(ctx)
		if err != nil {
			return "", err
		}
		result, queued, err := m.enqueueOn(ctx, s, name, method, args...)
		switch {
		case m.life.Err() != nil:
			return "", ErrClosed
		case err == nil, queued, time.Now().After(deadline):
			return result, err
		case errors.Is(err, errUndelivered), d == again && errors.Is(err, ErrLost):
		default:
			return "", err
		}
		if err := p.wait(ctx, m.life); err != nil {
			return "", err
		}
	}
}

func (m *Manager) enqueueOn(ctx context.Context, s *session, name, method string, args ...any) (result string, queued bool, err error) {
	w := s.await(name)
	defer s.forget(w)
	c, err := s.call(ctx, busPath, ifManager+"."+method, args...)
	if err != nil {
		return "", false, err
	}
	var job dbus.ObjectPath
	if err := c.Store(&job); err != nil {
		return "", true, fmt.Errorf("read answer of %s: %w", method, err)
	}
	result, err = s.wait(ctx, w, job)
	if ctx.Err() != nil {
		if method != stopMethod { // what was to stop is still to stop
			m.withdraw(ctx, s, job)
		}
		return "", true, fmt.Errorf("wait for job: %w", ctx.Err())
	}
	return result, true, err
}

// withdraw cancels a job that PID 1 has not begun. What it began goes on: to stop
// it is the caller's decision.
func (m *Manager) withdraw(ctx context.Context, s *session, job dbus.ObjectPath) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastLook)
	defer cancel()
	c, err := s.call(ctx, job, ifGet, busName+".Job", "State")
	var state string
	if err != nil || c.Store(&state) != nil || state != "waiting" {
		return
	}
	if _, err := s.call(ctx, job, busName+".Job.Cancel"); err != nil {
		m.log.Warn("cannot cancel a job", "job", job, "err", err)
	}
}

// settle finds out by looking what became of a job whose end was not heard of.
func (m *Manager) settle(ctx context.Context, name string, stop bool, lost error) error {
	for p := (pause{}); ; {
		s, err := m.State(ctx, name)
		switch {
		case err != nil:
			return err
		case s.Job || s.Active == Activating || s.Active == Deactivating:
		case stop && (!s.Loaded() || s.Active == Inactive || s.Active == Failed):
			return nil
		case !stop && s.Active == Active:
			return nil
		case s.Loaded():
			return &JobError{Unit: name, Result: Failed, State: s}
		default:
			return lost
		}
		if err := p.wait(ctx, m.life); err != nil {
			return err
		}
	}
}

// waiter waits for the end of jobs of one unit.
type waiter struct {
	unit string
	ends chan jobEnd
}

type jobEnd struct {
	job    dbus.ObjectPath
	result string
}

func jobRule(unit string) string {
	return "type='signal',sender='" + busName + "',path='" + string(busPath) + "',interface='" + ifManager +
		"',member='JobRemoved',arg2='" + unit + "'"
}

func (s *session) await(unit string) *waiter {
	// A full channel loses an end; whoever waits then looks by itself.
	w := &waiter{unit: unit, ends: make(chan jobEnd, 8)}
	s.mu.Lock()
	s.waiters[w] = struct{}{}
	s.mu.Unlock()
	s.send("AddMatch", jobRule(unit))
	return w
}

func (s *session) forget(w *waiter) {
	s.mu.Lock()
	delete(s.waiters, w)
	s.mu.Unlock()
	s.send("RemoveMatch", jobRule(w.unit))
}

func (s *session) wait(ctx context.Context, w *waiter, job dbus.ObjectPath) (string, error) {
	every := firstLook
	look := time.NewTimer(every)
	defer look.Stop()
	for gone := false; ; {
		select {
		case e := <-w.ends:
			if e.job == job {
				return e.result, nil
			}
		case <-ctx.Done():
			return "", ctx.Err()
		case <-s.conn.Context().Done():
			return "", fmt.Errorf("wait for job: %w", ErrLost)
		case <-look.C:
			if gone {
				return "", fmt.Errorf("wait for job: its end was not signalled: %w", ErrLost)
			}
			_, err := s.call(ctx, job, ifGet, busName+".Job", "State")
			var e dbus.Error
			gone = errors.As(err, &e) && !errors.Is(err, errUndelivered) && !errors.Is(err, ErrLost)
			every = min(2*every, lastLook)
			if gone {
				every = firstLook // the signal may be on its way
			}
			look.Reset(every)
		}
	}
}
