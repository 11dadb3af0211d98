//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"gantry/internal/engine"
	"gantry/internal/guest"
	"gantry/internal/guest/guestpb"
	"gantry/internal/machine"
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
	t.Run("devices", func(t *testing.T) {
		got := printed(t, n, p, `set -- $(grep 'vda$' /proc/partitions); mknod /disk b $1 $2 && head -c 1 /disk 2>&1 | grep -c 'Permission denied'; mknod /kmsg c 1 11; cat /kmsg 2>&1 | grep -c 'Permission denied'; head -c 1 /dev/zero | wc -c`)
		sameText(t, got, "1\n1\n1")
	})
	t.Run("output that others have", func(t *testing.T) { endsWithItsOutputHeld(t, n, p) })
	t.Run("who does not know the key", func(t *testing.T) { keepsStrangersOut(t, p) })
	t.Run("many files", func(t *testing.T) { walksManyFiles(t, n, p) })
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

// endsWithItsOutputHeld: the end of an app is known though another app, which sees its processes,
// has its output still.
func endsWithItsOutputHeld(t *testing.T, n *node.Node, p *pod.Pod) {
	t.Helper()
	a := newApp(t, n, p, shell("while [ ! -e /end/now ]; do sleep 0.1; done; echo last words of the first; exit 5"), endBy(t))
	start(t, n, a)
	// Its first process: the others of it come and go.
	b := newApp(t, n, p, shell(`for p in /proc/[0-9]*; do grep -qs '^PPid:.0$' $p/status && grep -qs 'words of the [f]irst' $p/cmdline && exec 3>$p/fd/1; done; echo from the second >&3 && echo up; exec sleep 1000`))
	start(t, n, b)
	says(t, b, "up")
	endNow(t, a)
	began := time.Now()
	if s := wait(t, n, a); s.Exit.Code != 5 || time.Since(began) > patience(10*time.Second) {
		t.Errorf("it ended as %+v after %s", s.Exit, time.Since(began))
	}
	sameText(t, output(t, a), "from the second\nlast words of the first\n")
	if s, err := n.App(b.ID); err != nil || s.Phase != pod.Running {
		t.Errorf("the other is %+v, %v", s, err)
	}
	if err := n.StopApp(t.Context(), b.ID, 0); err != nil {
		t.Error(err)
	}
}

// keepsStrangersOut: any process of the host can connect to a machine, and who does not know its
// key is not answered.
// walksManyFiles: what the host keeps for files that the machine remembers is bounded, and
// not by a descriptor for each.
func walksManyFiles(t *testing.T, n *node.Node, p *pod.Pod) {
	const dirs, files = 40, 1000
	dir, err := os.MkdirTemp("/var/tmp", "many")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	sh(t, fmt.Sprintf("cd %s && chmod 755 . && for d in $(seq %d); do mkdir $d && (cd $d && touch $(seq %d)); done", dir, dirs, files))
	a := newApp(t, n, p, command("sleep", "1000"), with(func(s *engine.AppSpec) {
		s.Mounts = append(s.Mounts, pod.Mount{Path: "/many", HostPath: dir})
	}))
	start(t, n, a)
	server := "gantry-files-" + string(p.ID) + ".service"
	group := "/sys/fs/cgroup" + strings.TrimSpace(sh(t, "systemctl show -P ControlGroup "+server))
	anon := func() uint64 {
		var n uint64
		if _, err := fmt.Sscan(sh(t, "grep '^anon ' "+group+"/memory.stat | cut -d' ' -f2"), &n); err != nil {
			t.Error(err)
		}
		return n
	}
	before := anon()
	out, _ := execIn(t, n, a, pod.Process{Argv: []string{"sh", "-c", "find /many -type f | wc -l"}}, "")
	sameText(t, out, fmt.Sprintf("%d\n", dirs*files))
	if fds := strings.TrimSpace(sh(t, "for p in $(cat "+group+"/cgroup.procs); do ls /proc/$p/fd; done | wc -l")); len(fds) > 3 {
		t.Errorf("the file server has %s files open", fds)
	}
	remembered := func() uint64 {
		out, _ := execIn(t, n, a, pod.Process{Argv: []string{"cut", "-f1", "/proc/sys/fs/inode-nr"}}, "") // also those of the machine's own
		var n uint64
		if _, err := fmt.Sscan(out, &n); err != nil {
			t.Error(err)
		}
		return n
	}
	for deadline := time.Now().Add(patience(10 * time.Second)); remembered() > 35000; <-time.After(200 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the machine remembers %d files", remembered())
		}
	}
	t.Logf("the file server took %d KiB for them", (anon()-before)>>10)
}

func keepsStrangersOut(t *testing.T, p *pod.Pod) {
	t.Helper()
	dir := filepath.Join(node.Root, "pods", string(p.ID))
	if got := sh(t, "stat -c '%a %U' "+filepath.Join(dir, machine.KeyFile)); got != "600 root" {
		t.Errorf("the key is %s", got)
	}
	for _, port := range []uint32{guest.Port, guest.ForwardPort} {
		conn, err := vsock.Dial(machine.Address(string(p.ID)), port, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.SetDeadline(time.Now().Add(patience(20 * time.Second))); err != nil {
			t.Fatal(err)
		}
		if port == guest.Port { // its client closes the connection
			if info, err := machine.NewClient(conn).Info(t.Context(), &guestpb.InfoRequest{}); err == nil {
				t.Errorf("the agent answers %v", info)
			}
		} else if err := guest.AskForward(conn, 22); err == nil || !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
			t.Errorf("a connection on: %v", err)
		}
		if err := conn.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	}
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
