package engine

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"gantry/internal/isolator"
	"gantry/internal/pod"
	"gantry/internal/unit"
)

// seeing is a PID 1 before which somebody looks.
type seeing struct {
	*hooked
	before func(name string)
}

func (s *seeing) Launch(ctx context.Context, u unit.Unit, aux ...unit.Unit) error {
	s.before(u.Name)
	return s.Fake.Launch(ctx, u, aux...)
}

// TestPodInTheMaking: one that is on disk and not ready yet is no pod that has failed, and
// those who list pods can tell.
func TestPodInTheMaking(t *testing.T) {
	t.Parallel()
	w := newLiveWorld(t)
	w.load()
	looked := false
	w.cfg.Systemd = &seeing{w.manager, func(name string) {
		id, ok := unit.PodID(name)
		if !ok {
			return
		}
		looked = true
		w.podMoved(t.Context(), pod.ID(id)) // as inotify has it
		if pods, err := w.Pods(Filter{Owner: pod.OwnerCRI}); err != nil || len(pods) != 1 || !pods[0].Making {
			t.Errorf("while it is made: %+v, %v", pods, err)
		}
	}}
	made, err := w.CreatePod(t.Context(), pod.Pod{
		Owner: pod.OwnerCRI, Name: "proxy", Namespace: "kube-system", UID: "1",
		Namespaces: pod.Namespaces{Network: pod.NamespaceNode, PID: pod.NamespaceApp, IPC: pod.NamespaceNode},
	})
	if err != nil || !looked {
		t.Fatalf("looked: %t; made: %v", looked, err)
	}
	if s, err := w.Pod(made.ID); err != nil || s.Making || !s.Ready {
		t.Errorf("once it is made: %+v, %v", s, err)
	}
	if len(w.view.making) != 0 {
		t.Errorf("still being made: %v", w.view.making)
	}
}

// TestPodThatNobodyWants: who goes away over a pod that is being made can end it, or one who
// comes after: a kubelet whose pod was deleted. Who only has no more time asks again.
func TestPodThatNobodyWants(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		limit  time.Duration
		hidden bool
	}{"gone": {time.Hour, false}, "out of time": {10 * time.Millisecond, true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newLiveWorld(t)
			w.load()
			ctx, cancel := context.WithTimeout(t.Context(), c.limit)
			defer cancel()
			asked, left := make(chan error, 1), make(chan struct{})
			looked := make(chan bool, 1)
			w.cfg.Systemd = &seeing{w.manager, func(name string) {
				id, ok := unit.PodID(name)
				if !ok {
					return
				}
				w.podMoved(t.Context(), pod.ID(id))
				if !c.hidden {
					cancel()
				}
				<-left
				pods, err := w.Pods(Filter{Owner: pod.OwnerCRI})
				looked <- err == nil && len(pods) == 1 && pods[0].Making
			}}
			go func() {
				_, err := w.CreatePod(ctx, pod.Pod{
					Owner: pod.OwnerCRI, Name: "proxy", UID: "1",
					Namespaces: pod.Namespaces{Network: pod.NamespaceNode, PID: pod.NamespaceApp, IPC: pod.NamespaceNode},
				})
				asked <- err
			}()
			if err := <-asked; !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("it went away with %v", err)
			}
			close(left)
			if hidden := <-looked; hidden != c.hidden {
				t.Errorf("it is hidden: %t, want %t", hidden, c.hidden)
			}
		})
	}
}

// TestEndIsLeftToWhoRecordsIt: an app whose start failed may be having its end recorded by a unit
// that knows more.
func TestEndIsLeftToWhoRecordsIt(t *testing.T) {
	t.Parallel()
	w := newLiveWorld(t)
	a := w.app(w.pod())
	w.start(unit.Exit(string(a.ID)))
	w.load()
	s, err := w.App(a.ID)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []bool{false, true} {
		if err := w.neverStarted(t.Context(), s, errors.New("no")); err != nil {
			t.Error(err)
		}
		if rec, err := w.store.ReadApp(a.Pod, a.ID); err != nil || (rec.Exit != nil) != want {
			t.Errorf("a record: %+v, want one: %t (%v)", rec.Exit, want, err)
		}
		w.stop(unit.Exit(string(a.ID)))
	}
}

