package engine

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"gantry/internal/disk"
	"gantry/internal/isolator"
	"gantry/internal/pod"
	"gantry/internal/systemd"
	"gantry/internal/unit"
)

// TestReadyMeansWhole: whoever makes or stops a pod of the host's network may be
// killed after any step. Kubelet starts containers in a pod that reads as ready, so
// it must have all that they need.
func TestReadyMeansWhole(t *testing.T) {
	t.Parallel()
	w := newLiveWorld(t)
	p := &pod.Pod{
		ID: pod.NewID(), Owner: pod.OwnerCRI, Name: "proxy", Isolator: "oci", Created: time.Now(),
		Namespaces: pod.Namespaces{Network: pod.NamespaceNode, PID: pod.NamespaceApp, IPC: pod.NamespaceNode},
	}
	p.Slice = unit.PodSlice(string(p.ID))
	plan, err := w.iso["oci"].Sandbox(isolator.Sandbox{Pod: p, Dir: w.dirs(p.ID, "")})
	if err != nil {
		t.Fatal(err)
	}
	m := &making{e: w.Engine, p: p, plan: plan}
	w.passes(p, m.operation(), true)
	w.passes(p, w.podStop(p, m.lock, noApps), false)
}

// passes does the steps of an operation and looks at the pod after each.
func (w *world) passes(p *pod.Pod, op operation, ready bool) {
	w.t.Helper()
	var s pod.PodStatus
	for _, step := range op.steps {
		if err := step.do(w.t.Context()); err != nil {
			w.t.Fatal(err)
		}
		w.load()
		var err error
		if s, err = w.Pod(p.ID); err != nil {
			w.t.Fatal(err)
		}
		if s.Ready && !disk.Exists(w.runDir(p.ID)) {
			w.t.Errorf("after %s/%s the pod is ready, and its namespaces are not there", op.name, step.name)
		}
	}
	if s.Ready != ready {
		w.t.Errorf("after %s the pod is ready: %t", op.name, s.Ready)
	}
}

// TestUnitStoppedWhileThePodIsMade: somebody stops the pod's unit before its creation
// is over, and PID 1's signal is read before that, too.
func TestUnitStoppedWhileThePodIsMade(t *testing.T) {
	t.Parallel()
	w := newLiveWorld(t)
	w.load()
	stopper := &stopper{hooked: w.manager}
	stopper.stopped = func(name string) {
		id, _ := unit.PodID(name)
		if err := os.Remove(w.runDir(pod.ID(id))); err != nil { // as pod-down does
			t.Error(err)
		}
		w.onUnit(t.Context(), systemd.Event{Kind: systemd.UnitRemoved, Unit: name}, false)
	}
	w.cfg.Systemd = stopper
	spec := pod.Pod{
		Owner: pod.OwnerCRI, Name: "proxy", Namespace: "kube-system", UID: "1",
		Namespaces: pod.Namespaces{Network: pod.NamespaceNode, PID: pod.NamespaceApp, IPC: pod.NamespaceNode},
	}
	if _, err := w.CreatePod(t.Context(), spec); !errors.Is(err, pod.ErrUnavailable) {
		t.Errorf("made: %v", err)
	}
	pods, err := w.Pods(Filter{Owner: pod.OwnerCRI})
	if err != nil || len(pods) != 1 || pods[0].Ready {
		t.Errorf("after its unit was stopped: %+v, %v", pods, err)
	}
	w.cfg.Systemd = w.manager
	if _, err := w.CreatePod(t.Context(), spec); err != nil {
		t.Errorf("a second try: %v", err)
	}
}

// stopper is a PID 1 that is told to stop whatever was started.
type stopper struct {
	*hooked
	stopped func(name string)
}

func (s *stopper) Launch(ctx context.Context, u unit.Unit, aux ...unit.Unit) error {
	err := s.Fake.Launch(ctx, u, aux...)
	if err == nil {
		err = s.Stop(ctx, u.Name)
	}
	s.stopped(u.Name)
	return err
}
