// Package engine holds the use cases of Gantry: what happens, in which order, to
// create, start, stop, inspect and remove pods and apps, and how each step is
// undone. The CLI and the CRI server are thin adapters over it.
package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"gantry/internal/image"
	"gantry/internal/isolator"
	"gantry/internal/network"
	"gantry/internal/pod"
	"gantry/internal/podstore/writer"
	"gantry/internal/stdio"
	"gantry/internal/systemd"
	"gantry/internal/unit"
)

// Manager is what the engine needs of PID 1.
type Manager interface {
	Launch(ctx context.Context, u unit.Unit, aux ...unit.Unit) error
	Stop(ctx context.Context, name string) error
	Kill(ctx context.Context, name, who string, signal int) error
	State(ctx context.Context, name string) (systemd.State, error)
	Units(ctx context.Context, patterns ...string) ([]systemd.State, error)
	SetProperties(ctx context.Context, name string, props []unit.Property) error
	Watch(ctx context.Context) (<-chan systemd.Event, error)
}

// Config of an Engine. Root, Run, Systemd, Images, Network and Isolators are
// needed; the rest has defaults.
type Config struct {
	Root string // /var/lib/gantry
	Run  string // /run/gantry
	Log  *slog.Logger

	Systemd   Manager
	Images    *image.Store
	Network   *network.Network
	Stdio     stdio.Client
	Isolators []isolator.Isolator
	// Isolator is the node's default.
	Isolator string

	// Init is the path of gantry-init.
	Init string
	// HostPathHelper is a gantry-init that looks up paths of the host which may be on
	// dead file systems; "" looks in this process.
	HostPathHelper string
	// Cgroups is where the cgroup file system is; "" is /sys/fs/cgroup.
	Cgroups string
	// OwnCgroup is a cgroup in which this program may make others, "" for none.
	OwnCgroup string
	// Handlers are further names of isolators: what a RuntimeClass calls them.
	Handlers map[string]string
	Weaker   Weaker
	// Sys is where the kernel tells of the machine; "" is /sys.
	Sys string
	// Proc is where it tells of processes; "" is /proc.
	Proc string
	// CDIDirs are where the Container Device Interface's specifications are.
	CDIDirs []string
	// AppArmorDefault is the profile of apps that ask for the default one; "" and
	// "unconfined" are none.
	AppArmorDefault string
	// JournalMirror copies apps' output to the journal.
	JournalMirror bool
	Failpoints    Failpoints
}

// Engine runs the use cases. It may be used by many goroutines, and many engines
// may work on one machine: what excludes them is a lock on a pod's directory.
type Engine struct {
	cfg    Config
	log    *slog.Logger
	store  *writer.Writer
	down   *Teardown
	iso    map[string]isolator.Isolator
	bootID string

	weaker atomic.Pointer[Weaker]

	view   view
	images imageCache
	exits  exitWatch
	joins  joins
	stops  stops
	hung   hungExecs
	usage  *usage
	paths  hostPaths
	peaks  peaks

	readings readings

	life context.Context // ends with Close
	end  context.CancelFunc
}

var _ API = (*Engine)(nil)

// New opens the state on disk. It starts nothing and watches nothing: Watch does.
func New(ctx context.Context, cfg Config) (*Engine, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Sys == "" {
		cfg.Sys = "/sys"
	}
	if cfg.Proc == "" {
		cfg.Proc = "/proc"
	}
	if cfg.Cgroups == "" {
		cfg.Cgroups = "/sys/fs/cgroup"
	}
	store, err := writer.Open(cfg.Root)
	if err != nil {
		return nil, err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("read boot id: %w", err)
	}
	e := &Engine{
		cfg: cfg, log: cfg.Log, store: store, iso: map[string]isolator.Isolator{},
		bootID: strings.TrimSpace(string(boot)), down: &Teardown{store, cfg.Network, cfg.Run},
	}
	e.life, e.end = context.WithCancel(context.WithoutCancel(ctx))
	e.usage = newUsage(e.life)
	e.weaker.Store(&cfg.Weaker)
	e.joins.log = e.log
	e.paths.helper, e.paths.limit = cfg.HostPathHelper, hostPathLimit
	e.view.entries = map[pod.ID]*entry{}
	e.view.owner = map[pod.ID]pod.ID{}
	for _, i := range cfg.Isolators {
		if e.iso[i.Name()] == nil { // the first of a name has it
			e.iso[i.Name()] = i
		}
	}
	if e.iso[cfg.Isolator] == nil {
		return nil, fmt.Errorf("default isolator %q: %w", cfg.Isolator, pod.ErrNotFound)
	}
	if name := cfg.Weaker.Default; name != "" && e.iso[name] == nil && cfg.Handlers[name] == "" {
		return nil, fmt.Errorf("isolator.weaker-default: isolator %q: %w", name, pod.ErrNotFound)
	}
	for name, to := range cfg.Handlers {
		if e.iso[to] == nil {
			return nil, fmt.Errorf("handler %s: isolator %q: %w", name, to, pod.ErrNotFound)
		}
		if e.iso[name] != nil {
			return nil, fmt.Errorf("handler %s: is an isolator's name: %w", name, pod.ErrExists)
		}
	}
	for _, dir := range []string{"pods", "exits", "exec", "rootfs"} {
		if err := os.MkdirAll(filepath.Join(cfg.Run, dir), 0o711); err != nil {
			return nil, fmt.Errorf("make run directory: %w", err)
		}
	}
	if err := makeImageDir(filepath.Join(cfg.Run, "images")); err != nil {
		return nil, fmt.Errorf("make run directory: %w", err)
	}
	return e, nil
}

