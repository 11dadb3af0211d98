//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"sync"
	"testing"
	"time"

	"gantry/internal/systemd"
	"gantry/internal/systemd/systemdtest"
	"gantry/internal/unit"
)

func dialSystemd(t *testing.T) *systemd.Manager {
	t.Helper()
	m, err := systemd.Dial(t.Context(), systemd.Config{
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Patience: 2 * time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestSystemdKeepsTheContract runs the suite that the fake passes against PID 1.
func TestSystemdKeepsTheContract(t *testing.T) {
	guard(t)
	systemdtest.Run(t, func(t *testing.T) systemdtest.Manager { return dialSystemd(t) },
		func(t *testing.T, _ systemdtest.Manager) { sh(t, "systemctl restart dbus.service") })
}

// TestSystemdDisturbed starts and stops units while the bus is restarted and PID 1
// reloads and executes itself again. Every call ends well, or says that it got lost.
func TestSystemdDisturbed(t *testing.T) {
	guard(t)
	m := dialSystemd(t)
	t.Cleanup(func() { m.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	events, err := m.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan map[systemd.EventKind]int)
	watching, enough := context.WithCancel(ctx)
	go func() {
		kinds := map[systemd.EventKind]int{}
		for {
			select {
			case e := <-events:
				kinds[e.Kind]++
			case <-watching.Done():
				seen <- kinds
				return
			}
		}
	}()

	busy, rest := context.WithCancel(ctx)
	var group sync.WaitGroup
	for worker := range 4 {
		group.Go(func() { startAndStop(ctx, t, m, worker, busy.Done()) })
	}
	for _, disturb := range []string{
		"systemctl daemon-reload", "systemctl daemon-reexec", "systemctl restart dbus",
		"systemctl daemon-reload", "systemctl daemon-reexec", "systemctl restart dbus",
	} {
		began := time.Now()
		out, err := exec.CommandContext(ctx, "sh", "-c", disturb).CombinedOutput()
		t.Logf("%s: %v, %v %s", disturb, time.Since(began).Round(time.Millisecond), err, out)
		time.Sleep(2 * time.Second) // let the workers meet it
	}
	rest()
	group.Wait()
	enough()
	kinds := <-seen
	t.Logf("events: %v", kinds)
	if kinds[systemd.Reconnected] < 2 || kinds[systemd.Disconnected] < 2 || kinds[systemd.Reload] < 4 {
		t.Errorf("events %v: want the restarts and reloads among them", kinds)
	}
	left, err := m.Units(ctx, "gantry-test-*")
	if err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func startAndStop(ctx context.Context, t *testing.T, m *systemd.Manager, worker int, end <-chan struct{}) {
	for round := 0; ; round++ {
		select {
		case <-end:
			t.Logf("worker %d: %d rounds", worker, round)
			return
		default:
		}
		u := sleeper(fmt.Sprintf("gantry-test-%d-%d.service", worker, round))
		s, err := m.Start(ctx, u)
		for errors.Is(err, systemd.ErrLost) {
			s, err = m.Start(ctx, u) // a sleeper that is not there did not run
		}
		if err != nil || s.InvocationID == "" {
			t.Errorf("start: %+v, %v", s, err)
		}
		if err := m.Stop(ctx, u.Name); err != nil {
			t.Error(err)
		}
	}
}

func sleeper(name string) unit.Unit {
	return unit.Unit{Name: name, Properties: []unit.Property{
		{Name: "CollectMode", Value: unit.String("inactive-or-failed")},
		{Name: "Type", Value: unit.String("exec")},
		{Name: "ExecStart", Value: unit.Commands{{Path: "/bin/sleep", Args: []string{"sleep", "1000"}}}},
	}}
}

// BenchmarkSystemd tells what the calls of the port cost.
func BenchmarkSystemd(b *testing.B) {
	m, err := systemd.Dial(b.Context(), systemd.Config{})
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	u := sleeper("gantry-test-bench.service")
	b.Run("start and stop", func(b *testing.B) {
		for b.Loop() {
			if _, err := m.Start(b.Context(), u); err != nil {
				b.Fatal(err)
			}
			if err := m.Stop(b.Context(), u.Name); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("start and stop while somebody watches", func(b *testing.B) {
		events, err := m.Watch(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			if _, err := m.Start(b.Context(), u); err != nil {
				b.Fatal(err)
			}
			if err := m.Stop(b.Context(), u.Name); err != nil {
				b.Fatal(err)
			}
			for len(events) > 0 {
				<-events
			}
		}
	})
	if _, err := m.Start(b.Context(), u); err != nil {
		b.Fatal(err)
	}
	defer m.Stop(b.Context(), u.Name)
	b.Run("state", func(b *testing.B) {
		for b.Loop() {
			if _, err := m.State(b.Context(), u.Name); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("units", func(b *testing.B) {
		for b.Loop() {
			if _, err := m.Units(b.Context(), "gantry-*"); err != nil {
				b.Fatal(err)
			}
		}
	})
}
