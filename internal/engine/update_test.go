package engine

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"gantry/internal/isolator"
	"gantry/internal/pod"
	"gantry/internal/unit"
)

// TestUpdatesDoNotUndoEachOther: kubelet changes memory and CPUs of one container
// from two goroutines.
func TestUpdatesDoNotUndoEachOther(t *testing.T) {
	t.Parallel()
	w := newLiveWorld(t)
	p := w.pod()
	a := w.app(p)
	w.load()
	w.whileLocked(p, func() {}, func() error {
		return w.UpdateApp(t.Context(), a.ID, pod.Resources{Memory: 64 << 20})
	}, func() error {
		return w.UpdateApp(t.Context(), a.ID, pod.Resources{CPUShares: 512})
	})
	s, err := w.App(a.ID)
	if err != nil {
		t.Fatal(err)
	}
	if s.Current.Memory != 64<<20 || s.Current.CPUShares != 512 {
		t.Errorf("of two updates one is lost: %+v", s.Current)
	}
}

// TestUpdateDuringTheStart: the app was prepared when the update came, and ran when
// it had the lock.
func TestUpdateDuringTheStart(t *testing.T) {
	t.Parallel()
	w := newLiveWorld(t)
	p := w.pod()
	a := w.app(p)
	w.load()
	// The machine of this test has no cgroup for the app, so the update itself may fail.
	w.whileLocked(p, func() {
		w.run(a)
		if err := w.reloadApp(p.ID, a.ID, true); err != nil {
			t.Fatal(err)
		}
	}, func() error {
		_ = w.UpdateApp(t.Context(), a.ID, pod.Resources{CPUShares: 512})
		return nil
	})
	w.want(p, a, true, pod.Running)
	if u, _ := w.manager.Unit("gantry-app-" + string(a.ID) + ".service"); u.Get("CPUWeight") == nil {
		t.Error("an app that runs did not get its new limits")
	}
}

// TestUpdatePod: what is not told stays, and is still so for a program that starts.
func TestUpdatePod(t *testing.T) {
	t.Parallel()
	w := newLiveWorld(t)
	p := w.pod()
	w.start(p.Slice)
	w.load()
	for _, r := range []pod.PodResources{
		{Overhead: &pod.Resources{Memory: 1 << 20}},
		{Resources: &pod.Resources{Memory: 64 << 20}},
		{Resources: &pod.Resources{CPUShares: 2048}},
	} {
		if err := w.UpdatePod(t.Context(), p.ID, r); err != nil {
			t.Fatal(err)
		}
	}
	for _, again := range []bool{false, true} {
		if again {
			w.load()
		}
		s, err := w.Pod(p.ID)
		if err != nil || !s.Ready || s.Overhead.Memory != 1<<20 || s.Resources.CPUShares != 2048 || s.Resources.Memory != 64<<20 {
			t.Errorf("%+v, %v", s.Pod, err)
		}
	}
	if u, _ := w.manager.Unit(p.Slice); u.Get("CPUWeight") == nil {
		t.Error("a slice that no kubelet sizes did not get its new limits")
	}
	huge := pod.PodResources{Resources: &pod.Resources{Hugepages: []pod.HugepageLimit{{PageSize: "2MB", Limit: 2 << 20}}}}
	if err := w.UpdatePod(t.Context(), p.ID, huge); !errors.Is(err, pod.ErrUnsupported) {
		t.Errorf("huge pages of a slice: %v", err)
	}
	w.stop(unit.Pod(string(p.ID)))
	w.load()
	if err := w.UpdatePod(t.Context(), p.ID, pod.PodResources{}); !errors.Is(err, pod.ErrState) {
		t.Errorf("a pod that is down: %v", err)
	}
}

// whileLocked does something under a pod's lock, which calls wait for meanwhile.
func (w *world) whileLocked(p *pod.Pod, do func(), calls ...func() error) {
	w.t.Helper()
	lock, err := w.store.Lock(w.t.Context(), p.ID)
	if err != nil {
		w.t.Fatal(err)
	}
	done := make(chan error, len(calls))
	for _, call := range calls {
		go func() { done <- call() }()
	}
	// All calls have come as far as the lock, or will: what they found before is old.
	select {
	case err := <-done:
		w.t.Fatalf("a call did not wait for the lock: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	do()
	if err := lock.Unlock(); err != nil {
		w.t.Fatal(err)
	}
	for range calls {
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	}
}

// TestUpdateReachesTheAppsOwnGroup: an app takes the limits for its own that it finds
// where it is.
func TestUpdateReachesTheAppsOwnGroup(t *testing.T) {
	t.Parallel()
	b := newBench(t, true, nil)
	a := b.running()
	dir, err := b.appCgroup(a.App)
	if err != nil {
		t.Fatal(err)
	}
	own := filepath.Join(dir, isolator.AppGroup)
	// PID 1 writes the first, which is a fake here.
	for path, value := range map[string]string{dir + "/memory.max": "5", dir + "/cpu.max": "", own + "/memory.max": "9", own + "/cpu.max": "7 8"} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(value), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.UpdateApp(t.Context(), a.ID, pod.Resources{Memory: 5, CPUQuota: 150500, CPUPeriod: 100000}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"memory.max": "5", "cpu.max": "150500 100000"} {
		if got, err := os.ReadFile(filepath.Join(own, name)); err != nil || string(got) != want {
			t.Errorf("%s is %q, %v; want %q", name, got, err, want)
		}
	}
}
