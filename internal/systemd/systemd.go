// Package systemd is the port to PID 1: it starts, stops, signals and looks at
// units over D-Bus. It is the only package that knows D-Bus.
//
// A Manager holds one connection and makes a new one when the bus went away
// (dbus was restarted, or PID 1 executed itself again). A call that was in flight
// then is sent again if sending it twice is harmless, else its effect is read
// from the unit's state; where that tells nothing the error is ErrLost.
//
// A start costs few messages: the end of a job is awaited by a match rule for
// that one unit. Only Watch asks PID 1 for signals about all units.
package systemd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"gantry/internal/unit"
)

// The errors a caller may tell apart.
var (
	// ErrUnitExists: a unit of that name is there already.
	ErrUnitExists = errors.New("unit exists")
	// ErrNotFound: PID 1 does not know the unit, or it has no such process.
	ErrNotFound = errors.New("unit not found")
	// ErrLost: the connection broke while PID 1 worked, and what became of the call
	// cannot be seen any more. The unit may have run and ended.
	ErrLost = errors.New("connection to systemd lost")
	// ErrClosed: the Manager was closed.
	ErrClosed = errors.New("connection to systemd closed")
)

// JobError is a job that ended, but not well.
type JobError struct {
	Unit   string
	Result string // failed, timeout, dependency, canceled, skipped, …
	State  State  // of the unit afterwards; it may be gone by then
}

func (e *JobError) Error() string {
	if e.State.Result != "" && e.State.Result != "success" {
		return fmt.Sprintf("job of %s: %s (unit's result: %s)", e.Unit, e.Result, e.State.Result)
	}
	return fmt.Sprintf("job of %s: %s", e.Unit, e.Result)
}

// State is what PID 1 says of a unit. Load is to be read first: a unit that is
// not loaded answers a Result of success and an exit status of 0 to whoever asks,
// so all that follows Name is empty then.
type State struct {
	Name        string
	Load        string // loaded, not-found, …
	Active      string // active, reloading, inactive, failed, activating, deactivating
	Sub         string
	Description string
	Job         bool // a job is queued or running

	// These are filled by Start and Manager.State, not by Units.
	InvocationID string // 32 hexadecimal digits; "" if it never ran
	Result       string // success, exit-code, signal, oom-kill, timeout, …
	MainPID      int
	ExecCode     int // as in siginfo_t: 1 exited, 2 killed, 3 dumped; 0: it runs, or never ran
	ExecStatus   int // exit code or signal
	ControlGroup string
}

// The words of State.Load and State.Active that code compares with.
const (
	Loaded       = "loaded"
	NotFound     = "not-found"
	Active       = "active"
	Inactive     = "inactive"
	Failed       = "failed"
	Activating   = "activating"
	Deactivating = "deactivating"
)

// Loaded tells whether PID 1 knows the unit.
func (s State) Loaded() bool { return s.Load == Loaded }

// Running tells whether the unit is up or on its way there.
func (s State) Running() bool {
	return s.Loaded() && (s.Active == Active || s.Active == Activating || s.Active == "reloading")
}

// Config of a Manager.
type Config struct {
	Log *slog.Logger
	// Address of the bus; "" is the system's.
	Address string
	// Patience bounds how long a call waits for a bus or a PID 1 that is away, and
	// how long it retries what only a race made fail. 0 means 30 seconds.
	Patience time.Duration
}

const (
	systemBus       = "unix:path=/run/dbus/system_bus_socket"
	defaultPatience = 30 * time.Second
)

// Manager talks to PID 1. It may be used by any number of goroutines.
type Manager struct {
	log      *slog.Logger
	address  string
	patience time.Duration
	life     context.Context // ends with Close
	end      context.CancelFunc

	dialing chan struct{} // held by the one goroutine that connects
	mu      sync.Mutex
	current *session
}

// Dial connects to the bus. The connection lives until Close, not until ctx ends.
func Dial(ctx context.Context, c Config) (*Manager, error) {
	m := &Manager{log: c.Log, address: c.Address, patience: c.Patience, dialing: make(chan struct{}, 1)}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	if m.address == "" {
		m.address = systemBus
	}
	if m.patience <= 0 {
		m.patience = defaultPatience
	}
	m.life, m.end = context.WithCancel(context.WithoutCancel(ctx))
	if _, err := m.session(ctx); err != nil {
		m.end()
		return nil, err
	}
	return m, nil
}

// Close ends the connection; calls in flight return ErrClosed.
func (m *Manager) Close() error {
	m.end()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.current == nil {
		return nil
	}
	if err := m.current.conn.Close(); err != nil {
		return fmt.Errorf("close connection to systemd: %w", err)
	}
	return nil
}

// Kill sends a signal to processes of a unit: "main", "control" or "all".
func (m *Manager) Kill(ctx context.Context, name, who string, signal int) error {
	// Not sent twice: a program may count its signals. It is an error then.
	_, err := m.call(ctx, once, "KillUnit", name, who, int32(signal))
	return wrap("kill", name, err)
}

// SetProperties changes properties of a unit until it ends.
func (m *Manager) SetProperties(ctx context.Context, name string, props []unit.Property) error {
	p, err := properties(props)
	if err != nil {
		return wrap("set properties of", name, err)
	}
	const runtime = true
	_, err = m.call(ctx, again, "SetUnitProperties", name, runtime, p)
	return wrap("set properties of", name, err)
}

// ResetFailed lets PID 1 forget a failed unit. One that is not there is fine.
func (m *Manager) ResetFailed(ctx context.Context, name string) error {
	_, err := m.call(ctx, again, "ResetFailedUnit", name)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return wrap("reset", name, err)
}

func wrap(verb, name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s unit %s: %w", verb, name, err)
}
