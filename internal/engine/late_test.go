package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"gantry/internal/isolator"
	"gantry/internal/pod"
	"gantry/internal/systemd/systemdtest"
	"gantry/internal/unit"
)

// belated is an isolator whose pods have a late unit.
type belated struct {
	isolator.Isolator
	lacks error
}

func (b belated) Name() string { return "late" }

func (b belated) Sandbox(in isolator.Sandbox) (isolator.Plan, error) {
	plan, err := b.Isolator.Sandbox(in)
	plan.Late = []unit.Unit{{Name: unit.Machine(string(in.Pod.ID)), Properties: []unit.Property{
		{Name: "Type", Value: unit.String("oneshot")},
		{Name: "ExecStart", Value: unit.Commands{{Path: "/machine", Args: []string{"/machine", in.Dir.Pod}}}},
	}}}
	return plan, err
}

func (b belated) LateUnits(id pod.ID) []string { return []string{unit.Machine(string(id))} }
func (b belated) LateErrors(d isolator.Dirs) []string {
	return []string{filepath.Join(d.Pod, "none"), filepath.Join(d.Pod, "why")}
}
func (b belated) Networked(isolator.Dirs) error           { return nil }
func (b belated) Furnish(context.Context) error           { return b.lacks }
func (b belated) Cleanup(context.Context, *pod.Pod) error { return nil }

// late is an engine whose pods have late units, on a node that lacks something for them.
func late(t *testing.T, cfg Config, lacks error) *Engine {
	t.Helper()
	cfg.Isolators, cfg.Isolator = []isolator.Isolator{belated{cfg.Isolators[0], lacks}}, "late"
	e, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	if err := e.Watch(t.Context()); err != nil {
		t.Fatal(err)
	}
	return e
}

// TestLateUnitThatFails: the pod's error is what the unit said, and nothing is left.
func TestLateUnitThatFails(t *testing.T) {
	t.Parallel()
	for name, says := range map[string]string{"": "job of gantry-machine-", "says why": "boot the machine: Kernel panic"} {
		b := newBench(t, true, nil)
		cfg := b.cfg
		pid1 := systemdtest.New(func(_ context.Context, p systemdtest.Process) systemdtest.Exit {
			if p.Args[0] != "/machine" {
				return systemdtest.Exit{}
			}
			if name != "" {
				b.put(filepath.Join(p.Args[1], "why"), "boot the machine: Kernel panic")
			}
			return systemdtest.Exit{Code: 1}
		})
		t.Cleanup(func() { pid1.Close() })
		cfg.Systemd = pid1
		_, err := late(t, cfg, nil).CreatePod(t.Context(), hostPod("late"))
		if !errors.Is(err, pod.ErrUnavailable) || !strings.Contains(err.Error(), "create pod: late units are up: ") || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v", name, err)
		}
		left, err := os.ReadDir(filepath.Join(cfg.Root, "pods"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) || len(left) > 0 {
			t.Errorf("%q: left %v, %v", name, left, err)
		}
	}
}

