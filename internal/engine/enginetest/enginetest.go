// Package enginetest holds a Fake engine for tests of adapters: pods and apps live
// in memory, and programs are functions.
package enginetest

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"gantry/internal/engine"
	"gantry/internal/image"
	"gantry/internal/network"
	"gantry/internal/pod"
)

// Program is what Exec runs in place of a command.
type Program func(ctx context.Context, argv []string, s engine.Streams) (int, error)

// Fake is an engine in memory. Its zero value is ready to use.
type Fake struct {
	// Programs by argv[0]. An unknown one ends with 127.
	Programs map[string]Program
	// Dial connects a forwarded port; nil echoes.
	Dial func(ctx context.Context, id pod.ID, port uint16, stream io.ReadWriteCloser) error
	// Stats changes the numbers of apps and pods; nil leaves them.
	Stats func(*engine.Stats)
	// Fail is asked before each operation, named like the method.
	Fail func(op string) error

	mu       sync.Mutex
	readyErr error
	pods     map[pod.ID]*pod.PodStatus
	specs    map[pod.ID]engine.AppSpec
	clock    time.Time
	calls    []string
}

var _ engine.API = (*Fake)(nil)

// now never stands still, so that times tell the order.
func (f *Fake) now() time.Time {
	if f.clock.IsZero() {
		f.clock = time.Unix(1_700_000_000, 0)
	}
	f.clock = f.clock.Add(time.Microsecond + time.Nanosecond)
	return f.clock
}

func (f *Fake) op(format string, args ...any) error {
	call := fmt.Sprintf(format, args...)
	f.mu.Lock()
	f.calls = append(f.calls, call)
	f.mu.Unlock()
	if f.Fail == nil {
		return nil
	}
	var name string
	fmt.Sscan(call, &name)
	return f.Fail(name)
}

// Calls tells which operations were asked for.
func (f *Fake) Calls() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

// SetReady makes Ready answer with err.
func (f *Fake) SetReady(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.readyErr = err
}

// Ready implements engine.API.
func (f *Fake) Ready() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.readyErr
}

// CreatePod implements engine.API.
func (f *Fake) CreatePod(_ context.Context, p pod.Pod) (*pod.Pod, error) {
	if err := f.op("CreatePod %s/%s", p.Namespace, p.Name); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, have := range f.pods {
		if have.Owner == p.Owner && have.Namespace == p.Namespace && have.Name == p.Name && have.UID == p.UID && have.Attempt == p.Attempt {
			return have.Pod, nil
		}
	}
	p.ID, p.Created, p.Isolator = pod.NewID(), f.now(), "oci"
	s := &pod.PodStatus{Pod: &p, Ready: true}
	if !p.HostNetwork() {
		s.IPs = []string{"10.0.0.2", "fd00::2"}
	}
	if f.pods == nil {
		f.pods, f.specs = map[pod.ID]*pod.PodStatus{}, map[pod.ID]engine.AppSpec{}
	}
	f.pods[p.ID] = s
	return &p, nil
}

// StopPod implements engine.API.
func (f *Fake) StopPod(ctx context.Context, id pod.ID) error {
	if err := f.op("StopPod %s", id); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if s := f.pods[id]; s != nil {
		for i := range s.Apps {
			f.end(&s.Apps[i], 137, 9, pod.ReasonError)
		}
		s.Ready, s.IPs = false, nil
	}
	return nil
}

// RemovePod implements engine.API.
func (f *Fake) RemovePod(ctx context.Context, id pod.ID) error {
	if err := f.op("RemovePod %s", id); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.pods, id)
	return nil
}

// ImagesOf implements engine.API.
func (f *Fake) ImagesOf(owner pod.Owner) (map[string]bool, error) {
	pods, err := f.Pods(engine.Filter{Owner: owner})
	used := map[string]bool{}
	for _, p := range pods {
		for _, a := range p.Apps {
			used[a.Image.ID] = true
			for _, m := range a.Mounts {
				if m.Image != nil {
					used[m.Image.ID] = true
				}
			}
		}
	}
	return used, err
}

