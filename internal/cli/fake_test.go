package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"gantry/internal/engine"
	"gantry/internal/image"
	"gantry/internal/isolator"
	"gantry/internal/network"
	"gantry/internal/pod"
	"gantry/internal/unit"
)

// fakeEngine keeps its state in a file, so that one test script can run gantry
// many times. Apps are no processes; what they do is said by their argv:
//
//	echo WORD...      print, exit 0          err WORD...       the same on stderr
//	fail N            exit N                 oom               be killed for memory
//	sleep             run until stopped      stubborn          run until killed
//	cat               copy the stdin of the first attach, exit 0
//	missing           cannot be started
type fakeEngine struct {
	root  string
	store images
}

var _ Engine = (*fakeEngine)(nil)

// ImagesOf is kubelet's: no command asks for it.
func (f *fakeEngine) ImagesOf(pod.Owner) (map[string]bool, error) { return nil, errors.ErrUnsupported }

// Features are those of an isolator that honours all, and of one that honours little.
func (f *fakeEngine) Features() []engine.IsolatorFeatures {
	all := isolator.Features{
		Isolation: isolator.IsolationNamespaces, PodNetwork: true, HostNetwork: true, HostPID: true, HostIPC: true, UserNamespaces: true,
		SharedPID: true, Privileged: true, RecursiveReadOnlyMounts: true, BidirectionalMounts: true, ImageVolumes: true, MountOptions: true,
		TTY: true, Devices: true, Hooks: true,
	}
	return []engine.IsolatorFeatures{
		{Name: "oci", Isolator: "oci", Features: all},
		{Name: "bare", Isolator: "bare", Features: isolator.Features{HostNetwork: true, TTY: true}, Source: "/etc/gantry/isolators/bare"},
		{Name: "bad", Isolator: "bad", Source: "/etc/gantry/isolators/bad", Broken: errors.New("isolator bad: features: sorry")},
		{Name: "kvm", Isolator: "kvm", Features: isolator.Features{Isolation: isolator.IsolationMachine}, Off: true, Broken: errors.New("switched off")},
		{Name: "kata", Isolator: "kata", Features: isolator.Features{Isolation: isolator.IsolationMachine}, Broken: errors.New("no /dev/kvm")},
		{Name: "runc", Isolator: "oci", Features: all},
	}
}

type fakeState struct {
	Next   int
	Clock  time.Time
	Pods   []pod.PodStatus
	Images []*image.Image
}

// change runs f on the state, alone.
func (f *fakeEngine) change(do func(*fakeState) error) error {
	lock, err := os.OpenFile(filepath.Join(f.root, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return err
	}
	path := filepath.Join(f.root, "state.json")
	s := fakeState{Clock: fakeNow().Add(-time.Hour)}
	if data, err := os.ReadFile(path); err == nil {
		if err := json.Unmarshal(data, &s); err != nil {
			return err
		}
	}
	doErr := do(&s)
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	// A test may kill us at any moment.
	return errors.Join(doErr, os.WriteFile(path+".new", data, 0o600), os.Rename(path+".new", path))
}

// fakeNow is the time of all tests.
func fakeNow() time.Time { return time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC) }

func (s *fakeState) now() time.Time {
	s.Clock = s.Clock.Add(time.Second)
	return s.Clock
}

// id gives aaaa…b, baaa…b, caaa…b: different from the first letter on.
func (s *fakeState) id() pod.ID {
	s.Next++
	return pod.ID(string(rune('a'+(s.Next-1)%26)) + strings.Repeat("a", 22) + string(rune('a'+s.Next/26)))
}

func (s *fakeState) pod(id pod.ID) *pod.PodStatus {
	for i := range s.Pods {
		if s.Pods[i].ID == id {
			return &s.Pods[i]
		}
	}
	return nil
}

func (s *fakeState) app(id pod.ID) *pod.AppStatus {
	for i := range s.Pods {
		for j := range s.Pods[i].Apps {
			if s.Pods[i].Apps[j].ID == id {
				return &s.Pods[i].Apps[j]
			}
		}
	}
	return nil
}

func (f *fakeEngine) dir(id pod.ID) string { return filepath.Join(f.root, "pods", string(id)) }

func (f *fakeEngine) Ready() error { return nil }

