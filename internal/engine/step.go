package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"gantry/internal/isolator"
	"gantry/internal/pod"
	"gantry/internal/unit"
)

// step is one thing an operation does, and how it is undone. Both must be
// idempotent: undo also runs for a step that failed half-way, and for one that an
// earlier, killed process may or may not have done.
type step struct {
	name string
	do   func(context.Context) error
	undo func(context.Context) error // nil: nothing to undo
}

// operation is a use case that changes something: steps, in order. Only functions
// that return one make one, and all of these are listed in operations.
type operation struct {
	name  string
	steps []step
}

// operations makes every operation there is, for its steps' names: nothing of
// them is done. A pod that has everything has every step.
func operations() []operation {
	e, p, a := &Engine{}, &pod.Pod{}, &pod.App{}
	return []operation{
		(&making{e: e, p: p, plan: isolator.Plan{Late: make([]unit.Unit, 1)}}).operation(),
		e.appCreation(a, pod.Secret{}),
		(&starting{e: e}).operation(),
		e.update(pod.AppStatus{}, pod.Resources{}, nil),
		e.podUpdate(p, pod.PodResources{}, nil),
		e.appRemoval(p, a),
		e.podStop(p, nil, nil),
		e.podRemoval(p),
	}
}

// FailpointNames lists the boundaries of all steps of all operations, in the order
// in which a pod's life passes them.
func FailpointNames() []string {
	var names []string
	for _, op := range operations() {
		for _, s := range op.steps {
			names = append(names, failpointName(op.name, s.name, before), failpointName(op.name, s.name, after))
		}
	}
	return names
}

// The two boundaries of a step.
const (
	before = "before"
	after  = "after"
)

func failpointName(op, step, when string) string { return op + "/" + step + "/" + when }

// StageError says in which step an operation failed and how long that step took.
type StageError struct {
	Op, Stage string
	Took      time.Duration
	Err       error
}

func (e *StageError) Error() string {
	return fmt.Sprintf("%s: %s: %v (after %s)", e.Op, e.Stage, e.Err, round(e.Took))
}

func (e *StageError) Unwrap() error { return e.Err }

// position is the step at which an operation is that others wait for.
type position struct {
	mu    sync.Mutex
	step  string
	began time.Time
}

// positionKey is that of a context's position.
type positionKey struct{}

func (p *position) enter(step string, began time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.step, p.began = step, began
}

// text goes on a sentence. It is "" before the first step.
func (p *position) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.step == "" {
		return ""
	}
	return fmt.Sprintf(", at %q for %s", p.step, round(time.Since(p.began)))
}

// undoTime bounds the undoing of one step.
const undoTime = time.Minute

// run does the steps in order. When one fails, it and those before it are undone
// in reverse order; what cannot be undone is left to gc and told.
func (e *Engine) run(ctx context.Context, op operation) error {
	for i, s := range op.steps {
		began := time.Now()
		if at, ok := ctx.Value(positionKey{}).(*position); ok {
			at.enter(op.name+": "+s.name, began)
		}
		err := e.failpoint(op.name, s.name, before)
		if err == nil {
			err = s.do(ctx)
		}
		if err == nil {
			err = e.failpoint(op.name, s.name, after)
		}
		took := time.Since(began)
		e.log.Debug("step", "op", op.name, "step", s.name, "took", took, "err", err)
		if err != nil {
			err = &StageError{Op: op.name, Stage: s.name, Took: took, Err: err}
			return also(err, e.undo(ctx, op.name, op.steps[:i+1]))
		}
	}
	return nil
}

func (e *Engine) undo(ctx context.Context, op string, steps []step) error {
	var errs []error
	for i := len(steps) - 1; i >= 0; i-- {
		if steps[i].undo == nil {
			continue
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		if err := steps[i].undo(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: undo %s: %w", op, steps[i].name, err))
		}
		cancel()
	}
	return errors.Join(errs...)
}

// also adds to an error what went wrong afterwards, while things were put right: the
// text only. What a caller branches on is why it failed, not what the clean-up met.
func also(err error, after ...error) error {
	later := errors.Join(after...)
	if err == nil || later == nil {
		return errors.Join(err, later)
	}
	return errors.Join(err, unkind(later))
}

// Failpoints make an operation fail, or the program die, at a boundary between
// two steps: "create pod/network/after" -> "kill", "error" or "sleep 3s". Tests
// use them; without any they cost a map look-up.
type Failpoints map[string]string

// ParseFailpoints reads "NAME=ACTION;NAME=ACTION". What it does not know it
// refuses: a test that misspells a name would pass without testing anything.
func ParseFailpoints(s string) (Failpoints, error) {
	f := Failpoints{}
	for part := range strings.SplitSeq(s, ";") {
		if part == "" {
			continue
		}
		name, action, ok := strings.Cut(part, "=")
		if !ok || !slices.Contains(FailpointNames(), name) {
			return nil, fmt.Errorf("failpoint %q: want NAME=ACTION, with a name that gantry internal failpoints lists", part)
		}
		verb, arg, _ := strings.Cut(action, " ")
		_, err := time.ParseDuration(arg)
		if verb != "kill" && verb != "error" && (verb != "sleep" || err != nil) {
			return nil, fmt.Errorf("failpoint %q: want kill, error or sleep DURATION", part)
		}
		f[name] = action
	}
	return f, nil
}

var errFailpoint = errors.New("failpoint")

func (e *Engine) failpoint(op, step, when string) error {
	action, ok := e.cfg.Failpoints[failpointName(op, step, when)]
	if !ok {
		return nil
	}
	verb, arg, _ := strings.Cut(action, " ")
	switch verb {
	case "kill":
		if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
			return err
		}
		select {}
	case "sleep":
		d, err := time.ParseDuration(arg)
		if err != nil {
			return fmt.Errorf("%w: %w", errFailpoint, err)
		}
		time.Sleep(d)
		return nil
	default:
		return fmt.Errorf("%w %s", errFailpoint, failpointName(op, step, when))
	}
}
