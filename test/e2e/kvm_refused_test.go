//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"gantry/internal/engine"
	"gantry/internal/node"
	"gantry/internal/pod"
	"gantry/test/machine"
)

// withMachines is a node whose pods may be virtual machines, of an operator with other
// wishes than openMachines has.
func withMachines(t *testing.T, change func(*node.Machines), options ...func(*node.Options)) *node.Node {
	t.Helper()
	m := node.Machines{Memory: 256 << 20, Overhead: 160 << 20, Disk: 1 << 30, CPUs: 1, BootSeconds: int(patience(30 * time.Second).Seconds())}
	change(&m)
	o := node.Options{Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Machines: m}
	for _, option := range options {
		option(&o)
	}
	n, err := node.Open(t.Context(), o)
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

// refuses wants an error for a pod that is to be a machine, of a kind and with words.
func refuses(t *testing.T, n *node.Node, kind error, words []string, options ...podOption) {
	t.Helper()
	p := pod.Pod{
		Owner: pod.OwnerCLI, Name: "refused-" + string(pod.NewID()[:6]), Handler: "kvm",
		Namespaces: pod.Namespaces{Network: pod.NamespacePod, PID: pod.NamespaceApp, IPC: pod.NamespacePod},
	}
	for _, o := range options {
		o(&p)
	}
	began := time.Now()
	made, err := n.CreatePod(t.Context(), p)
	if err == nil {
		t.Errorf("it is made")
		if err := n.RemovePod(t.Context(), made.ID); err != nil {
			t.Error(err)
		}
		return
	}
	t.Logf("refused after %s: %v", time.Since(began).Round(time.Millisecond), err)
	if !errors.Is(err, kind) {
		t.Errorf("got %v, want it to be %v", err, kind)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("got %v, want %q in it", err, w)
		}
	}
}

// TestKVMRefused: what cannot be a machine here is refused with its name, and leaves
// nothing; what was repaired works at the next try.
func TestKVMRefused(t *testing.T) {
	guard(t)
	n := withMachines(t, func(*node.Machines) {})
	for name, c := range map[string]struct {
		change podOption
		word   string
	}{
		"network":    {hostNetwork, "namespaces.network=node"},
		"PIDs":       {func(p *pod.Pod) { p.Namespaces.PID = pod.NamespaceNode }, "namespaces.pid=node"},
		"IPC":        {func(p *pod.Pod) { p.Namespaces.IPC = pod.NamespaceNode }, "namespaces.ipc=node"},
		"privileged": {func(p *pod.Pod) { p.Security.Privileged = true }, "security.privileged"},
	} {
		t.Run(name, func(t *testing.T) { refuses(t, n, pod.ErrUnsupported, []string{c.word}, c.change) })
	}
	for path, remedy := range map[string]string{
		"/usr/libexec/virtiofsd": "install virtiofsd", "/usr/bin/qemu-system-x86_64": "install qemu-system-x86", "/dev/vhost-vsock": "modprobe vhost_vsock",
		"/usr/share/qemu/qboot.rom": "install qemu-system-data",
		"/dev/kvm":                  "modprobe kvm_intel or kvm_amd", "/dev/net/tun": "modprobe tun", "/boot/vmlinuz-" + strings.TrimSpace(sh(t, "uname -r")): "install the kernel that runs",
	} {
		t.Run(filepath.Base(path), func(t *testing.T) {
			sh(t, "mv "+path+" "+path+".away")
			t.Cleanup(func() { sh(t, "! test -e "+path+".away || mv "+path+".away "+path) })
			refuses(t, n, pod.ErrUnavailable, []string{"isolator kvm", "this node lacks " + path + ": is not there", remedy})
			sh(t, "mv "+path+".away "+path)
			for _, f := range n.Features() {
				if f.Name == "kvm" && f.Broken != nil {
					t.Errorf("repaired, it lacks %v", f.Broken)
				}
			}
		})
	}
	t.Run("off", func(t *testing.T) {
		off := withMachines(t, func(m *node.Machines) { m.Memory = 0 })
		refuses(t, off, pod.ErrUnavailable, []string{"switched off", "kvm.memory"})
	})
	t.Run("instead", func(t *testing.T) {
		if list := sh(t, "gantry isolator list"); !regexp.MustCompile(`(?m)^kvm +kvm +off +.*kvm\.memory`).MatchString(list) {
			t.Errorf("as this machine is configured it has\n%s", list)
		}
		instead(t)
	})
	t.Run("memory", func(t *testing.T) {
		huge := withMachines(t, func(m *node.Machines) { m.Memory = 1 << 40 })
		refuses(t, huge, pod.ErrUnavailable, []string{"late units are up", "boot the machine", "its program has ended", "qemu-system-x86_64: "})
	})
}