func (f *fakeEngine) CreatePod(_ context.Context, p pod.Pod) (*pod.Pod, error) {
	err := f.change(func(s *fakeState) error {
		for _, have := range s.Pods {
			if have.Owner == p.Owner && have.Name == p.Name && have.Namespace == p.Namespace {
				return fmt.Errorf("create pod %s: %w", p.Name, pod.ErrExists)
			}
		}
		if p.Name == "no-network" {
			return fmt.Errorf("create pod: network: plugin bridge: %w (after 12ms)", pod.ErrUnavailable)
		}
		p.ID, p.Created = s.id(), s.now()
		if p.Isolator = p.Handler; p.Handler == "" {
			p.Isolator = "oci"
		}
		if p.Name == "of-the-host" {
			p.IsolatorReason = "isolator.weaker-default: the node's default kvm cannot run it"
		}
		p.Slice = unit.PodSlice(string(p.ID))
		status := pod.PodStatus{Pod: &p, Ready: true}
		if !p.HostNetwork() {
			status.IPs = []string{"10.88.0.2"}
		}
		s.Pods = append(s.Pods, status)
		return os.MkdirAll(f.dir(p.ID), 0o700)
	})
	return &p, err
}

func (f *fakeEngine) StopPod(ctx context.Context, id pod.ID) error {
	return f.change(func(s *fakeState) error {
		p := s.pod(id)
		if p == nil {
			return nil
		}
		for i := range p.Apps {
			s.end(&p.Apps[i], 137, 9, pod.ReasonError)
		}
		p.Ready, p.IPs = false, nil
		return nil
	})
}

func (f *fakeEngine) RemovePod(ctx context.Context, id pod.ID) error {
	if err := f.StopPod(ctx, id); err != nil {
		return err
	}
	return f.change(func(s *fakeState) error {
		s.Pods = slices.DeleteFunc(s.Pods, func(p pod.PodStatus) bool { return p.ID == id })
		return os.RemoveAll(f.dir(id))
	})
}

func (f *fakeEngine) Pod(id pod.ID) (out pod.PodStatus, err error) {
	err = f.change(func(s *fakeState) error {
		p := s.pod(id)
		if p == nil {
			return fmt.Errorf("pod %s: %w", id, pod.ErrNotFound)
		}
		out = *p
		return nil
	})
	return out, err
}

func (f *fakeEngine) Pods(filter engine.Filter) (out []pod.PodStatus, err error) {
	err = f.change(func(s *fakeState) error {
	next:
		for _, p := range s.Pods {
			if filter.Owner != "" && p.Owner != filter.Owner {
				continue
			}
			for k, v := range filter.Labels {
				if p.Labels[k] != v {
					continue next
				}
			}
			out = append(out, p)
		}
		return nil
	})
	return out, err
}

func (f *fakeEngine) CreateApp(_ context.Context, id pod.ID, spec engine.AppSpec) (*pod.App, error) {
	a := &pod.App{
		Version: 1, Pod: id, Name: spec.Name, Annotations: spec.Annotations, Image: pod.Image{ID: spec.Image, Name: spec.UserImage},
		Argv: slices.Concat(spec.Command, spec.Args), LogPath: spec.LogPath, Stdin: spec.Stdin, TTY: spec.TTY,
		Mounts: spec.Mounts, StopTimeout: spec.StopTimeout, Security: spec.Security, Resources: spec.Resources,
	}
	if n, err := strconv.Atoi(spec.User); err == nil {
		a.Security.UID = uint32(n)
	} else if spec.User != "" {
		return nil, fmt.Errorf("create app %s: user %q: %w", spec.Name, spec.User, pod.ErrNotFound)
	}
	err := f.change(func(s *fakeState) error {
		for _, m := range spec.Mounts {
			if _, err := os.Stat(m.HostPath); err != nil {
				return fmt.Errorf("create app %s: mount %s on %s: %w: no such file or directory", spec.Name, m.HostPath, m.Path, pod.ErrInvalid)
			}
		}
		a.ID, a.Created = s.id(), s.now()
		p := s.pod(id)
		p.Apps = append(p.Apps, pod.AppStatus{App: a, Phase: pod.Prepared, Current: a.Resources})
		return nil
	})
	return a, err
}

