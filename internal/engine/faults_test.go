package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gantry/internal/disk"
	"gantry/internal/pod"
	"gantry/internal/unit"
)

// TestErrorAtEveryStep lets every operation fail at every boundary of its steps:
// the error names it, what was made is undone, and a second try works. The engine
// reads its state anew each time, or keeps it by events, as its programs do.
func TestErrorAtEveryStep(t *testing.T) {
	t.Parallel()
	for _, live := range []bool{false, true} {
		for _, point := range FailpointNames() {
			if strings.HasPrefix(point, "create pod/network") || strings.HasPrefix(point, "create pod/late units") {
				continue // needs a network, or a machine: test/node and test/e2e do it
			}
			t.Run(fmt.Sprintf("%s live %v", point, live), func(t *testing.T) {
				t.Parallel()
				b := newBench(t, live, nil)
				life := &life{bench: b, point: point}
				life.run()
				if !life.failed {
					t.Error("no operation failed")
				}
				eventually(t, "all is gone", func() bool { return len(b.left()) == 0 && len(b.pods()) == 0 })
			})
		}
	}
}

// TestStepsPassed compares the list of boundaries with what a pod's life passes.
func TestStepsPassed(t *testing.T) {
	t.Parallel()
	b := newBench(t, false, nil)
	(&life{bench: b}).run()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, point := range FailpointNames() {
		step := point[:strings.LastIndexByte(point, '/')]
		if !slices.Contains(b.passed, step) && !strings.HasPrefix(step, "create pod/network") && !strings.HasPrefix(step, "create pod/late units") {
			t.Errorf("%s is listed and was not passed", step)
		}
	}
	for _, step := range b.passed {
		if !slices.Contains(FailpointNames(), step+"/before") {
			t.Errorf("%s was passed and is not listed", step)
		}
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	limit := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-limit:
			t.Fatalf("%s: not after a long time", what)
		case <-again.C:
		}
	}
}

func (b *bench) pods() []pod.PodStatus {
	b.t.Helper()
	pods, err := b.Pods(Filter{})
	if err != nil {
		b.t.Fatal(err)
	}
	return pods
}

// life is that of a pod with one app, in which one step fails.
type life struct {
	*bench
	point  string
	failed bool
}

func (l *life) run() {
	ctx := l.t.Context()
	var p *pod.Pod
	var a *pod.App
	l.try("create pod", func() (err error) {
		p, err = l.CreatePod(ctx, hostPod("life"))
		return err
	}, func() bool { return len(l.left()) == 0 && len(l.pods()) == 0 })
	l.try("create app", func() (err error) {
		a, err = l.CreateApp(ctx, p.ID, AppSpec{Name: "app", Image: l.image, Command: []string{"app"}})
		return err
	}, func() bool { return len(l.pods()[0].Apps) == 0 })
	l.try("start app", func() error { return l.StartApp(ctx, a.ID) }, func() bool {
		s, err := l.App(a.ID)
		if err == nil && s.Phase == pod.Exited { // its process was there already: it is not started again
			a, err = l.CreateApp(ctx, p.ID, AppSpec{Name: "app", Attempt: 1, Image: l.image, Command: []string{"app"}})
			return err == nil
		}
		return err == nil && s.Phase == pod.Prepared
	})
	l.phase(a, pod.Running)
	want := pod.Resources{Memory: 8 << 20}
	l.try("update app", func() error { return l.UpdateApp(ctx, a.ID, want) }, nil)
	if s, err := l.App(a.ID); err != nil || s.Current.Memory != want.Memory {
		l.t.Errorf("after the update: %+v, %v", s.Current, err)
	}
	size := pod.PodResources{Resources: &pod.Resources{CPUShares: 512}}
	l.try("update pod", func() error { return l.UpdatePod(ctx, p.ID, size) }, nil)
	if s, err := l.Pod(p.ID); err != nil || s.Resources == nil || s.Resources.CPUShares != 512 {
		l.t.Errorf("after the update of the pod: %+v, %v", s.PodResources, err)
	}
	l.try("remove app", func() error { return l.RemoveApp(ctx, a.ID) }, nil)
	l.try("stop pod", func() error { return l.StopPod(ctx, p.ID) }, nil)
	if s, err := l.Pod(p.ID); err != nil || s.Ready {
		l.t.Errorf("a stopped pod is ready: %v", err)
	}
	l.try("remove pod", func() error { return l.RemovePod(ctx, p.ID) }, nil)
}

