//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"os"
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

const runsc = "/usr/local/bin/runsc"

// inRunsc is a pod whose apps have gVisor's kernel between themselves and the host's.
func inRunsc(p *pod.Pod) { p.Handler = "runsc" }

// withRunsc is a node with gVisor beside crun, by configuration alone.
func withRunsc(t *testing.T) *node.Node {
	t.Helper()
	if _, err := os.Stat(runsc); err != nil {
		notRun(t, "there is no runsc in the VM; put it there with: go run ./test/trial gvisor")
	}
	n := withRuntimes(t, config.Runtime{Name: "runsc", Command: []string{runsc}})
	pull(t, n, busybox)
	return n
}

// TestRunsc: an app is a program of gVisor's kernel, on the pod's address, in its unit.
func TestRunsc(t *testing.T) {
	guard(t)
	n := withRunsc(t)
	p := newPod(t, n, inRunsc)
	volume := t.TempDir()
	a := newApp(t, n, p, shell("trap 'echo bye; exit 9' TERM; mkdir /www; echo I am gVisor >/www/index.html; httpd -p 8080 -h /www; echo up; while :; do sleep 0.2; done"),
		limits(pod.Resources{Memory: 128 << 20, CPUQuota: 150500, CPUPeriod: 100000}),
		with(func(s *engine.AppSpec) { s.Mounts = []pod.Mount{{Path: "/v", HostPath: volume}} }))
	start(t, n, a)
	says(t, a, "up")

	out, code := execIn(t, n, a, pod.Process{Argv: []string{"sh", "-c", "dmesg | grep -c gVisor; hostname; echo $A; cat; echo through >/v/x; exit 5"}, Env: []string{"A=1"}}, "from stdin\n")
	if sameText(t, out, "1\ngantry-test\n1\nfrom stdin\n"); code != 5 {
		t.Errorf("exec ended with %d", code)
	}
	sameText(t, sh(t, "cat "+volume+"/x"), "through")
	out, _ = execIn(t, n, a, pod.Process{Argv: []string{"sh", "-c", "test -t 0 && test -t 1 && echo tty"}, TTY: true}, "")
	sameText(t, out, "tty\r\n")
	status, err := n.Pod(p.ID)
	if err != nil {
		t.Fatal(err)
	}
	sameText(t, sh(t, "curl -s --max-time 60 http://"+status.IPs[0]+":8080/"), "I am gVisor")

	// All that it is is in its unit, with the unit's limits.
	dir := filepath.Join("/sys/fs/cgroup", unit.CgroupOf(p.Slice), unit.App(string(a.ID)))
	eventually(t, 10*time.Second, "the unit's limit", func() bool { return sh(t, "cat "+dir+"/memory.max") == "134217728" })
	if got := sh(t, fmt.Sprintf("for p in $(pgrep -f '[r]unsc.*%s'); do cat /proc/$p/cgroup; done | grep -vc %s || true", a.ID, unit.App(string(a.ID)))); got != "0" {
		t.Errorf("%s processes of runsc are outside of the app's unit", got)
	}
	if err := n.UpdateApp(t.Context(), a.ID, pod.Resources{Memory: 160 << 20}); err != nil {
		t.Fatal(err)
	}
	sameText(t, sh(t, "cat "+dir+"/memory.max"), "167772160")
	if s, err := n.AppStats(t.Context(), a.ID); err != nil || s.MemoryUsage == 0 || s.CPUNanos == 0 {
		t.Errorf("stats %+v, %v", s, err)
	}
	if err := n.StopApp(t.Context(), a.ID, patience(20*time.Second)); err != nil {
		t.Fatal(err)
	}
	if s := wait(t, n, a); s.Exit.Code != 9 || output(t, a) != "up\nbye\n" {
		t.Errorf("it ended as %+v, with the log %q", s.Exit, output(t, a))
	}
	if err := n.RemoveApp(t.Context(), a.ID); err != nil {
		t.Fatal(err)
	}
	for _, left := range []string{
		"ls /run/gantry/runtimes/runsc | grep -c %s || true", "pgrep -fc '[r]unsc.*%s' || true", "journalctl --no-pager -u gantry-app-%s | grep -c 'runsc delete' || true",
	} {
		if got := sh(t, fmt.Sprintf(left, a.ID)); got != "0" {
			t.Errorf("%s: %s", left, got)
		}
	}
}

