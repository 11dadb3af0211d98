package systemd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/godbus/dbus/v5"
)

// EventKind says what an Event is about.
type EventKind string

// The kinds of event. After Reconnected and Overflow events may be missing, so
// that the reader has to look at everything again.
const (
	UnitRemoved  EventKind = "unit removed" // PID 1 forgot a unit: it ended
	JobRemoved   EventKind = "job removed"  // a job of a unit ended, with Result
	Reload       EventKind = "reload"       // a daemon-reload began (Begin) or ended
	Disconnected EventKind = "disconnected" // the bus or PID 1 is away: Reconnected will follow
	Reconnected  EventKind = "reconnected"  // the bus or PID 1 was away
	Overflow     EventKind = "overflow"     // the reader was too slow
)

// Event is something PID 1 told without being asked.
type Event struct {
	Kind   EventKind
	Unit   string
	Result string
	Begin  bool
}

// watchPrefix begins the names of the units that events are passed for.
const watchPrefix = "gantry-"

// queueLength is how many events a reader may be behind.
const queueLength = 1024

func watchRules() []string {
	from := "type='signal',sender='" + busName + "',path='" + string(busPath) + "',interface='" + ifManager + "',member="
	return []string{
		from + "'UnitRemoved'", from + "'JobRemoved'", from + "'Reloading'",
		"type='signal',sender='org.freedesktop.DBus',interface='org.freedesktop.DBus',member='NameOwnerChanged',arg0='" + busName + "'",
	}
}

// Watch tells of units whose name begins with "gantry-". It makes PID 1 send its
// signals to the bus, for all units, so only a program that stays should call it.
// The channel is closed when ctx ends or the Manager is closed.
func (m *Manager) Watch(ctx context.Context) (<-chan Event, error) {
	w := &watcher{Queue: NewQueue(queueLength)}
	s, err := m.attach(ctx, w)
	if err != nil {
		return nil, fmt.Errorf("watch units: %w", err)
	}
	go m.keep(ctx, s, w)
	return w.Events(), nil
}

// watcher is a reader of events.
type watcher struct {
	*Queue
	mu    sync.Mutex
	renew func() // subscribes again on the connection it is attached to
}

// keep attaches the watcher to one connection after the other.
func (m *Manager) keep(ctx context.Context, s *session, w *watcher) {
	defer w.Close()
	for p := (pause{}); ; {
		if s != nil {
			select {
			case <-ctx.Done():
			case <-m.life.Done():
			case <-s.conn.Context().Done():
			}
			s.detach(w)
		}
		if ctx.Err() != nil || m.life.Err() != nil {
			return
		}
		if s != nil {
			w.Put(Event{Kind: Disconnected})
		}
		next, err := m.attach(ctx, w)
		if err != nil {
			m.log.Warn("cannot watch systemd; trying again", "err", err)
			s = nil
			if p.wait(ctx, m.life) != nil {
				return
			}
			continue
		}
		s, p = next, pause{}
		w.Put(Event{Kind: Reconnected})
	}
}

// attach makes the connection deliver to w. Events may arrive before it returns.
func (m *Manager) attach(ctx context.Context, w *watcher) (*session, error) {
	s, err := m.session(ctx)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	w.renew = func() { m.resubscribe(ctx, s, w) }
	w.mu.Unlock()
	s.mu.Lock()
	s.watchers[w] = struct{}{}
	s.mu.Unlock()
	for _, rule := range watchRules() {
		s.send("AddMatch", rule)
	}
	if _, err := s.call(ctx, busPath, ifManager+".Subscribe"); err != nil && !subscribed(err) {
		s.detach(w)
		return nil, err
	}
	return s, nil
}

func (s *session) detach(w *watcher) {
	s.mu.Lock()
	delete(s.watchers, w)
	last := len(s.watchers) == 0
	s.mu.Unlock()
	for _, rule := range watchRules() {
		s.send("RemoveMatch", rule)
	}
	if last {
		s.conn.Object(busName, busPath).Go(ifManager+".Unsubscribe", dbus.FlagNoReplyExpected, nil)
	}
}

// resubscribe is for a PID 1 that came back on the same bus.
func (m *Manager) resubscribe(ctx context.Context, s *session, w *watcher) {
	if _, err := s.call(ctx, busPath, ifManager+".Subscribe"); err != nil && !subscribed(err) && ctx.Err() == nil {
		m.log.Warn("cannot subscribe to systemd again; connecting anew", "err", err)
		s.conn.Close()
		return
	}
	w.Put(Event{Kind: Reconnected})
}

// subscribed: another watcher of this connection did it, or PID 1 remembered.
func subscribed(err error) bool {
	var e dbus.Error
	return errors.As(err, &e) && e.Name == busName+".AlreadySubscribed"
}

// DeliverSignal implements dbus.SignalHandler. It is called by the connection's
// reader, in order, and does not block.
func (s *session) DeliverSignal(iface, member string, sig *dbus.Signal) {
	if iface == "org.freedesktop.DBus" && member == "NameOwnerChanged" {
		s.ownerChanged(sig.Body)
		return
	}
	if iface != ifManager {
		return
	}
	e, end, ok := event(member, sig.Body)
	if !ok {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.Kind == JobRemoved {
		for w := range s.waiters {
			if w.unit == e.Unit {
				select {
				case w.ends <- end:
				default:
				}
			}
		}
	}
	if e.Kind != Reload && !strings.HasPrefix(e.Unit, watchPrefix) {
		return
	}
	for w := range s.watchers {
		w.Put(e)
	}
}

func (s *session) ownerChanged(body []any) {
	var name, before, now string
	if dbus.Store(body, &name, &before, &now) != nil || name != busName {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range s.watchers {
		if now == "" {
			w.Put(Event{Kind: Disconnected})
			continue
		}
		w.mu.Lock()
		go w.renew() // it calls, and the answer comes through this very goroutine
		w.mu.Unlock()
	}
}

// event reads a signal of PID 1's manager object.
func event(member string, body []any) (Event, jobEnd, bool) {
	var (
		id    uint32
		path  dbus.ObjectPath
		e     Event
		begin bool
	)
	switch member {
	case "JobRemoved":
		e.Kind = JobRemoved
		err := dbus.Store(body, &id, &path, &e.Unit, &e.Result)
		return e, jobEnd{path, e.Result}, err == nil
	case "UnitRemoved":
		e.Kind = UnitRemoved
		err := dbus.Store(body, &e.Unit, &path)
		return e, jobEnd{}, err == nil
	case "Reloading":
		err := dbus.Store(body, &begin)
		return Event{Kind: Reload, Begin: begin}, jobEnd{}, err == nil
	}
	return e, jobEnd{}, false
}
