package engine

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gantry/internal/disk"
	"gantry/internal/pod"
	"gantry/internal/systemd"
)

// TestExactLimitsAfterAReload: PID 1 writes its own, rounded, limits at a
// daemon-reload, and maybe while nobody listened.
func TestExactLimitsAfterAReload(t *testing.T) {
	t.Parallel()
	for name, event := range map[string]systemd.Event{
		"reload":      {Kind: systemd.Reload},
		"reconnected": {Kind: systemd.Reconnected},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, true, nil)
			app, other := b.runningWith("app", pod.Resources{CPUQuota: 1000}), b.runningWith("other", pod.Resources{CPUQuota: 1000})
			limit := filepath.Join(b.group(app), "cpu.max")
			b.systemdWrites(limit)
			unlimited := filepath.Join(b.group(b.running()), "cpu.max")
			b.systemdWrites(unlimited)
			if err := os.RemoveAll(b.group(other)); err != nil { // it has just ended
				t.Fatal(err)
			}
			if b.onUnit(t.Context(), event, true) {
				t.Error("the reload is not over")
			}
			b.eventuallySays(limit, "1000 100000")
			b.wantThere(false, b.group(other))
			if data, err := os.ReadFile(unlimited); err != nil || string(data) != rounded {
				t.Errorf("an app without such a limit has %q now (%v)", data, err)
			}
		})
	}
}

// TestLimitsOfAnUpdateDuringAReload: what is written is what the holder of the lock
// left, whatever the view says.
func TestLimitsOfAnUpdateDuringAReload(t *testing.T) {
	t.Parallel()
	b := newBench(t, true, nil)
	app := b.runningWith("app", pod.Resources{CPUQuota: 1000})
	limit := filepath.Join(b.group(app), "cpu.max")
	b.systemdWrites(limit)
	lock, err := b.Engine.store.Lock(t.Context(), app.Pod)
	if err != nil {
		t.Fatal(err)
	}
	b.onUnit(t.Context(), systemd.Event{Kind: systemd.Reload}, true)
	if err := b.Engine.store.WriteResources(app.App, pod.Resources{CPUQuota: 2000}); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(limit); err != nil || string(data) != rounded {
		t.Errorf("the limit became %q, %v while another held the lock", data, err)
	}
	if err := lock.Unlock(); err != nil {
		t.Fatal(err)
	}
	b.eventuallySays(limit, "2000 100000")
}

// rounded is a limit as PID 1 writes it.
const rounded = "max 100000"

func (b *bench) systemdWrites(path string) {
	b.t.Helper()
	if err := disk.WriteFile(path, []byte(rounded), 0o644); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) eventuallySays(path, want string) {
	b.t.Helper()
	eventually(b.t, path+" says "+want, func() bool {
		data, err := os.ReadFile(path)
		return err == nil && string(data) == want
	})
}

func (b *bench) group(a pod.AppStatus) string {
	b.t.Helper()
	dir, err := b.appCgroup(a.App)
	if err != nil {
		b.t.Fatal(err)
	}
	return dir
}

// TestKilledAppIsNotHeldBack: what dies needs a CPU to die.
func TestKilledAppIsNotHeldBack(t *testing.T) {
	t.Parallel()
	b := newBench(t, true, nil)
	app := b.runningWith("app", pod.Resources{CPUQuota: 1000})
	limit, kill := filepath.Join(b.group(app), "cpu.max"), filepath.Join(b.group(app), "cgroup.kill")
	b.systemdWrites(limit)
	if err := os.WriteFile(kill, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := b.killCgroup(app); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{limit: "max", kill: "1"} {
		// A file of a cgroup is no longer after a write; this one is.
		if data, err := os.ReadFile(path); err != nil || !strings.HasPrefix(string(data), want) {
			t.Errorf("%s has %q (%v), want %q", filepath.Base(path), data, err, want)
		}
	}
}

// TestLimitsOfAKilledApp: a daemon-reload that ends between a kill and the record of
// the end does not bring back the limit that was lifted for it.
func TestLimitsOfAKilledApp(t *testing.T) {
	t.Parallel()
	b := newBench(t, true, nil)
	app := b.runningWith("app", pod.Resources{CPUQuota: 1000})
	limit := filepath.Join(b.group(app), "cpu.max")
	b.systemdWrites(limit)
	p, err := b.Engine.store.ReadPod(app.Pod)
	if err != nil {
		t.Fatal(err)
	}
	says := func(want string) {
		t.Helper()
		if err := b.rewritePod(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		if data, err := os.ReadFile(limit); err != nil || string(data) != want {
			t.Errorf("the limit is %q (%v), want %q", data, err, want)
		}
	}
	done, again := b.stops.kill(app.ID), b.stops.kill(app.ID)
	says(rounded)
	done()
	says(rounded) // another kill is under way
	again()
	says("1000 100000")
}

// TestKilledAppIsNotHeldBackLater: PID 1 may write the limit after the kill.
func TestKilledAppIsNotHeldBackLater(t *testing.T) {
	t.Parallel()
	b := newBench(t, true, nil)
	app := b.runningWith("app", pod.Resources{CPUQuota: 1000})
	limit := filepath.Join(b.group(app), "cpu.max")
	ctx, cancel := context.WithCancel(t.Context())
	killed := make(chan error, 1)
	go func() { killed <- b.awaitDeath(ctx, app) }()
	for _, again := range []string{"2000 100000", "3000 100000"} {
		if err := disk.WriteFile(limit, []byte(again), 0o644); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the limit is lifted", func() bool {
			data, err := os.ReadFile(limit)
			return err == nil && strings.HasPrefix(string(data), "max")
		})
	}
	cancel()
	if err := <-killed; !errors.Is(err, context.Canceled) {
		t.Errorf("the kill ended with %v", err)
	}
}
