package systemd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"
)

const (
	busName   = "org.freedesktop.systemd1"
	busPath   = dbus.ObjectPath("/org/freedesktop/systemd1")
	ifManager = busName + ".Manager"
	ifGet     = "org.freedesktop.DBus.Properties.Get"
	ifGetAll  = "org.freedesktop.DBus.Properties.GetAll"

	// maxInFlight keeps below the 128 unanswered calls that a bus allows a
	// connection; the 129th would be an error, not a wait.
	maxInFlight = 64
	// firstPause and lastPause bound the wait between tries.
	firstPause = 10 * time.Millisecond
	lastPause  = 500 * time.Millisecond
)

// delivery says what to do with a call of which the answer was lost.
type delivery int

const (
	once  delivery = iota // report ErrLost
	again                 // send it again: twice is as good as once
)

// session is one connection to the bus, and who waits for signals on it. It is
// never repaired: when it breaks, the Manager makes another.
type session struct {
	conn  *dbus.Conn
	slots chan struct{}

	mu       sync.Mutex
	waiters  map[*waiter]struct{}
	watchers map[*watcher]struct{}
}

// session returns the connection, a new one if the last was lost.
func (m *Manager) session(ctx context.Context) (*session, error) {
	if s := m.live(); s != nil {
		return s, nil
	}
	select {
	case m.dialing <- struct{}{}:
		defer func() { <-m.dialing }()
	case <-ctx.Done():
		return nil, fmt.Errorf("connect to systemd: %w", ctx.Err())
	}
	if s := m.live(); s != nil {
		return s, nil // somebody else was quicker
	}
	deadline := time.Now().Add(m.patience)
	for p := (pause{}); ; {
		s, err := m.dial(ctx)
		switch {
		case m.life.Err() != nil:
			return nil, ErrClosed
		case err == nil:
			m.mu.Lock()
			defer m.mu.Unlock()
			if m.current != nil {
				m.log.Info("connected to the bus again")
			}
			m.current = s
			return s, nil
		case m.first(), time.Now().After(deadline), ctx.Err() != nil:
			return nil, fmt.Errorf("connect to systemd: %w", err)
		}
		if err := p.wait(ctx, m.life); err != nil {
			return nil, fmt.Errorf("connect to systemd: %w", err)
		}
	}
}

func (m *Manager) live() *session {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.current == nil || !m.current.conn.Connected() {
		return nil
	}
	return m.current
}

// first tells that there never was a connection: Dial does not wait for a bus.
func (m *Manager) first() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.current == nil
}

func (m *Manager) dial(ctx context.Context) (*session, error) {
	s := &session{
		slots:    make(chan struct{}, maxInFlight),
		waiters:  map[*waiter]struct{}{},
		watchers: map[*watcher]struct{}{},
	}
	// The connection ends with the Manager; ctx may end only its making. A bus that
	// is being started takes the connection and is silent for a while.
	life, end := context.WithCancel(m.life)
	defer context.AfterFunc(ctx, end)()
	conn, err := dbus.Connect(m.address, dbus.WithContext(life), dbus.WithSignalHandler(s))
	if err != nil {
		end()
		return nil, err
	}
	context.AfterFunc(conn.Context(), end)
	s.conn = conn
	return s, nil
}

// call calls a method of PID 1's manager object. It waits, with a bound, for a bus
// or a PID 1 that is away.
func (m *Manager) call(ctx context.Context, d delivery, method string, args ...any) (*dbus.Call, error) {
	return m.callObject(ctx, d, busPath, ifManager+"."+method, args...)
}

func (m *Manager) callObject(ctx context.Context, d delivery, path dbus.ObjectPath, method string, args ...any) (*dbus.Call, error) {
	deadline := time.Now().Add(m.patience)
	for p := (pause{}); ; {
		s, err := m.session(ctx)
		if err != nil {
			return nil, err
		}
		c, err := s.call(ctx, path, method, args...)
		if err == nil {
			return c, nil
		}
		if m.life.Err() != nil {
			return nil, ErrClosed
		}
		undelivered := errors.Is(err, errUndelivered)
		if !undelivered && (d == once || !errors.Is(err, ErrLost)) || time.Now().After(deadline) {
			return nil, err
		}
		if err := p.wait(ctx, m.life); err != nil {
			return nil, err
		}
	}
}

// errUndelivered: the call did not reach PID 1.
var errUndelivered = errors.New("systemd is not on the bus")

func (s *session) call(ctx context.Context, path dbus.ObjectPath, method string, args ...any) (*dbus.Call, error) {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	c := s.conn.Object(busName, path).CallWithContext(ctx, method, 0, args...)
	if c.Err != nil {
		return nil, classify(ctx, c.Err)
	}
	return c, nil
}

// send calls a method of the bus itself and does not wait for the answer: the bus
// handles a connection's messages in order, so what is sent next finds it done.
func (s *session) send(method, arg string) {
	s.conn.BusObject().Go("org.freedesktop.DBus."+method, dbus.FlagNoReplyExpected, nil, arg)
}

// classify turns an error of a call into one of ours.
func classify(ctx context.Context, err error) error {
	var e dbus.Error
	if !errors.As(err, &e) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("%w: %w", ErrLost, err)
	}
	name, ours := strings.CutPrefix(e.Name, busName+".")
	if ours {
		switch name {
		case "NoSuchUnit", "NoSuchProcess":
			return fmt.Errorf("%w: %w", ErrNotFound, e)
		case "UnitExists":
			return fmt.Errorf("%w: %w", ErrUnitExists, e)
		case "TransactionIsDestructive", "TransactionJobsConflicting":
			return fmt.Errorf("%w: %w", errConflict, e)
		}
		return e
	}
	name, _ = strings.CutPrefix(e.Name, "org.freedesktop.DBus.Error.")
	switch {
	case name == "NoReply", name == "Disconnected":
		// PID 1 left the bus before it answered: it executes itself again.
		return fmt.Errorf("%w: %w", ErrLost, e)
	case name == "ServiceUnknown", name == "NameHasNoOwner", name == "TimedOut",
		name == "LimitsExceeded", strings.HasPrefix(name, "Spawn."):
		return fmt.Errorf("%w: %w", errUndelivered, e)
	}
	return e
}

// pause is the wait between two tries; it doubles each time.
type pause struct{ last time.Duration }

func (p *pause) wait(ctx, life context.Context) error {
	p.last = min(max(2*p.last, firstPause), lastPause)
	t := time.NewTimer(p.last)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-life.Done():
		return ErrClosed
	}
}
