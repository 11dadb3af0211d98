// Package external is an isolator that is an executable of a third party. It is called with
// a verb, gets a request on its standard input and answers on its standard output; both are
// JSON with a version. What it answers is checked, and what it may decide is what is put
// around an app, or is all of it: the unit, its limits, stdio and the record of the end
// are Gantry's own, as for every isolator.
//
//	words.go    requests and answers: the contract with third parties
//	request.go  a pod and an app in these words
//	decode.go   what of an answer is taken
//	plan.go     an answer as a plan
//	call.go     one call of the executable
//	find.go     which files are isolators
//	check.go    the checks of "gantry isolator check"
package external

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"gantry/internal/isolator"
	"gantry/internal/isolator/fly"
	"gantry/internal/isolator/recipe"
	"gantry/internal/pod"
	"gantry/internal/unit"
)

// Config holds what is fixed per node.
type Config struct {
	// Init is the path of gantry-init.
	Init string
	// StdioSocket is gantry-stdio's; "" leaves apps the unit's stdio (the journal).
	StdioSocket string
	// AppArmorDefault is the name of the profile of apps that ask for the node's
	// default, "" is none.
	AppArmorDefault string
	// SELinux is set where SELinux is on. An app that asks for a label is refused there.
	SELinux bool
	// Arch is the machine's architecture, in Go's words; "" is this program's.
	Arch string
	// Owner is who must own an executable.
	Owner uint32
	// AnyOwner takes executables of everybody, to try them.
	AnyOwner bool
	// Limit is how long one call may take; 0 is 30 s.
	Limit time.Duration
}

// External is the isolator.
type External struct {
	path   string
	cfg    Config
	refuse error // why the file is not taken, found when it was listed
	inside *fly.Fly

	mu    sync.Mutex
	known *known
}

// known is what a file has answered about itself, as long as it is that file.
type known struct {
	file     identity
	features isolator.Features
}

var _ isolator.Isolator = (*External)(nil)

const usualLimit = 30 * time.Second

// New returns the isolator that is at path. Nothing is executed before it is needed.
func New(path string, c Config) (*External, error) {
	if c.Limit == 0 {
		c.Limit = usualLimit
	}
	inside, err := fly.New(fly.Config{
		Init: c.Init, StdioSocket: c.StdioSocket, AppArmorDefault: c.AppArmorDefault, SELinux: c.SELinux, Arch: c.Arch,
	})
	if err != nil {
		return nil, err
	}
	return &External{path: path, cfg: c, inside: inside}, nil
}

// Name is that of the file.
func (x *External) Name() string { return filepath.Base(x.path) }

// Source is the file.
func (x *External) Source() string { return x.path }

// Usable tells why it cannot be used, nil if it can.
func (x *External) Usable() error {
	_, err := x.features()
	return err
}

// Features are what the executable says. Of one that cannot be used nothing is known: it
// has none, and nobody may take it for a weak one.
func (x *External) Features() isolator.Features {
	f, err := x.features()
	if err != nil {
		return isolator.Features{Isolation: isolator.IsolationMachine}
	}
	return f
}

// features asks once for each file: one that was replaced is asked again.
func (x *External) features() (isolator.Features, error) {
	file, err := x.verify()
	if err != nil {
		return isolator.Features{}, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.known != nil && x.known.file == file {
		return x.known.features, nil
	}
	answer, err := x.ask(request{Verb: verbFeatures}, never)
	if err != nil {
		return isolator.Features{}, err
	}
	f := answer.Features.domain()
	x.known = &known{file, f}
	return f, nil
}

func (x *External) recipe() (recipe.Recipe, error) {
	f, err := x.features()
	return recipe.Recipe{Features: f, Init: x.cfg.Init, StdioSocket: x.cfg.StdioSocket}, err
}

// MainIsAround is for the stop signal: what stands around an app need not hand it on.
func (x *External) MainIsAround() bool { return true }

// Sandbox plans a pod, as for all isolators whose apps are in the host's units. The
// executable may refuse it.
func (x *External) Sandbox(in isolator.Sandbox) (isolator.Plan, error) {
	r, err := x.recipe()
	if err != nil {
		return isolator.Plan{}, fmt.Errorf("plan pod: %w", err)
	}
	if in.Pod != nil && r.Features.Isolation == isolator.IsolationNone {
		in.Pod = onHost(in.Pod)
	}
	plan, err := r.Sandbox(in)
	if err != nil {
		return isolator.Plan{}, err
	}
	if _, err := x.ask(request{Verb: verbSandbox, Pod: podWords(in.Pod, in.Dir)}, never); err != nil {
		return isolator.Plan{}, fmt.Errorf("plan pod: %w", err)
	}
	return plan, nil
}

func onHost(p *pod.Pod) *pod.Pod {
	host := *p
	host.Namespaces = isolator.OnHost(p.Namespaces)
	return &host
}

// Resources turns limits into what changes a running app's.
func (x *External) Resources(r pod.Resources) ([]unit.Property, []isolator.CgroupFile, error) {
	return recipe.Resources(r)
}

// Cleanup has the executable undo what it made for a pod.
func (x *External) Cleanup(ctx context.Context, p *pod.Pod) error {
	return x.undo(ctx, request{Verb: verbCleanup, Pod: podWords(p, isolator.Dirs{})})
}

// Forget has the executable undo what it made for an app, of which no process is left.
func (x *External) Forget(ctx context.Context, app pod.ID) error {
	return x.undo(ctx, request{Verb: verbCleanup, App: &App{ID: string(app)}})
}

// undo tells apart that the executable failed, which may be better the next time, and that
// there is none that may be asked.
func (x *External) undo(ctx context.Context, r request) error {
	if _, err := x.verify(); err != nil {
		return fmt.Errorf("%w: %w", isolator.ErrCannotUndo, err)
	}
	_, err := x.ask(r, ends(ctx))
	return err
}
