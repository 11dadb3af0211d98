//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gantry/internal/config"
	"gantry/internal/engine"
	"gantry/internal/node"
	"gantry/internal/pod"
	"gantry/internal/unit"
)

// withRuntimes is a node with other runtimes than openNode's.
func withRuntimes(t *testing.T, runtimes ...config.Runtime) *node.Node {
	t.Helper()
	n, err := node.Open(t.Context(), node.Options{Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Runtimes: runtimes})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

// TestRuncExits: how an app of another runtime ended is recorded as any other.
func TestRuncExits(t *testing.T) {
	guard(t)
	n := openNode(t)
	pull(t, n, busybox)
	p := newPod(t, n, inRunc, hostNetwork)
	for _, test := range []struct {
		name, script string
		memory       int64
		code, signal int
		reason       string
	}{
		{"code", "exit 7", 0, 7, 0, pod.ReasonError},
		{"signal", "exec sleep 1000", 0, 137, 9, pod.ReasonError},
		{"a small limit", "exit 0", 16 << 20, 0, 0, pod.ReasonCompleted},
		{"out of memory", "x=a; while true; do x=$x$x; done", 16 << 20, 137, 9, pod.ReasonOOMKilled},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := newApp(t, n, p, shell(test.script), limits(pod.Resources{Memory: test.memory, MemorySwap: test.memory}))
			start(t, n, a)
			if test.name == "signal" {
				s, err := n.App(a.ID)
				if err != nil {
					t.Fatal(err)
				}
				sh(t, fmt.Sprintf("kill -9 %d", s.PID))
			}
			if s := wait(t, n, a); s.Exit.Code != test.code || s.Exit.Signal != test.signal || s.Exit.Reason != test.reason {
				t.Errorf("%+v", s.Exit)
			}
		})
	}
	a := newApp(t, n, p, command("/no/such/program"))
	if err := n.StartApp(t.Context(), a.ID); err == nil || !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("start: %v", err)
	}
	if s := wait(t, n, a); s.Exit.Code != 128 || s.Exit.Reason != pod.ReasonStartError {
		t.Errorf("%+v", s.Exit)
	}
}

// TestRuncGroup: the unit has the limits, and so has the group in it that the app takes
// for its cgroup. An exec is in a group of its own, and goes with it. A crun beside it, in
// the same slice, is as ever.
func TestRuncGroup(t *testing.T) {
	guard(t)
	n := openNode(t)
	pull(t, n, busybox)
	p := newPod(t, n, inRunc, hostNetwork)
	a := newApp(t, n, p, command("sleep", "1000"), limits(pod.Resources{Memory: 64 << 20, CPUQuota: 150500, CPUPeriod: 100000, Pids: 40}))
	start(t, n, a)
	dir := filepath.Join("/sys/fs/cgroup", unit.CgroupOf(p.Slice), unit.App(string(a.ID)))
	const files = "memory.max cpu.max pids.max"
	// The unit's memory is lifted until runc has left, a moment after the start.
	eventually(t, 10*time.Second, "the unit's limit", func() bool { return sh(t, "cat "+dir+"/memory.max") == "67108864" })
	for _, in := range []string{dir, dir + "/gantry"} {
		sameText(t, sh(t, "cd "+in+" && cat "+files), "67108864\n150500 100000\n40")
	}
	const look = "cat /proc/self/cgroup | sed 's/exec-.*/exec/'; cd /sys/fs/cgroup && cat " + files
	out, _ := execIn(t, n, a, pod.Process{Argv: []string{"sh", "-c", look}}, "")
	sameText(t, out, "0::/exec\n67108864\n150500 100000\n40\n")
	if err := n.UpdateApp(t.Context(), a.ID, pod.Resources{Memory: 48 << 20, CPUQuota: 100000}); err != nil {
		t.Fatal(err)
	}
	for _, in := range []string{dir, dir + "/gantry"} {
		sameText(t, sh(t, "cd "+in+" && cat "+files), "50331648\n100000 100000\n40")
	}
	if s, err := n.AppStats(t.Context(), a.ID); err != nil || s.MemoryUsage == 0 || s.CPUNanos == 0 {
		t.Errorf("stats %+v, %v", s, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience(2*time.Second))
	defer cancel()
	_, err := n.Exec(ctx, a.ID, pod.Process{Argv: []string{"sh", "-c", "sleep 4711 & sleep 4711"}}, engine.Streams{})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("exec: %v", err)
	}
	eventually(t, 10*time.Second, "the exec's cgroup is gone", func() bool {
		return sh(t, fmt.Sprintf("ls -d %[1]s/exec-* %[1]s/gantry/exec-* 2>/dev/null | wc -l; pgrep -fc '^sleep 4711' || true", dir)) == "0\n0"
	})
	if _, err := n.Exec(t.Context(), a.ID, pod.Process{Argv: []string{"/no/such/program"}}, engine.Streams{}); !errors.Is(err, pod.ErrInvalid) || !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("exec of nothing: %v", err)
	}
	if err := n.CheckpointApp(t.Context(), a.ID, filepath.Join(t.TempDir(), "c.tar"), 0); !errors.Is(err, pod.ErrUnsupported) {
		t.Errorf("checkpoint: %v", err)
	}
}

// TestRuncRefuses what it cannot do, and others than it are not kept from their work.
func TestRuncRefuses(t *testing.T) {
	guard(t)
	ids := []pod.IDMap{{Container: 0, Host: 1 << 20, Length: 65536}}
	asked := func(handler string) pod.Pod {
		return pod.Pod{
			Owner: pod.OwnerCLI, Name: "refused", Handler: handler,
			Namespaces: pod.Namespaces{Network: pod.NamespaceNode, PID: pod.NamespaceApp, IPC: pod.NamespacePod},
		}
	}
	mapped := asked("runc")
	mapped.Namespaces.Network = pod.NamespacePod
	mapped.Namespaces.User = &pod.UserNS{UIDs: ids, GIDs: ids}
	if _, err := openNode(t).CreatePod(t.Context(), mapped); !errors.Is(err, pod.ErrUnsupported) {
		t.Errorf("users of its own: %v", err)
	}
	n := withRuntimes(t, config.Runtime{Name: "gone", Command: []string{"/nowhere/runc"}})
	pull(t, n, busybox)
	if _, err := n.CreatePod(t.Context(), asked("gone")); !errors.Is(err, pod.ErrUnavailable) || !strings.Contains(err.Error(), "/nowhere/runc") || !strings.Contains(err.Error(), "install it") {
		t.Errorf("a runtime that is not there: %v", err)
	}
	sameText(t, printed(t, n, newPod(t, n, inOCI, hostNetwork), "echo fine"), "fine")
}

// TestRuncTakenAway: an app runs on when its runtime is no more in the configuration, and
// can be stopped and removed.
func TestRuncTakenAway(t *testing.T) {
	guard(t)
	n := openNode(t)
	pull(t, n, busybox)
	p := newPod(t, n, inRunc, hostNetwork)
	a := newApp(t, n, p, command("sleep", "1000"))
	start(t, n, a)
	without := withRuntimes(t)
	if _, err := without.Exec(t.Context(), a.ID, pod.Process{Argv: []string{"true"}}, engine.Streams{}); !errors.Is(err, pod.ErrUnavailable) || !strings.Contains(err.Error(), `"runc"`) {
		t.Errorf("exec: %v", err)
	}
	if s, err := without.App(a.ID); err != nil || s.Phase != pod.Running {
		t.Errorf("%+v, %v", s, err)
	}
	if err := without.RemovePod(t.Context(), p.ID); err != nil {
		t.Error(err)
	}
}