// Pod implements engine.API.
func (f *Fake) Pod(id pod.ID) (pod.PodStatus, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s := f.pods[id]; s != nil {
		return clone(s), nil
	}
	return pod.PodStatus{}, fmt.Errorf("pod %s: %w", id, pod.ErrNotFound)
}

func clone(s *pod.PodStatus) pod.PodStatus {
	out := *s
	out.Apps = slices.Clone(s.Apps)
	return out
}

// Pods implements engine.API.
func (f *Fake) Pods(want engine.Filter) ([]pod.PodStatus, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []pod.PodStatus
	for _, id := range slices.Sorted(maps.Keys(f.pods)) {
		s := f.pods[id]
		if want.Owner != "" && s.Owner != want.Owner || want.ID != "" && s.ID != want.ID {
			continue
		}
		out = append(out, clone(s))
	}
	return out, nil
}

// CreateApp implements engine.API.
func (f *Fake) CreateApp(_ context.Context, podID pod.ID, spec engine.AppSpec) (*pod.App, error) {
	if err := f.op("CreateApp %s", spec.Name); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.pods[podID]
	if s == nil {
		return nil, fmt.Errorf("pod %s: %w", podID, pod.ErrNotFound)
	}
	if !s.Ready {
		return nil, fmt.Errorf("pod %s is not ready: %w", podID, pod.ErrState)
	}
	app := &pod.App{
		ID: pod.NewID(), Pod: podID, Name: spec.Name, Attempt: spec.Attempt, Created: f.now(),
		Labels: spec.Labels, Annotations: spec.Annotations,
		Image:  pod.Image{ID: spec.Image, Ref: "example.org/app@" + spec.Image, Name: spec.UserImage},
		Argv:   append(slices.Clone(spec.Command), spec.Args...),
		Mounts: resolved(spec.Mounts), LogPath: spec.LogPath, TTY: spec.TTY, Stdin: spec.Stdin,
		StopSignal: 15, Security: spec.Security, Resources: spec.Resources, Namespaces: spec.Namespaces,
	}
	app.Security.UID, app.Security.GID, app.Security.Groups = id(spec.User), id(spec.Group), spec.Groups
	s.Apps = append(s.Apps, pod.AppStatus{App: app, Phase: pod.Prepared, Current: app.Resources})
	f.specs[app.ID] = spec
	return app, nil
}

// resolved are mounts whose images have been looked up.
func resolved(in []pod.Mount) []pod.Mount {
	out := slices.Clone(in)
	for i, m := range out {
		if m.Image != nil {
			image := *m.Image
			image.Ref = "example.org/volume@" + image.ID
			out[i].Image = &image
		}
	}
	return out
}

// id is that of a user or group; names are unknown here, and root.
func id(s string) uint32 {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return 0
	}
	return uint32(n)
}

// Spec gives back what CreateApp was asked for.
func (f *Fake) Spec(id pod.ID) engine.AppSpec {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.specs[id]
}

// app is called with the lock held.
func (f *Fake) app(id pod.ID) (*pod.AppStatus, error) {
	for _, s := range f.pods {
		for i := range s.Apps {
			if s.Apps[i].ID == id {
				return &s.Apps[i], nil
			}
		}
	}
	return nil, fmt.Errorf("app %s: %w", id, pod.ErrNotFound)
}

// StartApp implements engine.API.
func (f *Fake) StartApp(_ context.Context, id pod.ID) error {
	if err := f.op("StartApp %s", id); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	a, err := f.app(id)
	if err != nil {
		return err
	}
	if a.Phase != pod.Prepared {
		return fmt.Errorf("start app %s: it is %s: %w", id, a.Phase, pod.ErrState)
	}
	a.Phase, a.Started, a.PID = pod.Running, f.now(), 4242
	return nil
}

// End makes an app exit by itself.
func (f *Fake) End(id pod.ID, code, signal int, reason string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if a, err := f.app(id); err == nil {
		f.end(a, code, signal, reason)
	}
}

func (f *Fake) end(a *pod.AppStatus, code, signal int, reason string) {
	if a.Phase != pod.Running {
		return
	}
	a.Phase, a.Finished, a.PID = pod.Exited, f.now(), 0
	a.Exit = &pod.Exit{Code: code, Signal: signal, Reason: reason, Finished: a.Finished, Started: a.Started}
	if signal != 0 {
		a.Exit.Message = fmt.Sprintf("signal %d", signal)
	}
}