// instead tries a node whose pods are machines unless they cannot be.
func instead(t *testing.T) {
	t.Helper()
	n, err := node.Open(t.Context(), node.Options{
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Isolator: "kvm",
		Machines: node.Machines{Memory: 256 << 20, Disk: 1 << 30}, Weaker: engine.Weaker{Default: "oci"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	p := newPod(t, n, hostNetwork)
	const why = "isolator.weaker-default: the node's default kvm cannot run it: namespaces.network=node"
	if p.Isolator != "oci" || !strings.Contains(p.IsolatorReason, why) {
		t.Errorf("of the host's network: %q, %q", p.Isolator, p.IsolatorReason)
	}
	if status := sh(t, "gantry status "+string(p.ID)); !strings.Contains(status, why) {
		t.Errorf("its status is\n%s", status)
	}
	refuses(t, n, pod.ErrForbidden, []string{"namespaces.network=node", "isolator.weaker-namespaces"}, hostNetwork, func(p *pod.Pod) {
		p.Handler, p.Owner, p.Namespace = "", pod.OwnerCRI, "shop"
	})
}

// TestKVMNotUp: a machine that does not come up is told of with what its console said, or
// after its time, and leaves nothing.
func TestKVMNotUp(t *testing.T) {
	guard(t)
	t.Run("late", func(t *testing.T) {
		n := withMachines(t, func(m *node.Machines) { m.BootSeconds = 1 })
		refuses(t, n, pod.ErrUnavailable, []string{"boot the machine", "does not answer within 1s (kvm.boot-time)"})
	})
	t.Run("packed", func(t *testing.T) {
		n := withMachines(t, func(*node.Machines) {})
		pull(t, n, busybox)
		replaceBoot(t, "kernel-*", "cp /boot/vmlinuz-$(uname -r)")
		if got := printed(t, n, newPod(t, n, inKVM), "echo here"); got != "here" {
			t.Errorf("with a packed kernel it says %q", got)
		}
	})
	t.Run("no network", func(t *testing.T) { // while it boots
		dir := t.TempDir()
		plugin := `#!/bin/sh
test "$CNI_COMMAND" = ADD || exec /opt/cni/bin/bridge
sleep 3
echo '{"cniVersion": "1.0.0", "code": 11, "msg": "no network today"}'
exit 1
`
		if err := os.WriteFile(filepath.Join(dir, "bridge"), []byte(plugin), 0o755); err != nil {
			t.Fatal(err)
		}
		n := withMachines(t, func(*node.Machines) {}, func(o *node.Options) { o.NetworkBinDirs = []string{dir, "/opt/cni/bin"} })
		refuses(t, n, pod.ErrUnavailable, []string{"create pod: network", "no network today"})
	})
	for name, c := range map[string]struct{ does, says string }{
		"two interfaces": {"ip link add net1 type dummy && ip addr add 192.0.2.9/24 dev net1", "interface net1 beside eth0: not supported in a machine"},
		"rules":          {"ip rule add from 192.0.2.9 table 100", "rule of routing to table 100: not supported in a machine"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			plugin := `#!/bin/sh
test "$CNI_COMMAND" != ADD || nsenter --net="$CNI_NETNS" sh -c '` + c.does + `' >&2
exec /opt/cni/bin/bridge
`
			if err := os.WriteFile(filepath.Join(dir, "bridge"), []byte(plugin), 0o755); err != nil {
				t.Fatal(err)
			}
			n := withMachines(t, func(*node.Machines) {}, func(o *node.Options) { o.NetworkBinDirs = []string{dir, "/opt/cni/bin"} })
			refuses(t, n, pod.ErrUnavailable, []string{"boot the machine", c.says})
		})
	}
	t.Run("mute", func(t *testing.T) {
		n := withMachines(t, func(m *node.Machines) { m.BootSeconds = 20 })
		dir := t.TempDir()
		sh(t, "cd "+dir+" && mkdir root && cp /bin/busybox root/ && printf '#!/busybox sh\\nexec /busybox sleep 1000\\n' >root/init && chmod 755 root/init && cd root && find . | cpio --quiet -o -H newc >../mute")
		replaceBoot(t, "initramfs-*", "cp "+dir+"/mute")
		refuses(t, n, pod.ErrUnavailable, []string{"boot the machine", "does not answer within 20s (kvm.boot-time)"})
	})
	t.Run("no memory", func(t *testing.T) { // of the host's, for the machine's own
		n := withMachines(t, func(*node.Machines) {})
		for _, of := range []string{"gantry-machine-.service", "gantry-.slice"} {
			lack := "/run/systemd/system/" + of + ".d/lack.conf"
			section := "[Service]"
			if strings.HasSuffix(of, "slice") {
				section = "[Slice]"
			}
			sh(t, fmt.Sprintf(`mkdir -p %s && printf '%s\nMemoryMax=40M\nMemorySwapMax=0\n' >%s && systemctl daemon-reload`, filepath.Dir(lack), section, lack))
			back := fmt.Sprintf("rm -rf %s && systemctl daemon-reload", filepath.Dir(lack))
			t.Cleanup(func() { sh(t, back) })
			refuses(t, n, pod.ErrUnavailable, []string{"boot the machine", "killed for want of memory"})
			sh(t, back)
		}
	})
	t.Run("panic", func(t *testing.T) {
		n := withMachines(t, func(*node.Machines) {})
		replaceBoot(t, "initramfs-*", "cp /dev/null")
		refuses(t, n, pod.ErrUnavailable, []string{"boot the machine", "its program has ended", "Kernel panic"})
	})
}

// TestKVMEmulated: without /dev/kvm processors are emulated where the operator says so, and
// nowhere else. That takes minutes.
func TestKVMEmulated(t *testing.T) {
	guard(t)
	sh(t, "mv /dev/kvm /dev/kvm.away")
	t.Cleanup(func() { sh(t, "mv /dev/kvm.away /dev/kvm") })
	plain := withMachines(t, func(*node.Machines) {})
	pull(t, plain, busybox)
	refuses(t, plain, pod.ErrUnavailable, []string{"this node lacks /dev/kvm: is not there", "kvm.emulate does without"})
	n := withMachines(t, func(m *node.Machines) { m.Emulate, m.BootSeconds = true, 230 })
	p := machinePod(t, n)
	host := strings.TrimSpace(sh(t, "cat /proc/sys/kernel/random/boot_id"))
	if got := printed(t, n, p, "cat /proc/sys/kernel/random/boot_id"); got == host || len(got) != len(host) {
		t.Errorf("the pod's kernel was booted as %q, that of the host as %q", got, host)
	}
	a := newApp(t, n, p, shell("exit 42"))
	start(t, n, a)
	if s := wait(t, n, a); s.Exit.Code != 42 {
		t.Errorf("it ended as %+v", s.Exit)
	}
}

// TestKVMSteps lets the making of a machine fail at every boundary where it differs from
// that of another pod: nothing is left, and the next try comes through.
func TestKVMSteps(t *testing.T) {
	guard(t)
	clean := machine.Observe()
	for _, step := range []string{"late units", "network", "unit is up", "late units are up", "network record"} {
		points := []string{"create pod/" + step + "/before", "create pod/" + step + "/after"}
		for _, point := range points[machine.Amount(0, 1):] {
			n := withMachines(t, func(*node.Machines) {}, func(o *node.Options) { o.Failpoints = point + "=error" })
			_, err := n.CreatePod(t.Context(), pod.Pod{
				Owner: pod.OwnerCLI, Name: "steps", Handler: "kvm",
				Namespaces: pod.Namespaces{Network: pod.NamespacePod, PID: pod.NamespaceApp, IPC: pod.NamespacePod},
			})
			var stage *engine.StageError
			if !errors.As(err, &stage) || stage.Stage != step {
				t.Errorf("%s: %v", point, err)
			}
			for kind, items := range machine.Settle(clean, 5*time.Second) {
				t.Errorf("%s: left behind: %s: %v", point, kind, items)
			}
		}
	}
}

// replaceBoot has machines boot something else until the test's end.
func replaceBoot(t *testing.T, pattern, copyFrom string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(node.Root, "boot", pattern))
	if err != nil || len(files) == 0 {
		t.Fatalf("what machines boot: %v, %v", files, err)
	}
	for _, path := range files { // whichever it is
		away := filepath.Join("/var/tmp", filepath.Base(path))
		sh(t, fmt.Sprintf("mv %s %s && %s %s", path, away, copyFrom, path))
		t.Cleanup(func() { sh(t, fmt.Sprintf("mv %s %s", away, path)) })
	}
}
