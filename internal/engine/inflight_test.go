package engine

import (
	"context"
	"errors"
	"testing"
	"time"

	"gantry/internal/disk"
	"gantry/internal/pod"
	"gantry/internal/unit"
)

// TestStopDuringAStart: whoever starts an app, when a stop has returned it does not
// run, and will not.
func TestStopDuringAStart(t *testing.T) {
	t.Parallel()
	for name, stop := range map[string]func(context.Context, *Engine, *pod.App) error{
		"app": func(ctx context.Context, e *Engine, a *pod.App) error { return e.StopApp(ctx, a.ID, 0) },
		"pod": func(ctx context.Context, e *Engine, a *pod.App) error { return e.StopPod(ctx, a.Pod) },
	} {
		for _, other := range []bool{false, true} {
			t.Run(name+map[bool]string{false: " by itself", true: " by another"}[other], func(t *testing.T) {
				t.Parallel()
				b := newBench(t, !other, Failpoints{"start app/unit/before": "sleep 200ms"})
				a := b.prepared("app", pod.Resources{})
				starter := b.Engine
				if other {
					var err error
					if starter, err = New(t.Context(), b.cfg); err != nil {
						t.Fatal(err)
					}
					defer starter.Close()
				}
				started := make(chan error, 1)
				go func() { started <- starter.StartApp(t.Context(), a.ID) }()
				eventually(t, "the pod is locked", func() bool {
					lock, err := b.Engine.store.TryLock(a.Pod)
					if err == nil {
						err = lock.Unlock()
					}
					return errors.Is(err, disk.ErrLocked)
				})
				if err := stop(t.Context(), b.Engine, a); err != nil {
					t.Error(err)
				}
				if err := <-started; err != nil {
					t.Error(err)
				}
				if s, err := b.App(a.ID); err != nil || s.Phase != pod.Exited {
					t.Errorf("after the stop the app is %s (%v)", s.Phase, err)
				}
			})
		}
	}
}

// TestStopOfAnAppNeverStarted does nothing, at once, as often as one likes.
func TestStopOfAnAppNeverStarted(t *testing.T) {
	t.Parallel()
	b := newBench(t, true, nil)
	a := b.prepared("app", pod.Resources{})
	began := time.Now()
	for range 10 {
		if err := b.StopApp(t.Context(), a.ID, time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("ten stops took %s", took)
	}
	if err := b.StartApp(t.Context(), a.ID); err != nil {
		t.Errorf("start after the stops: %v", err)
	}
	if err := b.StopApp(t.Context(), a.ID, 0); err != nil {
		t.Error(err)
	}
}

// TestStopForAKilledStarter: PID 1 is starting the app still, for nobody.
func TestStopForAKilledStarter(t *testing.T) {
	t.Parallel()
	for name, stop := range map[string]func(*world, *pod.App) error{
		"app": func(w *world, a *pod.App) error { return w.StopApp(w.t.Context(), a.ID, time.Minute) },
		"pod": func(w *world, a *pod.App) error { return w.StopPod(w.t.Context(), a.Pod) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newLiveWorld(t)
			a := w.app(w.pod())
			w.start(unit.App(string(a.ID)))
			w.load()
			if err := stop(w, a); err != nil {
				t.Error(err)
			}
			if s, err := w.manager.State(t.Context(), unit.App(string(a.ID))); err != nil || s.Loaded() {
				t.Errorf("the app's unit is %+v (%v)", s, err)
			}
		})
	}
}