// try runs an operation, twice if it is the one that fails: clean looks at what
// the failure left.
func (l *life) try(op string, do func() error, clean func() bool) {
	l.t.Helper()
	if strings.HasPrefix(l.point, op+"/") {
		l.fail(op, do)
		if clean != nil {
			eventually(l.t, op+" is undone", clean)
		}
	}
	if err := do(); err != nil {
		l.t.Fatalf("%s: %v", op, err)
	}
}

func (l *life) fail(op string, do func() error) {
	l.t.Helper()
	l.cfg.Failpoints = Failpoints{l.point: "error"}
	err := do()
	l.cfg.Failpoints = nil
	var stage *StageError
	if !errors.Is(err, errFailpoint) || !errors.As(err, &stage) {
		l.t.Fatalf("%s did not fail at its failpoint: %v", op, err)
	}
	if want := op + "/" + stage.Stage + "/"; !strings.HasPrefix(l.point, want) || !strings.Contains(err.Error(), "(after ") {
		l.t.Errorf("the error does not name the stage and its duration: %v", err)
	}
	l.failed = true
}

func (l *life) phase(a *pod.App, want pod.Phase) {
	l.t.Helper()
	if s, err := l.App(a.ID); err != nil || s.Phase != want {
		l.t.Errorf("app is %s, want %s (%v)", s.Phase, want, err)
	}
}

func hostPod(name string) pod.Pod {
	return pod.Pod{
		Owner: pod.OwnerCRI, Name: name,
		Namespaces: pod.Namespaces{Network: pod.NamespaceNode, PID: pod.NamespaceApp, IPC: pod.NamespaceNode},
	}
}

// TestUnfinishedTwin: what a killed program left of a pod does not stand in the
// way of the next try, unless it is somebody's.
func TestUnfinishedTwin(t *testing.T) {
	t.Parallel()
	b := newBench(t, false, nil)
	ctx := t.Context()
	first, err := b.CreatePod(ctx, hostPod("twin"))
	if err != nil {
		t.Fatal(err)
	}
	again, err := b.CreatePod(ctx, hostPod("twin"))
	if err != nil || again.ID != first.ID {
		t.Errorf("a pod that is ready was not returned: %v", err)
	}
	if err := b.pid1.Stop(ctx, "gantry-pod-"+string(first.ID)+".service"); err != nil {
		t.Fatal(err)
	}
	second, err := b.CreatePod(ctx, hostPod("twin"))
	if err != nil || second.ID == first.ID {
		t.Fatalf("an unfinished pod is in the way: %v", err)
	}
	if _, err := b.Pod(first.ID); !errors.Is(err, pod.ErrNotFound) {
		t.Errorf("the unfinished pod is still there: %v", err)
	}
	if _, err := b.CreateApp(ctx, second.ID, AppSpec{Name: "app", Image: b.image, Command: []string{"app"}}); err != nil {
		t.Fatal(err)
	}
	if err := b.StopPod(ctx, second.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := b.CreatePod(ctx, hostPod("twin")); !errors.Is(err, pod.ErrExists) {
		t.Errorf("a pod with an app was replaced: %v", err)
	}
}

// TestStartTwice: a start whose caller died before it heard of it is no error when
// it is tried again, and an app that has ended is not started anew.
func TestStartTwice(t *testing.T) {
	t.Parallel()
	b := newBench(t, false, nil)
	ctx := t.Context()
	p, err := b.CreatePod(ctx, hostPod("twice"))
	if err != nil {
		t.Fatal(err)
	}
	a, err := b.CreateApp(ctx, p.ID, AppSpec{Name: "app", Image: b.image, Command: []string{"app"}})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := b.StartApp(ctx, a.ID); err != nil {
			t.Error(err)
		}
	}
	if err := b.StopApp(ctx, a.ID, 0); err != nil {
		t.Fatal(err)
	}
	if err := b.StartApp(ctx, a.ID); !errors.Is(err, pod.ErrState) {
		t.Errorf("an app that has ended: %v", err)
	}
}

