//go:build e2e

package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gantry/internal/engine"
	"gantry/internal/node"
	"gantry/internal/pod"
)

// TestKVMInside: what a pod asks for of its apps they have in the machine, and what they
// cannot have there is refused when they are made.
func TestKVMInside(t *testing.T) {
	guard(t)
	n := withMachines(t, func(*node.Machines) {})
	pull(t, n, busybox)
	p := newPod(t, n, inKVM, func(p *pod.Pod) {
		p.Namespaces.PID = pod.NamespacePod
		p.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "0", "kernel.pid_max": "7007", "vm.swappiness": "7"}
		p.DNS = &pod.DNS{Servers: []string{"192.0.2.1"}, Options: []string{"ndots:5"}}
	})
	const limits = "ulimit -n; ulimit -Hn; ulimit -l; ulimit -c; cat /proc/self/oom_score_adj; umask"
	first := newApp(t, n, p, command("sleep", "1000"), with(func(s *engine.AppSpec) {
		s.Rlimits = []pod.Rlimit{{Type: "RLIMIT_NOFILE", Soft: 77, Hard: 78}}
		s.Resources.OOMScoreAdj = 321
	}))
	start(t, n, first)
	t.Run("kernel", func(t *testing.T) {
		files, err := filepath.Glob(filepath.Join(node.Root, "boot", "kernel-*"))
		if err != nil || len(files) != 1 {
			t.Fatalf("what machines boot: %q, %v", files, err)
		}
		if magic := sh(t, "head -c 4 "+files[0]+" | tail -c 3"); magic != "ELF" {
			t.Errorf("it was not unpacked: %q", magic)
		}
	})
	t.Run("exec", func(t *testing.T) {
		out, code := execIn(t, n, first, pod.Process{Argv: []string{"sh", "-c", limits}}, "")
		if sameText(t, strings.TrimSpace(out), "77\n78\n8192\nunlimited\n321\n0022"); code != 0 {
			t.Errorf("exec ended with %d", code)
		}
	})
	t.Run("plain", func(t *testing.T) {
		host := sh(t, "cat /proc/sys/kernel/pid_max /proc/sys/vm/swappiness")
		got := printed(t, n, p, `tr '\0' ' ' </proc/1/cmdline; echo; pidof sleep | wc -w; `+limits+`; cd /proc/sys; cat net/ipv4/ip_unprivileged_port_start kernel/pid_max vm/swappiness
			hostname; cat /etc/hostname /etc/resolv.conf; grep -c gantry-test /etc/hosts`)
		sameText(t, got, "gantry-holder \n1\n1048576\n1048576\n8192\nunlimited\n0\n0022\n0\n7007\n7\ngantry-test\ngantry-test\nnameserver 192.0.2.1\noptions ndots:5\n1")
		if now := sh(t, "cat /proc/sys/kernel/pid_max /proc/sys/vm/swappiness"); now != host || strings.Contains(host, "7007") {
			t.Errorf("the host's are %q, and were %q", now, host)
		}
	})
	t.Run("holder", func(t *testing.T) { holderHasNothing(t, n, p) })
	t.Run("restricted, and its debugger", func(t *testing.T) { restrictedInKVM(t, n, p) })
	t.Run("refused", func(t *testing.T) {
		dir := t.TempDir()
		for name, c := range map[string]struct {
			change func(*engine.AppSpec)
			word   string
		}{
			"AppArmor": {func(s *engine.AppSpec) {
				s.Security.AppArmor = pod.Profile{Kind: pod.ProfileLocalhost, Localhost: "mine"}
			}, "no AppArmor in a machine"},
			"a device": {func(s *engine.AppSpec) {
				s.Devices = []pod.Device{{Path: "/dev/x", Source: "/dev/null", Permissions: "rw"}}
			}, "devices"},
			"to the host": {func(s *engine.AppSpec) {
				s.Mounts = []pod.Mount{{Path: "/v", HostPath: dir, Propagation: pod.PropagationShared}}
			}, "rshared"},
			"the host's":   {func(s *engine.AppSpec) { s.Mounts = []pod.Mount{{Path: "/v", HostPath: "/sys"}} }, "/sys of the host"},
			"privileged":   {func(s *engine.AppSpec) { s.Security.Privileged = true }, "privileged"},
			"PIDs of host": {func(s *engine.AppSpec) { s.Namespaces = p.Namespaces; s.Namespaces.PID = pod.NamespaceNode }, "namespaces.pid=node"},
		} {
			spec := appSpec("refused")
			c.change(&spec)
			if _, err := n.CreateApp(t.Context(), p.ID, spec); !errors.Is(err, pod.ErrUnsupported) || !strings.Contains(err.Error(), c.word) {
				t.Errorf("%s: %v, want %q", name, err, c.word)
			}
		}
	})
}

// restrictedInKVM tries an app with less than it would have, and one in its PID namespace with
// other restrictions.
func restrictedInKVM(t *testing.T, n *node.Node, p *pod.Pod) {
	t.Helper()
	own := newApp(t, n, p, shell(`id -u; id -G; grep -E '^(CapPrm|CapAmb|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\t'
		(: >/new) 2>/dev/null && echo written; (: >/proc/sys/kernel/pid_max) 2>/dev/null && echo changed; cat /proc/interrupts | wc -c; exec sleep 2000`),
		with(func(s *engine.AppSpec) {
			s.Namespaces = p.Namespaces
			s.Namespaces.PID = pod.NamespaceApp
			s.User, s.Groups, s.GroupsStrict = "1000:1001", []uint32{1002}, true
			s.Security.NoNewPrivileges, s.Security.ReadOnlyRootfs = true, true
			s.Security.DropCaps, s.Security.AddCaps, s.Security.AmbientCaps = []string{"ALL"}, []string{"NET_BIND_SERVICE"}, []string{"NET_BIND_SERVICE"}
		}))
	start(t, n, own)
	debugger := printed(t, n, p, `tr '\0' ' ' </proc/1/cmdline; echo; cat /proc/interrupts | wc -l | sed 's/[1-9][0-9]*/some/'; mkdir /made 2>&1 | grep -c .`,
		with(func(s *engine.AppSpec) {
			s.Namespaces = p.Namespaces
			s.Namespaces.PID, s.Namespaces.Target = pod.NamespaceTarget, own.ID
			s.Security.MaskedPaths, s.Security.ReadOnlyPaths = []string{}, []string{}
			s.Security.Seccomp = pod.Profile{Kind: pod.ProfileLocalhost, Localhost: profile(t)}
		}))
	sameText(t, debugger, "sleep 2000 \nsome\n1")
	sameText(t, strings.TrimSpace(output(t, own)), "1000\n1001 1002\nCapPrm:0000000000000400\nCapAmb:0000000000000400\nNoNewPrivs:1\nSeccomp:2\n0")
}

// profile is a seccomp profile that lets nobody make directories.
func profile(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "profile.json")
	text := `{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}`
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}