func (f *fakeEngine) StartApp(_ context.Context, id pod.ID) error {
	return f.change(func(s *fakeState) error {
		a := s.app(id)
		a.Phase, a.Started, a.PID = pod.Running, s.now(), 4000+s.Next
		argv := append(a.Argv, "", "")
		switch argv[0] {
		case "echo":
			s.log(a, "stdout", strings.Join(a.Argv[1:], " "))
			s.end(a, 0, 0, pod.ReasonCompleted)
		case "err":
			s.log(a, "stderr", strings.Join(a.Argv[1:], " "))
			s.end(a, 0, 0, pod.ReasonCompleted)
		case "fail":
			code, _ := strconv.Atoi(argv[1])
			s.end(a, code, 0, pod.ReasonError)
		case "oom":
			s.end(a, 137, 9, pod.ReasonOOMKilled)
		case "missing":
			s.end(a, 128, 0, pod.ReasonStartError)
			a.Exit.Message = "executable file `missing` not found in $PATH"
			return errors.New("start app: unit: StartError")
		}
		return nil
	})
}

func (s *fakeState) log(a *pod.AppStatus, stream, text string) {
	w, err := os.OpenFile(a.LogPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		panic(err)
	}
	defer w.Close()
	fmt.Fprintf(w, "%s %s F %s\n", s.Clock.Format(time.RFC3339Nano), stream, text)
}

func (s *fakeState) end(a *pod.AppStatus, code, signal int, reason string) {
	if a.Phase != pod.Running {
		return
	}
	a.Phase, a.PID, a.Finished = pod.Exited, 0, s.now()
	a.Exit = &pod.Exit{Code: code, Signal: signal, Reason: reason, Started: a.Started, Finished: a.Finished}
}

func (f *fakeEngine) StopApp(ctx context.Context, id pod.ID, grace time.Duration) error {
	stubborn := false
	err := f.change(func(s *fakeState) error {
		a := s.app(id)
		if a == nil || a.Phase != pod.Running {
			return nil
		}
		switch {
		case grace == 0:
			s.log(a, "stdout", "killed")
			s.end(a, 137, 9, pod.ReasonError)
		case a.Argv[0] == "stubborn":
			s.log(a, "stdout", "not yet")
			stubborn = true
		default:
			s.log(a, "stdout", "stopping")
			s.end(a, 143, 15, pod.ReasonError)
		}
		return nil
	})
	if err != nil || !stubborn {
		return err
	}
	if grace > 0 {
		return f.StopApp(ctx, id, 0)
	}
	_, err = f.WaitApp(ctx, id)
	return err
}

func (f *fakeEngine) RemoveApp(ctx context.Context, id pod.ID) error { return pod.ErrUnsupported }

func (f *fakeEngine) App(id pod.ID) (out pod.AppStatus, err error) {
	err = f.change(func(s *fakeState) error {
		a := s.app(id)
		if a == nil {
			return fmt.Errorf("app %s: %w", id, pod.ErrNotFound)
		}
		out = *a
		return nil
	})
	return out, err
}

