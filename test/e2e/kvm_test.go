//go:build e2e

package e2e

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"gantry/internal/node"
	"gantry/internal/pod"
)

// openMachines is a node whose pods may be virtual machines.
func openMachines(t *testing.T) *node.Node {
	t.Helper()
	sh(t, "modprobe -a kvm_amd vhost_vsock vhost_net tun; test -e /dev/kvm && test -e /dev/vhost-vsock")
	n, err := node.Open(t.Context(), node.Options{
		Log:      slog.New(slog.NewTextHandler(t.Output(), nil)),
		Machines: node.Machines{Memory: 256 << 20, Overhead: 160 << 20, Disk: 1 << 30, CPUs: 1, BootSeconds: int(patience(30 * time.Second).Seconds())},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

func inKVM(p *pod.Pod) { p.Handler = "kvm" }

// TestKVM: a pod is a virtual machine with the pod's address, and its apps are units as any
// other's.
func TestKVM(t *testing.T) {
	guard(t)
	n := openMachines(t)
	pull(t, n, busybox)
	began := time.Now()
	p := newPod(t, n, inKVM)
	t.Logf("the machine is up after %s", time.Since(began).Round(time.Millisecond))
	host := strings.TrimSpace(sh(t, "cat /proc/sys/kernel/random/boot_id"))
	if got := printed(t, n, p, "cat /proc/sys/kernel/random/boot_id"); got == host || len(got) != len(host) {
		t.Errorf("the pod's kernel was booted as %q, that of the host as %q", got, host)
	}
	s, err := n.Pod(p.ID)
	if err != nil || len(s.IPs) == 0 {
		t.Fatalf("pod %+v, %v", s, err)
	}
	if got := printed(t, n, p, "hostname; ip -4 -o addr show eth0 | sed 's/.*inet //; s#/.*##'"); got != "gantry-test\n"+s.IPs[0] {
		t.Errorf("inside: %q, want the name and %s", got, s.IPs[0])
	}
	a := newApp(t, n, p, shell("trap 'exit 42' TERM; echo up; while :; do sleep 0.1; done"))
	start(t, n, a)
	if out, code := execIn(t, n, a, pod.Process{Argv: []string{"sh", "-c", "cat; ps | grep -c '[t]rap'; exit 5"}}, "in\n"); out != "in\n1\n" || code != 5 {
		t.Errorf("exec: %q, %d", out, code)
	}
	if err := n.StopApp(t.Context(), a.ID, patience(10*time.Second)); err != nil {
		t.Error(err)
	}
	if s := wait(t, n, a); s.Exit.Code != 42 || s.Exit.Signal != 0 {
		t.Errorf("the stopped app ended as %+v", s.Exit)
	}
}