// TestRunscFields: what an app is given holds under gVisor's kernel, too.
func TestRunscFields(t *testing.T) {
	guard(t)
	n := withRunsc(t)
	p := newPod(t, n, inRunsc, func(p *pod.Pod) { p.DNS = &pod.DNS{Servers: []string{"192.0.2.1"}} })
	src := t.TempDir()
	sh(t, "chmod 755 "+src+" && echo file >"+src+"/f")
	got := printed(t, n, p, `id -u; id -g; id -G; echo $A; pwd; cat /etc/hostname; grep CapBnd /proc/self/status | cut -f2; ulimit -n
touch /ro/x 2>/dev/null || echo ro; touch /rw/x && cat /rw/f; cat /etc/resolv.conf; touch /new 2>/dev/null || echo read-only`, with(func(s *engine.AppSpec) {
		s.User, s.Group, s.Groups, s.GroupsStrict = "0", "5678", []uint32{7}, true
		s.Env, s.WorkDir, s.Security.DropCaps, s.Security.ReadOnlyRootfs = []string{"A=1"}, "/tmp", []string{"ALL"}, true
		s.Rlimits = []pod.Rlimit{{Type: "RLIMIT_NOFILE", Soft: 99, Hard: 111}}
		s.Mounts = []pod.Mount{{Path: "/rw", HostPath: src}, {Path: "/ro", HostPath: src, ReadOnly: true}}
	}))
	sameText(t, got, "0\n5678\n5678 7\n1\n/tmp\ngantry-test\n0000000000000000\n99\nro\nfile\nnameserver 192.0.2.1\nread-only")
	sameText(t, printed(t, n, p, "ls /vol | head -1; touch /vol/x 2>/dev/null || echo ro", with(func(s *engine.AppSpec) {
		s.Mounts = []pod.Mount{{Path: "/vol", Image: &pod.Image{ID: busybox}, ImageSubPath: "bin", ReadOnly: true}}
	})), "[\nro")
}

// TestRunscExits: how an app ended is recorded as any other's.
func TestRunscExits(t *testing.T) {
	guard(t)
	n := withRunsc(t)
	p := newPod(t, n, inRunsc)
	for name, test := range map[string]struct {
		script string
		memory int64
		code   int
		reason string
	}{
		"code":          {"exit 42", 0, 42, pod.ReasonError},
		"signal":        {"kill -9 $$", 0, 137, pod.ReasonError},
		"out of memory": {"x=a; while true; do x=$x$x; done", 64 << 20, 137, pod.ReasonOOMKilled},
	} {
		t.Run(name, func(t *testing.T) {
			a := newApp(t, n, p, shell(test.script), limits(pod.Resources{Memory: test.memory, MemorySwap: test.memory}))
			start(t, n, a)
			if s := wait(t, n, a); s.Exit.Code != test.code || s.Exit.Reason != test.reason {
				t.Errorf("%+v", s.Exit)
			}
		})
	}
	a := newApp(t, n, p, command("/no/such/program"))
	err := n.StartApp(t.Context(), a.ID) // runsc looks for it when systemd has been told of the start
	if s := wait(t, n, a); s.Exit.Code != 128 || s.Exit.Reason != pod.ReasonStartError || !strings.Contains(s.Exit.Message, "/no/such/program") {
		t.Errorf("start: %v; ended as %+v", err, s.Exit)
	}
}

// TestRunscRefuses what gVisor cannot do.
func TestRunscRefuses(t *testing.T) {
	guard(t)
	n := withRunsc(t)
	for name, ask := range map[string]podOption{
		"the host's network": hostNetwork,
		"privileged":         func(p *pod.Pod) { p.Security.Privileged = true },
		"sysctls":            func(p *pod.Pod) { p.Sysctls = map[string]string{"net.ipv4.ip_forward": "1"} },
		"the host's PIDs":    func(p *pod.Pod) { p.Namespaces.PID = pod.NamespaceNode },
	} {
		p := pod.Pod{
			Owner: pod.OwnerCLI, Name: "refused", Handler: "runsc",
			Namespaces: pod.Namespaces{Network: pod.NamespacePod, PID: pod.NamespaceApp, IPC: pod.NamespacePod},
		}
		ask(&p)
		if _, err := n.CreatePod(t.Context(), p); !errors.Is(err, pod.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
	spec := appSpec("masked")
	spec.Security.MaskedPaths = []string{"/proc/kcore", "/proc/../etc/passwd"}
	if _, err := n.CreateApp(t.Context(), newPod(t, n, inRunsc).ID, spec); !errors.Is(err, pod.ErrUnsupported) || !strings.Contains(err.Error(), "/etc/passwd") {
		t.Errorf("a masked file of the image: %v", err)
	}
}