func (f *fakeEngine) WaitApp(ctx context.Context, id pod.ID) (pod.AppStatus, error) {
	for {
		a, err := f.App(id)
		if err != nil || a.Phase == pod.Exited {
			return a, err
		}
		select {
		case <-ctx.Done():
			return a, fmt.Errorf("wait for app %s: %w", id, ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// UpdateApp can have no app with more than 4 GiB.
func (f *fakeEngine) UpdateApp(_ context.Context, id pod.ID, r pod.Resources) error {
	return f.change(func(s *fakeState) error {
		a := s.app(id)
		switch {
		case a == nil:
			return pod.ErrNotFound
		case r.Memory > 4<<30:
			return fmt.Errorf("update app %s: memory limit of %d: %w", a.Name, r.Memory, pod.ErrInvalid)
		}
		for to, from := range map[*int64]int64{&a.Current.Memory: r.Memory, &a.Current.CPUQuota: r.CPUQuota, &a.Current.Pids: r.Pids} {
			if from != 0 {
				*to = from
			}
		}
		return nil
	})
}

func (f *fakeEngine) Exec(ctx context.Context, id pod.ID, p pod.Process, s engine.Streams) (int, error) {
	switch p.Argv[0] {
	case "echo":
		fmt.Fprintln(s.Stdout, strings.Join(append(p.Argv[1:], p.Env...), " "))
		return 0, nil
	case "fail":
		return strconv.Atoi(p.Argv[1])
	case "cat":
		if s.Stdin == nil {
			return 0, nil
		}
		_, err := io.Copy(s.Stdout, s.Stdin)
		return 0, err
	case "tty":
		fmt.Fprintf(s.Stdout, "tty %v\r\n", s.TTY)
		return 0, nil
	}
	return 0, fmt.Errorf("exec %s: %w", p.Argv[0], pod.ErrInvalid)
}

func (f *fakeEngine) Attach(ctx context.Context, id pod.ID, s engine.Streams) error {
	a, err := f.App(id)
	if err != nil {
		return err
	}
	if s.Start != nil {
		if err := s.Start(); err != nil {
			return err
		}
	}
	if a.Argv[0] == "echo" && s.Stdout != nil { // it ends at once
		fmt.Fprintf(s.Stdout, "%s\r\n", strings.Join(a.Argv[1:], " "))
		return nil
	}
	if a.Argv[0] == "cat" && s.Stdin != nil {
		in := bufio.NewScanner(s.Stdin)
		for in.Scan() {
			text := in.Text()
			if s.Stdout != nil {
				fmt.Fprintf(s.Stdout, "%s\r\n", text)
			}
			if err := f.change(func(s *fakeState) error { s.log(s.app(id), "stdout", text); return nil }); err != nil {
				return err
			}
		}
		if s.TTY { // a terminal has no end of input
			<-ctx.Done()
			return ctx.Err()
		}
		return f.change(func(s *fakeState) error { s.end(s.app(id), 0, 0, pod.ReasonCompleted); return nil })
	}
	_, err = f.WaitApp(ctx, id)
	return err
}

// PortForward: on port 7 somebody says all that is said to him, and on others there is nobody.
func (f *fakeEngine) PortForward(_ context.Context, _ pod.ID, port uint16, stream io.ReadWriteCloser) error {
	if port != 7 {
		return fmt.Errorf("connect to port %d: connection refused: %w", port, pod.ErrUnavailable)
	}
	_, err := io.Copy(stream, stream)
	return err
}
func (f *fakeEngine) ReopenLog(context.Context, pod.ID) error { return pod.ErrUnsupported }

// AppStats: an app uses half a processor, and what is its limit.
func (f *fakeEngine) AppStats(_ context.Context, id pod.ID) (out engine.Stats, err error) {
	err = f.change(func(s *fakeState) error {
		a := s.app(id)
		if a == nil || a.Phase != pod.Running {
			return pod.ErrState
		}
		if a.Argv[0] == "stubborn" {
			return fmt.Errorf("its machine does not answer: %w", pod.ErrUnavailable)
		}
		took := s.now().Sub(fakeNow().Add(-2 * time.Hour))
		out = engine.Stats{
			Time: fakeNow().Add(took), CPUNanos: uint64(took / 2), MemoryUsage: 20 << 20, MemoryWorkingSet: 12 << 20,
			MemoryLimit: uint64(a.Current.Memory), Pids: uint64(max(a.Current.Pids, 1)),
		}
		return nil
	})
	return out, err
}

func (f *fakeEngine) PodStats(context.Context, pod.ID) (engine.PodStats, error) {
	return engine.PodStats{}, pod.ErrUnsupported
}

func (f *fakeEngine) UpdatePod(context.Context, pod.ID, pod.PodResources) error {
	return pod.ErrUnsupported
}

func (f *fakeEngine) CheckpointApp(context.Context, pod.ID, string, time.Duration) error {
	return pod.ErrUnsupported
}
func (f *fakeEngine) MeasureLayers([]pod.AppStatus) {}

func (f *fakeEngine) LayersUsed(context.Context) (bytes, inodes uint64) { return 0, 0 }
func (f *fakeEngine) Changed() <-chan struct{}                          { return nil }
func (f *fakeEngine) AppMetrics(context.Context, pod.ID) (engine.Metrics, error) {
	return engine.Metrics{}, pod.ErrUnsupported
}
func (f *fakeEngine) Images() *image.Store      { return nil }
func (f *fakeEngine) Network() *network.Network { return nil }

func (f *fakeEngine) GC(_ context.Context, o engine.GCOptions) (engine.GCReport, error) {
	r := engine.GCReport{Items: []engine.GCItem{
		{Kind: "directory", Name: "prepare/x", Why: "its maker is gone", Bytes: 1 << 20},
		{Kind: "netns", Name: "aaaa", Why: "no pod has it"},
	}}
	r.Networks = []engine.GCNetwork{
		{Pod: &pod.Pod{ID: "bbbb", Owner: pod.OwnerCRI, Namespace: "shop", Name: "web"}, Why: "network check: plugin portmap: a rule is missing (after 12ms)"},
		{Pod: &pod.Pod{ID: "cccc", Owner: pod.OwnerCLI, Namespace: "default", Name: "db"}, Why: "network check: eth0 is gone", Gone: true},
	}
	if o.Images {
		r.Items = append(r.Items, engine.GCItem{Kind: "image", Name: "sha256:1", Why: "no pod uses it", Bytes: 5e9})
	}
	return r, nil
}

func (f *fakeEngine) Plan(_ context.Context, p pod.Pod, apps []engine.AppSpec) (string, error) {
	return fmt.Sprintf("-- plan of %s: %s --\n", p.Name, apps[0].UserImage), nil
}

func (f *fakeEngine) NetworkDown(_ context.Context, id pod.ID) error {
	return f.change(func(s *fakeState) error { s.pod(id).IPs = nil; return nil })
}

func (f *fakeEngine) Close() error { return nil }

// images is the fake's image store.
type images struct{ f *fakeEngine }

func (i images) Pull(_ context.Context, ref string, o image.PullOptions) (*image.Image, error) {
	full := ref
	if !strings.Contains(ref, "/") {
		full = "docker.io/library/" + ref
	}
	if !strings.Contains(full[strings.LastIndexByte(full, '/'):], ":") {
		full += ":latest"
	}
	if img, err := i.Image(full); err == nil && o.Policy != image.Always {
		return img, nil
	}
	switch {
	case o.Policy == image.Never:
		return nil, fmt.Errorf("pull %s: not in the store, and the policy is never: %w", full, pod.ErrNotFound)
	case strings.Contains(full, "unknown"):
		return nil, fmt.Errorf("pull %s: manifest: name unknown\x1b[31m: %w (after 3ms)", full, pod.ErrNotFound)
	}
	if o.Progress != nil {
		o.Progress(image.Progress{Stage: image.StageManifest})
		for n := int64(0); n <= 4; n++ {
			o.Progress(image.Progress{Stage: image.StageLayer, Layer: 1, Layers: 1, Bytes: n * 1e6, Total: 4e6})
		}
		o.Progress(image.Progress{Stage: image.StageStore, Layers: 1})
		o.Progress(image.Progress{Stage: image.StageDone})
	}
	var img *image.Image
	err := i.f.change(func(s *fakeState) error {
		for _, have := range s.Images {
			if slices.Contains(have.Tags, full) {
				img = have
				return nil
			}
		}
		n := len(s.Images) + 1
		img = &image.Image{
			ID: fmt.Sprintf("sha256:%064d", n), Tags: []string{full}, Digests: []string{fmt.Sprintf("%s@sha256:%064d", strings.Split(full, ":")[0], n+100)},
			Size: 4_200_000, Created: fakeNow().Add(-72 * time.Hour), Pulled: fakeNow().Add(-time.Minute), OS: "linux", Arch: "amd64",
			Config: image.ImageConfig{Entrypoint: []string{"/bin/sh"}, Cmd: []string{"-c", "echo hi"}, WorkingDir: "/"},
			Layers: []image.Layer{{DiffID: "sha256:aa", Size: 4_200_000}},
		}
		s.Images = append(s.Images, img)
		return nil
	})
	return img, err
}

func (i images) Image(name string) (img *image.Image, err error) {
	all, err := i.Images()
	for _, img := range all {
		if img.ID == name || slices.Contains(img.Tags, name) || slices.Contains(img.Digests, name) || slices.Contains(img.Tags, "docker.io/library/"+name+":latest") {
			return img, nil
		}
	}
	return nil, errors.Join(err, fmt.Errorf("image %s: %w", name, pod.ErrNotFound))
}

func (i images) Images() (out []*image.Image, err error) {
	err = i.f.change(func(s *fakeState) error { out = s.Images; return nil })
	return out, err
}

func (i images) Remove(_ context.Context, name string) error {
	return i.f.change(func(s *fakeState) error {
		s.Images = slices.DeleteFunc(s.Images, func(img *image.Image) bool { return img.ID == name })
		return nil
	})
}

// RemoveDamaged: there is one.
func (i images) RemoveDamaged(_ context.Context, id string) error {
	if id == "sha256:"+strings.Repeat("d", 64) {
		return nil
	}
	return pod.ErrNotFound
}

func (i images) Untag(_ context.Context, name string) error {
	return i.f.change(func(s *fakeState) error {
		for _, img := range s.Images {
			img.Tags = slices.DeleteFunc(img.Tags, func(t string) bool { return t == name })
			img.Digests = slices.DeleteFunc(img.Digests, func(d string) bool { return d == name })
		}
		return nil
	})
}