// TestGCFinishes: what killed programs of the command line left half-way is ended,
// what a kubelet owns or somebody works on is not.
func TestGCFinishes(t *testing.T) {
	t.Parallel()
	b := newBench(t, false, nil)
	ctx := t.Context()
	make := func(name string, owner pod.Owner, apps int) pod.ID {
		spec := hostPod(name)
		spec.Owner = owner
		p, err := b.CreatePod(ctx, spec)
		if err != nil {
			t.Fatal(err)
		}
		for range apps {
			if _, err := b.CreateApp(ctx, p.ID, AppSpec{Name: "app", Image: b.image, Command: []string{"app"}}); err != nil {
				t.Fatal(err)
			}
		}
		return p.ID
	}
	down := func(id pod.ID) {
		if err := b.pid1.Stop(ctx, "gantry-pod-"+string(id)+".service"); err != nil {
			t.Fatal(err)
		}
	}
	half, busy, kubelets, stopped, ready := make("half", pod.OwnerCLI, 0), make("busy", pod.OwnerCLI, 0),
		make("kubelets", pod.OwnerCRI, 0), make("stopped", pod.OwnerCLI, 1), make("ready", pod.OwnerCLI, 0)
	for _, id := range []pod.ID{half, busy, kubelets, stopped} {
		down(id)
	}
	lock, err := disk.TryLock(b.Engine.store.Pod(busy))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.GC(ctx, GCOptions{}); err != nil {
		t.Error(err)
	}
	for id, want := range map[pod.ID]bool{half: false, busy: true, kubelets: true, stopped: true, ready: true} {
		if _, err := b.Pod(id); (err == nil) != want {
			t.Errorf("%s: kept %v, want %v", id, err == nil, want)
		}
	}
	if left := b.left(); slices.Contains(left, "run/pods/"+string(stopped)) || !slices.Contains(left, "run/pods/"+string(kubelets)) {
		t.Errorf("namespaces of the stopped pod, or not those of kubelet's: %v", left)
	}
	if err := lock.Unlock(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.GC(ctx, GCOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := b.Pod(busy); !errors.Is(err, pod.ErrNotFound) {
		t.Errorf("a half-made pod that nobody works on any more: %v", err)
	}
	if _, err := b.GC(ctx, GCOptions{ExitedPods: time.Nanosecond}); err != nil {
		t.Error(err)
	}
	if _, err := b.Pod(ready); !errors.Is(err, pod.ErrNotFound) {
		t.Errorf("a pod that never got an app: %v", err)
	}
}

// TestGCOfLostApps: of an app that a power cut ended only the start is known. Its age
// is counted from when its end was first seen.
func TestGCOfLostApps(t *testing.T) {
	t.Parallel()
	b := newBench(t, false, nil)
	ctx := t.Context()
	spec := hostPod("lost")
	spec.Owner = pod.OwnerCLI
	a := b.preparedIn(spec, pod.Resources{})
	dir := b.Engine.store.App(a.Pod, a.ID)
	b.put(filepath.Join(dir, "run.json"), pod.Run{Started: time.Now().Add(-24 * time.Hour), BootID: "another", PID: 1})
	status := func() pod.AppStatus {
		t.Helper()
		s, err := b.App(a.ID)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	before := status()
	if !before.Lost || before.Phase != pod.Exited {
		t.Fatalf("the app is %+v", before)
	}
	for _, dry := range []bool{true, false} {
		if _, err := b.GC(ctx, GCOptions{ExitedPods: time.Hour, DryRun: dry}); err != nil {
			t.Fatal(err)
		}
		if s := status(); s.Lost != dry {
			t.Errorf("after a collection (dry %v) its end is still not known: %v", dry, s.Lost)
		}
	}
	s := status()
	if time.Since(s.Finished) > time.Minute || s.Exit.Code != before.Exit.Code || s.Exit.Message != before.Exit.Message {
		t.Errorf("its end is %+v, and was %+v", s.Exit, before.Exit)
	}
	if _, err := b.GC(ctx, GCOptions{ExitedPods: time.Nanosecond}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Pod(a.Pod); !errors.Is(err, pod.ErrNotFound) {
		t.Errorf("a pod that is long dead: %v", err)
	}
}

// TestNeverStarted: an app that was not started before its pod went down is waited
// for by nobody.
func TestNeverStarted(t *testing.T) {
	t.Parallel()
	b := newBench(t, false, nil)
	ctx := t.Context()
	spec := hostPod("never")
	spec.Owner = pod.OwnerCLI
	a := b.preparedIn(spec, pod.Resources{})
	brief, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := b.WaitApp(brief, a.ID); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("an app that may still be started: %v", err)
	}
	if _, err := b.GC(ctx, GCOptions{ExitedPods: time.Nanosecond}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Pod(a.Pod); err != nil {
		t.Errorf("a prepared pod: %v", err)
	}
	if err := b.StopPod(ctx, a.Pod); err != nil {
		t.Fatal(err)
	}
	if _, err := b.WaitApp(ctx, a.ID); !errors.Is(err, pod.ErrState) {
		t.Errorf("an app that never will be started: %v", err)
	}
	if _, err := b.GC(ctx, GCOptions{ExitedPods: time.Nanosecond}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Pod(a.Pod); !errors.Is(err, pod.ErrNotFound) {
		t.Errorf("a pod that was stopped before it started: %v", err)
	}
}

// TestImageRemovedMeanwhile: the image went after the app was planned with it.
func TestImageRemovedMeanwhile(t *testing.T) {
	t.Parallel()
	b := newBench(t, false, nil)
	b.stepped = func(step string) {
		if step == "create app/record" {
			if err := b.cfg.Images.Remove(t.Context(), b.image); err != nil {
				t.Error(err)
			}
		}
	}
	p, err := b.CreatePod(t.Context(), hostPod("late"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.CreateApp(t.Context(), p.ID, AppSpec{Name: "app", Image: b.image, Command: []string{"app"}})
	if !errors.Is(err, pod.ErrNotFound) || !strings.Contains(err.Error(), "removed meanwhile") {
		t.Errorf("error = %v", err)
	}
	if s, err := b.Pod(p.ID); err != nil || len(s.Apps) != 0 {
		t.Errorf("apps %v, %v", s.Apps, err)
	}
}

// TestImageRemovedBeforeRetry: the program died after it had made the app, before it
// looked whether its image is still there.
func TestImageRemovedBeforeRetry(t *testing.T) {
	t.Parallel()
	b := newBench(t, false, nil)
	spec := hostPod("again")
	spec.Owner = pod.OwnerCRI
	p, err := b.CreatePod(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	app := AppSpec{Name: "app", Image: b.image, Command: []string{"app"}}
	one, err := b.CreateApp(t.Context(), p.ID, app)
	if err != nil {
		t.Fatal(err)
	}
	if two, err := b.CreateApp(t.Context(), p.ID, app); err != nil || two.ID != one.ID {
		t.Errorf("created again: %v, %v", two, err)
	}
	_, hex, _ := strings.Cut(one.Image.ID, ":")
	if err := os.RemoveAll(filepath.Join(b.dir, "root", "images", hex)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.CreateApp(t.Context(), p.ID, app); !errors.Is(err, pod.ErrNotFound) || !strings.Contains(err.Error(), "removed meanwhile") {
		t.Errorf("error = %v", err)
	}
	if s, err := b.Pod(p.ID); err != nil || len(s.Apps) != 0 {
		t.Errorf("apps %v, %v", s.Apps, err)
	}
}

// TestLockHeld: who waits for a pod's lock gives up with its context.
func TestLockHeld(t *testing.T) {
	t.Parallel()
	b := newBench(t, false, nil)
	p, err := b.CreatePod(t.Context(), hostPod("held"))
	if err != nil {
		t.Fatal(err)
	}
	lock, err := disk.TryLock(b.Engine.store.Pod(p.ID))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := b.lockPod(ctx, p.ID); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

// TestAppArmorDefaultIsNeverLeftOut: an app that asks for the default profile is
// refused where it is not loaded.
func TestAppArmorDefaultIsNeverLeftOut(t *testing.T) {
	t.Parallel()
	e := &Engine{cfg: Config{AppArmorDefault: "no-such-profile"}}
	for _, kind := range []pod.ProfileKind{"", pod.ProfileRuntimeDefault} {
		err := e.checkAppArmor(&pod.Pod{}, pod.Security{AppArmor: pod.Profile{Kind: kind}})
		if !errors.Is(err, pod.ErrUnavailable) || !strings.Contains(err.Error(), "no-such-profile") {
			t.Errorf("kind %q: %v", kind, err)
		}
		if err := e.checkAppArmor(&pod.Pod{}, pod.Security{Privileged: true, AppArmor: pod.Profile{Kind: kind}}); err != nil {
			t.Errorf("a privileged app: %v", err)
		}
	}
	if err := e.checkAppArmor(&pod.Pod{}, pod.Security{AppArmor: pod.Profile{Kind: pod.ProfileUnconfined}}); err != nil {
		t.Errorf("an app that is to be unconfined: %v", err)
	}
	for _, none := range []string{"", "unconfined"} {
		e.cfg.AppArmorDefault = none
		if err := e.checkAppArmor(&pod.Pod{}, pod.Security{}); err != nil {
			t.Errorf("default %q: %v", none, err)
		}
	}
}

// TestLockOfHungPlugin: the plugin of a killed program that has a pod's lock for
// longer than it may is ended.
func TestLockOfHungPlugin(t *testing.T) {
	t.Parallel()
	b := newBench(t, false, nil)
	p, err := b.CreatePod(t.Context(), hostPod("hung"))
	if err != nil {
		t.Fatal(err)
	}
	lock, err := disk.TryLock(b.Engine.store.Pod(p.ID))
	if err != nil {
		t.Fatal(err)
	}
	plugin := exec.Command("/bin/sleep", "1000")
	plugin.Env = []string{"GANTRY_CNI_CALL=" + string(p.ID) + ".0123456789abcdef"}
	plugin.ExtraFiles = []*os.File{lock.File()}
	if err := plugin.Start(); err != nil {
		t.Fatal(err)
	}
	// As when its program is killed: the lock is the plugin's alone.
	if err := lock.File().Close(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = plugin.Wait(); close(ended) }()
	if err := b.RemovePod(t.Context(), p.ID); err != nil {
		t.Error(err)
	}
	<-ended
}

// TestUnreadablePod: a pod whose record is damaged, and was never read, is not taken for
// one that is gone: nobody is told that it was removed, and its image is kept. While it is
// up a program that serves a kubelet lists nothing (TestDamagedPods).
func TestUnreadablePod(t *testing.T) {
	t.Parallel()
	for _, live := range []bool{false, true} {
		b := newBench(t, false, nil)
		ctx := t.Context()
		p, err := b.CreatePod(ctx, hostPod("damaged"))
		if err != nil {
			t.Fatal(err)
		}
		a, err := b.CreateApp(ctx, p.ID, AppSpec{Name: "app", Image: b.image, Command: []string{"app"}})
		if err != nil {
			t.Fatal(err)
		}
		if err := b.StartApp(ctx, a.ID); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(b.Engine.store.Pod(p.ID)+"/pod.json", []byte("{"), 0o644); err != nil {
			t.Fatal(err)
		}
		b.restart()
		if live {
			if err := b.pid1.Stop(ctx, unit.Pod(string(p.ID))); err != nil {
				t.Fatal(err)
			}
			if err := b.Watch(ctx); err != nil {
				t.Fatal(err)
			}
		}
		for name, err := range map[string]error{
			"stop pod": b.StopPod(ctx, a.Pod), "remove pod": b.RemovePod(ctx, p.ID), "remove app": b.RemoveApp(ctx, a.ID), "stop app": b.StopApp(ctx, a.ID, 0),
		} {
			if !errors.Is(err, pod.ErrUnavailable) || errors.Is(err, pod.ErrInvalid) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if !b.ImageInUse(b.image) {
			t.Error("its image may be removed")
		}
		if pods := b.pods(); len(pods) != 0 {
			t.Errorf("listed: %+v", pods)
		}
		b.collectAround(p.ID, a.ID, !live)
		if err := b.pid1.Stop(ctx, unit.App(string(a.ID))); err != nil { // what records its end must not write while the directory goes
			t.Error(err)
		}
	}
}

// collectAround runs gc, which takes nothing of a pod that cannot be read, and the rest.
func (b *bench) collectAround(p, app pod.ID, up bool) {
	b.t.Helper()
	orphan := pod.NewID()
	lease := func(id pod.ID) string { return filepath.Join(b.dir, "cni", "attachments", string(id)+".json") }
	spool := func(id pod.ID) string { return filepath.Join(b.dir, "run", "exits", string(id)) }
	kept := []string{b.runDir(p), lease(p), spool(app), b.Engine.store.Pod(p), b.Engine.store.App(p, app)}
	gone := []string{lease(orphan), spool(orphan)}
	if err := os.MkdirAll(filepath.Dir(lease(p)), 0o700); err != nil {
		b.t.Fatal(err)
	}
	for _, id := range []pod.ID{p, orphan} {
		b.put(lease(id), map[string]any{"version": 1, "pod": id, "confList": json.RawMessage(`{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"plug"}]}`)})
	}
	b.put(spool(app), "")
	b.put(spool(orphan), "")
	if err := os.WriteFile(filepath.Join(b.dir, "plug"), []byte("#!/bin/sh\n"), 0o755); err != nil { // it agrees to everything
		b.t.Fatal(err)
	}
	b.wantThere(true, slices.Concat(kept, gone)...)
	if _, err := b.GC(b.t.Context(), GCOptions{Images: true, ExitedPods: time.Nanosecond}); err != nil {
		b.t.Error(err)
	}
	b.wantThere(true, kept...)
	b.wantThere(false, gone...)
	for _, name := range []string{unit.Pod(string(p)), unit.App(string(app))} {
		if s, err := b.pid1.State(b.t.Context(), name); err != nil || s.Running() != up {
			b.t.Errorf("%s runs: %v, want %v (%v)", name, s.Running(), up, err)
		}
	}
	if has, err := b.cfg.Images.Has(b.t.Context(), b.image); !has || err != nil {
		b.t.Errorf("its image is there: %v, %v", has, err)
	}
}

// TestGCKeepsDamagedApps: a pod of which an app cannot be read is neither unfinished nor
// long dead, whatever else is known of it.
func TestGCKeepsDamagedApps(t *testing.T) {
	t.Parallel()
	b := newBench(t, false, nil)
	spec := hostPod("torn")
	spec.Owner = pod.OwnerCLI
	a := b.preparedIn(spec, pod.Resources{})
	if err := b.pid1.Stop(t.Context(), unit.Pod(string(a.Pod))); err != nil {
		t.Fatal(err)
	}
	record := filepath.Join(b.Engine.store.App(a.Pod, a.ID), "app.json")
	whole, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(record, whole[:len(whole)/2], 0o644); err != nil {
		t.Fatal(err)
	}
	b.restart()
	collect := func(want bool) {
		t.Helper()
		if _, err := b.GC(t.Context(), GCOptions{ExitedPods: time.Nanosecond}); err != nil {
			t.Error(err)
		}
		b.wantThere(want, b.Engine.store.Pod(a.Pod))
	}
	collect(true)
	b.wantThere(true, record)
	if _, err := b.CreatePod(t.Context(), spec); !errors.Is(err, pod.ErrExists) {
		t.Errorf("another of its name: %v", err)
	}
	b.wantThere(true, record)
	if err := os.WriteFile(record, whole, 0o644); err != nil {
		t.Fatal(err)
	}
	b.restart()
	collect(false)
}

// TestEndOfADamagedPod: one that is listed can be stopped and removed.
func TestEndOfADamagedPod(t *testing.T) {
	t.Parallel()
	for _, live := range []bool{false, true} {
		b := newBench(t, live, nil)
		a := b.running()
		for _, file := range []string{"pod.json", "apps/" + string(a.ID) + "/app.json"} {
			if err := os.WriteFile(filepath.Join(b.Engine.store.Pod(a.Pod), file), []byte("{"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.StopApp(t.Context(), a.ID, 0); err != nil {
			t.Error(err)
		}
		if err := b.StopPod(t.Context(), a.Pod); err != nil {
			t.Error(err)
		}
		if err := b.RemovePod(t.Context(), a.Pod); err != nil {
			t.Error(err)
		}
		eventually(t, "all is gone", func() bool { return len(b.left()) == 0 && len(b.pods()) == 0 })
	}
}

// restart puts another engine in the place of the one that has seen what there was.
func (b *bench) restart() {
	b.t.Helper()
	e, err := New(b.t.Context(), b.cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { e.Close() })
	b.Engine = e
}

// TestClockSetBack: what is made later was created later, whatever the clock says.
// Kubelet takes the last one for the one that counts.
func TestClockSetBack(t *testing.T) {
	t.Parallel()
	b := newBench(t, false, nil)
	ctx := t.Context()
	spec := hostPod("clock")
	first, err := b.CreatePod(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	app, err := b.CreateApp(ctx, first.ID, AppSpec{Name: "app", Image: b.image, Command: []string{"app"}})
	if err != nil {
		t.Fatal(err)
	}
	// The records are as if they had been made before the clock was set back.
	ahead := time.Now().Add(time.Hour).Round(0)
	for path, change := range map[string]func() any{
		"pod.json":                             func() any { first.Created = ahead; return first },
		"apps/" + string(app.ID) + "/app.json": func() any { app.Created = ahead; return app },
	} {
		b.put(filepath.Join(b.cfg.Root, "pods", string(first.ID), path), change())
	}
	b.restart()
	next := spec
	next.Attempt++
	second, err := b.CreatePod(ctx, next)
	if err != nil || !second.Created.After(ahead) {
		t.Errorf("the second pod was created at %s, the first at %s: %v", second.Created, ahead, err)
	}
	retried, err := b.CreateApp(ctx, first.ID, AppSpec{Name: "app", Attempt: 1, Image: b.image, Command: []string{"app"}})
	if err != nil || !retried.Created.After(ahead) {
		t.Errorf("the second app was created at %s, the first at %s: %v", retried.Created, ahead, err)
	}
}