// StopApp implements engine.API.
func (f *Fake) StopApp(_ context.Context, id pod.ID, grace time.Duration) error {
	if err := f.op("StopApp %s %s", id, grace); err != nil {
		return err
	}
	f.End(id, 143, 15, pod.ReasonError)
	return nil
}

// RemoveApp implements engine.API.
func (f *Fake) RemoveApp(_ context.Context, id pod.ID) error {
	if err := f.op("RemoveApp %s", id); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.pods {
		s.Apps = slices.DeleteFunc(s.Apps, func(a pod.AppStatus) bool { return a.ID == id })
	}
	return nil
}

// App implements engine.API.
func (f *Fake) App(id pod.ID) (pod.AppStatus, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a, err := f.app(id)
	if err != nil {
		return pod.AppStatus{}, err
	}
	return *a, nil
}

// UpdatePod implements engine.API.
func (f *Fake) UpdatePod(_ context.Context, id pod.ID, r pod.PodResources) error {
	if err := f.op("UpdatePod %s", id); err != nil {
		return err
	}
	if _, err := f.Pod(id); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pods[id].PodResources = r
	return nil
}

// UpdateApp implements engine.API. Only memory and CPU shares are merged.
func (f *Fake) UpdateApp(_ context.Context, id pod.ID, r pod.Resources) error {
	if err := f.op("UpdateApp %s", id); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	a, err := f.app(id)
	if err != nil {
		return err
	}
	if r.Memory != 0 {
		a.Current.Memory = r.Memory
	}
	if r.CPUShares != 0 {
		a.Current.CPUShares = r.CPUShares
	}
	return nil
}

// Exec implements engine.API.
func (f *Fake) Exec(ctx context.Context, id pod.ID, p pod.Process, s engine.Streams) (int, error) {
	if err := f.op("Exec %s %q", id, p.Argv); err != nil {
		return 0, err
	}
	run, ok := f.Programs[p.Argv[0]]
	if !ok {
		return 127, nil
	}
	code, err := run(ctx, p.Argv, s)
	f.op("ExecEnd %s %q", id, p.Argv)
	return code, err
}

// Attach implements engine.API: it greets, then sends back what it gets.
func (f *Fake) Attach(ctx context.Context, id pod.ID, s engine.Streams) error {
	if err := f.op("Attach %s", id); err != nil {
		return err
	}
	if s.Stdout != nil {
		fmt.Fprintf(s.Stdout, "attached to %s\n", id)
	}
	if s.Stdin == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	_, err := io.Copy(s.Stdout, s.Stdin)
	return err
}

// PortForward implements engine.API.
func (f *Fake) PortForward(ctx context.Context, podID pod.ID, port uint16, stream io.ReadWriteCloser) error {
	if err := f.op("PortForward %s %d", podID, port); err != nil {
		return err
	}
	if f.Dial != nil {
		return f.Dial(ctx, podID, port, stream)
	}
	_, err := io.Copy(stream, stream)
	return err
}

// ReopenLog implements engine.API.
func (f *Fake) ReopenLog(_ context.Context, id pod.ID) error { return f.op("ReopenLog %s", id) }

// Changed implements engine.API. Something may always have changed.
func (f *Fake) Changed() <-chan struct{} {
	ch := make(chan struct{})
	time.AfterFunc(time.Millisecond, func() { close(ch) })
	return ch
}

// CheckpointApp writes an empty archive.
func (f *Fake) CheckpointApp(_ context.Context, id pod.ID, to string, limit time.Duration) error {
	if err := f.op("CheckpointApp %s %s", id, limit); err != nil {
		return err
	}
	if _, err := f.App(id); err != nil {
		return err
	}
	return os.WriteFile(to, nil, 0o600)
}

// Images implements engine.API; the Fake has none.
func (f *Fake) Images() *image.Store { return nil }

// Network implements engine.API; the Fake has none.
func (f *Fake) Network() *network.Network { return nil }

// GC implements engine.API.
func (f *Fake) GC(context.Context, engine.GCOptions) (engine.GCReport, error) {
	return engine.GCReport{}, f.op("GC")
}