// TestRefusedStartHasAnEnd: kubelet makes another app at once for one that was not started
// and has no end, whatever the restart policy says. People try again.
func TestRefusedStartHasAnEnd(t *testing.T) {
	t.Parallel()
	for owner, phase := range map[pod.Owner]pod.Phase{pod.OwnerCRI: pod.Exited, pod.OwnerCLI: pod.Prepared} {
		w := newLiveWorld(t)
		p := w.podOf(owner)
		a := w.app(p)
		w.stop(unit.Pod(string(p.ID)))
		w.load()
		if err := w.StartApp(t.Context(), a.ID); !errors.Is(err, pod.ErrState) {
			t.Errorf("%s: started in a pod that is down: %v", owner, err)
		}
		s, err := w.App(a.ID)
		if err != nil || s.Phase != phase {
			t.Errorf("%s: afterwards it is %s, want %s (%v)", owner, s.Phase, phase, err)
		}
		if s.Phase == pod.Exited && (s.Exit.Code != 128 || s.Exit.Reason != pod.ReasonStartError || s.Exit.Message == "" || s.Finished.IsZero()) {
			t.Errorf("its end is %+v", s.Exit)
		}
	}
}

// TestCreateAppInAPodThatIsDown is refused, and not only its start.
func TestCreateAppInAPodThatIsDown(t *testing.T) {
	t.Parallel()
	w := newLiveWorld(t)
	p := w.pod()
	w.stop(unit.Pod(string(p.ID)))
	w.load()
	if a, err := w.CreateApp(t.Context(), p.ID, AppSpec{Name: "web", Image: "busybox"}); !errors.Is(err, pod.ErrState) {
		t.Errorf("created %+v, %v", a, err)
	}
}

// TestLayersUsed: all apps count that have a layer, whoever asked about them and whether
// they run or not; what is gone does not.
func TestLayersUsed(t *testing.T) {
	t.Parallel()
	w := newLiveWorld(t)
	p, cli := w.pod(), w.podOf(pod.OwnerCLI)
	for _, a := range []*pod.App{w.app(p), w.app(p), w.app(cli)} {
		s := pod.AppStatus{App: a}
		if err := errors.Join(os.MkdirAll(w.upper(s), 0o755), os.WriteFile(filepath.Join(w.upper(s), "file"), make([]byte, 8192), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	w.load()
	w.usage.keep(pod.NewID(), used{bytes: 1 << 40, inodes: 1 << 20}) // of one that was removed while it was looked at
	if bytes, inodes := w.LayersUsed(t.Context()); inodes != 6 || bytes < 3*8192 || bytes > 1<<20 {
		t.Errorf("%d bytes, %d inodes, want 3 directories and 3 files of 8 KiB", bytes, inodes)
	}
}

// TestAppsThatGCKnows: an app whose pod cannot be looked into may be there.
func TestAppsThatGCKnows(t *testing.T) {
	t.Parallel()
	w := newLiveWorld(t)
	a := w.app(w.pod())
	g := &gc{e: w.Engine}
	if !g.knownApp(a.ID) || g.knownApp(pod.NewID()) {
		t.Errorf("known: %t, another: %t", g.knownApp(a.ID), g.knownApp(pod.NewID()))
	}
	dir := w.store.Pods()
	if err := errors.Join(os.Rename(dir, dir+".away"), os.WriteFile(dir, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if !g.knownApp(a.ID) {
		t.Error("of pods that cannot be listed an app is taken for gone")
	}
}

// TestRepairedForeignPod: a pod of the command line that can be read again holds no images
// any more but its own.
func TestRepairedForeignPod(t *testing.T) {
	t.Parallel()
	w := newLiveWorld(t)
	cli := w.podOf(pod.OwnerCLI)
	w.app(cli)
	w.load()
	w.view.unread[cli.ID] = errors.New("it was torn")
	if _, err := w.Pods(Filter{}); err != nil {
		t.Fatal(err)
	}
	if len(w.view.unread) != 0 {
		t.Errorf("still unread: %v", w.view.unread)
	}
}

// TestChooseBelowAKernel: a runtime with a kernel of its own is more than namespaces, and
// less than a machine.
func TestChooseBelowAKernel(t *testing.T) {
	t.Parallel()
	e := choosing(t, "oci", Weaker{Namespaces: []string{"system"}})
	e.iso["gvisor"] = likeness{e.iso["oci"], "gvisor", isolator.IsolationKernel}
	e.cfg.Isolator = "gvisor"
	for name, c := range map[string]struct {
		p  pod.Pod
		ok bool
	}{
		"none":             {pod.Pod{Namespace: "shop"}, true},
		"machine":          {pod.Pod{Namespace: "shop", Handler: "kvm"}, true},
		"namespaces":       {pod.Pod{Namespace: "shop", Handler: "oci"}, false},
		"by annotation":    {pod.Pod{Namespace: "shop", Annotations: map[string]string{annotationIsolator: "oci"}}, false},
		"the operator's":   {pod.Pod{Namespace: "system", Handler: "oci"}, true},
		"the host's, none": {pod.Pod{Namespace: "shop", Handler: "fly"}, false},
	} {
		if _, err := e.choose(&c.p); (err == nil) != c.ok || err != nil && !errors.Is(err, pod.ErrForbidden) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