// makeImageDir makes the directory that images are mounted below. A set-user-ID program
// of an image must not be one of the host's users' to run.
func makeImageDir(path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() == 0o700 {
		return err
	}
	return ignore(os.Chmod(path, 0o700), fs.ErrPermission) // a reader's
}

// Close ends what the engine watches. It touches no pod.
func (e *Engine) Close() error {
	e.end()
	e.exits.close()
	return nil
}

// Images gives the image store.
func (e *Engine) Images() *image.Store { return e.cfg.Images }

// Network gives the pod network.
func (e *Engine) Network() *network.Network { return e.cfg.Network }

// Features lists the isolators and what they honour; the default's name is first.
func (e *Engine) Features() []IsolatorFeatures {
	usual := e.iso[e.cfg.Isolator]
	type named struct {
		name string
		iso  isolator.Isolator
	}
	all := []named{{usual.Name(), usual}}
	for _, i := range e.cfg.Isolators {
		if i != usual {
			all = append(all, named{i.Name(), i})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(e.cfg.Handlers)) {
		all = append(all, named{name, e.iso[e.cfg.Handlers[name]]})
	}
	out := make([]IsolatorFeatures, len(all))
	var asked sync.WaitGroup
	for i, n := range all { // at once: some may hang until their time is over
		asked.Go(func() { out[i] = featuresOf(n.name, n.iso) })
	}
	asked.Wait()
	return out
}

func featuresOf(name string, i isolator.Isolator) IsolatorFeatures {
	out := IsolatorFeatures{Name: name, Isolator: i.Name()}
	if f, ok := i.(foreign); ok {
		if out.Source, out.Broken = f.Source(), f.Usable(); out.Broken != nil {
			return out
		}
	}
	out.Features = i.Features()
	if c, ok := i.(conditional); ok {
		out.Off, out.Broken = c.Off(), c.Missing()
	}
	return out
}

// IsolatorFeatures is a name that chooses an isolator, the isolator, and what that honours.
type IsolatorFeatures struct {
	Name     string
	Isolator string
	Features isolator.Features
	// Source is the file that it is; "" for one of this program.
	Source string
	// Broken tells why it cannot be used, nil if it can. If it is a file, its features are not
	// known then.
	Broken error
	// Off tells that the operator has not switched it on.
	Off bool
}

func (e *Engine) runDir(id pod.ID) string { return podRunDir(e.cfg.Run, id) }

func podRunDir(run string, id pod.ID) string { return filepath.Join(run, "pods", string(id)) }

// joins lets a repeated call wait for the one that is under way.
type joins struct {
	log   *slog.Logger
	mu    sync.Mutex
	calls map[string]*joined
}

type joined struct {
	done chan struct{}
	err  error
	id   pod.ID
	at   position
	// waiting is how many callers do. left: the last one went away before its time was over,
	// and will hardly ask again.
	waiting int
	left    bool
}

// do runs f once for all who ask for the same key at the same time. A caller whose
// ctx ends leaves alone; the work goes on for the others, and for its retry.
func (j *joins) do(ctx context.Context, key string, f func(context.Context) (pod.ID, error)) (pod.ID, error) {
	j.mu.Lock()
	if j.calls == nil {
		j.calls = map[string]*joined{}
	}
	c, ok := j.calls[key]
	if !ok {
		c = &joined{done: make(chan struct{})}
		j.calls[key] = c
		go func() {
			c.err = noPanic(j.log, key, func() (err error) {
				c.id, err = f(context.WithValue(context.WithoutCancel(ctx), positionKey{}, &c.at))
				return err
			})
			j.mu.Lock()
			delete(j.calls, key)
			j.mu.Unlock()
			close(c.done)
		}()
	}
	c.waiting, c.left = c.waiting+1, false
	j.mu.Unlock()
	select {
	case <-c.done:
		return c.id, c.err
	case <-ctx.Done():
		j.mu.Lock()
		c.waiting--
		c.left = c.waiting == 0 && !timeIsUp(ctx)
		j.mu.Unlock()
		return "", fmt.Errorf("%s: still under way%s, a retry joins it: %w", key, c.at.text(), ctx.Err())
	}
}

// timeIsUp tells that who has cancelled a call did so for its deadline, which a client may
// see a moment earlier than we do.
func timeIsUp(ctx context.Context) bool {
	const moment = time.Second
	deadline, ok := ctx.Deadline()
	return ok && time.Until(deadline) < moment
}

// wanted tells whether somebody waits for a call, or will ask again.
func (j *joins) wanted(key string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	c, ok := j.calls[key]
	return ok && !c.left
}

// noPanic makes an error of a panic: f runs in a goroutine of its own, where nothing
// else keeps it from ending the whole program.
func noPanic(log *slog.Logger, what string, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			log.Error("operation panicked", "op", what, "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("%s: %w: %v", what, pod.ErrInternal, p)
		}
	}()
	return f()
}

// wait waits for the end of a call, if it is under way.
func (j *joins) wait(ctx context.Context, key string) error {
	j.mu.Lock()
	c, ok := j.calls[key]
	j.mu.Unlock()
	if !ok {
		return nil
	}
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s: still under way: %w", key, ctx.Err())
	}
}

// ignore drops errors of one kind.
func ignore(err, kind error) error {
	if errors.Is(err, kind) {
		return nil
	}
	return err
}

// round makes a duration fit for an error.
func round(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

// opTime bounds an operation that goes on after its caller has left.
const opTime = 4 * time.Minute