// TestLateUnitThatWaits: it may wait for what does not come. It is stopped then, and nobody
// waits for it.
func TestLateUnitThatWaits(t *testing.T) {
	t.Parallel()
	b := newBench(t, true, nil)
	cfg := b.cfg
	begun := make(chan struct{})
	var ended atomic.Bool
	pid1 := systemdtest.New(func(ctx context.Context, p systemdtest.Process) systemdtest.Exit {
		if p.Args[0] == "/machine" {
			close(begun)
			select {
			case <-p.Signals:
			case <-ctx.Done():
			}
			ended.Store(true)
		}
		return systemdtest.Exit{}
	})
	t.Cleanup(func() { pid1.Close() })
	cfg.Systemd = pid1
	e := late(t, cfg, nil)
	p := hostPod("late")
	p.ID, p.Isolator = pod.NewID(), "late"
	p.Slice = unit.PodSlice(string(p.ID))
	plan, err := e.iso["late"].Sandbox(isolator.Sandbox{Pod: &p, Dir: e.dirs(p.ID, "")})
	if err != nil {
		t.Fatal(err)
	}
	m := &making{e: e, p: &p, plan: plan, up: func() error { return nil }}
	if err := m.stopLate(t.Context()); err != nil {
		t.Errorf("stop what was not begun: %v", err)
	}
	if err := m.beginLate(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-begun
	if err := m.stopLate(t.Context()); err != nil || !ended.Load() {
		t.Errorf("stop: %v, it has ended: %t", err, ended.Load())
	}
	if err := m.late.up(); !errors.Is(err, context.Canceled) {
		t.Errorf("the start: %v", err)
	}
}

// TestLateUnitFailsMeanwhile: a late unit that failed while the network was made, which then
// failed too, is what is told; a late unit that waits for the network is not.
func TestLateUnitFailsMeanwhile(t *testing.T) {
	t.Parallel()
	b := newBench(t, true, nil)
	failed := fmt.Errorf("boot the machine: no memory: %w", pod.ErrUnavailable)
	for name, c := range map[string]struct {
		up   func(context.Context) error
		want string
	}{
		"failed": {func(context.Context) error { return failed }, "late units, meanwhile: boot the machine: no memory"},
		"waits": {func(ctx context.Context) error {
			<-ctx.Done()
			return fmt.Errorf("wait for job: %w", ctx.Err())
		}, "network"},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		p := hostPod("late")
		p.ID, p.Namespaces.Network = pod.NewID(), pod.NamespacePod
		m := &making{e: b.Engine, p: &p, late: &lateStart{cancel: cancel, over: make(chan struct{})}}
		m.late.up = b.begin("late units", func() error {
			defer close(m.late.over)
			return c.up(ctx)
		})
		err := m.addNetwork(t.Context())
		if err == nil || !strings.Contains(err.Error(), c.want) || errors.Is(err, failed) != (name == "failed") {
			t.Errorf("%s: %v", name, err)
		}
		if name == "failed" && !strings.Contains(err.Error(), "network add") {
			t.Errorf("it does not tell of the network: %v", err)
		}
	}
}

// TestFurnishFails: where what all machines boot cannot be made, no unit is started, and
// nothing is left.
func TestFurnishFails(t *testing.T) {
	t.Parallel()
	cfg := newBench(t, true, nil).cfg
	cfg.Root, cfg.Run = t.TempDir(), t.TempDir()
	why := fmt.Errorf("no room: %w", pod.ErrUnavailable)
	if _, err := late(t, cfg, why).CreatePod(t.Context(), hostPod("late")); !errors.Is(err, why) {
		t.Error(err)
	}
	if left, err := os.ReadDir(filepath.Join(cfg.Root, "pods")); err != nil && !errors.Is(err, fs.ErrNotExist) || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

// own is an isolator whose pods have a kernel of their own.
type own struct{ belated }

func (o own) Features() isolator.Features {
	f := o.belated.Features()
	f.OwnKernel = true
	return f
}

// TestOwnKernel: no process of the host holds the PID namespace of a pod with a kernel of its
// own, so none is looked for, nor a profile in the host's.
func TestOwnKernel(t *testing.T) {
	t.Parallel()
	b := newBench(t, true, nil)
	a := b.running()
	p, err := b.podRecord(a.Pod)
	if err != nil {
		t.Fatal(err)
	}
	shared := *p
	shared.Namespaces.PID = pod.NamespacePod
	if _, err := b.joinedPIDs(t.Context(), &shared, a.App); !errors.Is(err, pod.ErrState) || !strings.Contains(err.Error(), "the holder of pod") {
		t.Errorf("of the host's kernel: %v", err)
	}
	b.iso["own"] = own{belated{b.iso["oci"], nil}}
	shared.Isolator = "own"
	for _, kind := range []pod.ProfileKind{pod.ProfileRuntimeDefault, pod.ProfileLocalhost} {
		profile := pod.Security{AppArmor: pod.Profile{Kind: kind, Localhost: "no-such"}}
		if err := b.checkAppArmor(&shared, profile); err != nil {
			t.Errorf("a profile of the host's kernel, %s: %v", kind, err)
		}
	}
	debug := *a.App
	debug.Namespaces = pod.Namespaces{PID: pod.NamespaceTarget, Target: a.ID}
	for _, app := range []*pod.App{a.App, &debug} {
		if _, err := b.joinedPIDs(t.Context(), &shared, app); err != nil {
			t.Errorf("%s: %v", app.Namespaces.PID, err)
		}
	}
}
