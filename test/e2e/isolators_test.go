//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gantry/internal/engine"
	"gantry/internal/node"
	"gantry/internal/pod"
	"gantry/test/machine"
)

// These tests go through every isolator: what an app is given does not depend on how it
// is isolated, as far as the isolator has the feature.

func inOCI(p *pod.Pod) { p.Handler = "oci" }

// inRunc is in the cgroup that runc makes, below the unit's.
func inRunc(p *pod.Pod) { p.Handler = "runc" }

// inFly is a pod of the host's own namespaces.
func inFly(p *pod.Pod) {
	p.Handler = "fly"
	hostNetwork(p)
}

// TestIsolators goes through every isolator. A further OCI runtime, and the example of a
// third party, are much like one of Gantry's own: the short run tries on them what all is
// most. What an isolator cannot do it refuses, and that is tried too.
func TestIsolators(t *testing.T) {
	guard(t)
	for _, i := range []struct {
		name     string
		isolated podOption
		short    bool
	}{{"oci", inOCI, false}, {"fly", inFly, false}, {"runc", inRunc, true}, {"unshare", inUnshare, true}} {
		t.Run(i.name, func(t *testing.T) {
			dropExample(t)
			goThrough(t, openNode(t), i.isolated, i.short && !machine.Long())
		})
	}
}

// TestIsolatorKVM is the same in a virtual machine.
func TestIsolatorKVM(t *testing.T) {
	guard(t)
	goThrough(t, openMachines(t), inKVM, false, "privileged", "device", "huge pages")
}

// goThrough tries all in one pod. Of the fields some may be refused.
func goThrough(t *testing.T, n *node.Node, isolated podOption, short bool, refused ...string) {
	pull(t, n, busybox)
	p := newPod(t, n, isolated, func(p *pod.Pod) {
		p.Security.Privileged = !slices.Contains(refused, "privileged")
		p.DNS = &pod.DNS{Servers: []string{"192.0.2.1"}, Options: []string{"ndots:5"}}
	})
	t.Run("fields", func(t *testing.T) { fieldsThroughEngine(t, n, p, refused) })
	if short {
		return
	}
	for name, test := range map[string]func(*testing.T, *node.Node, *pod.Pod){
		"exec": execThroughEngine, "terminal": terminalThroughEngine, "update": updateThroughEngine, "profiles": profilesThroughEngine,
		"a layer that is missing": layerThroughEngine, "a capable file": capableThroughEngine,
		"checkpoint": checkpointThroughEngine,
	} {
		t.Run(name, func(t *testing.T) { test(t, n, p) })
	}
}

// ownGroup goes to the app's cgroup, wherever it is seen.
const ownGroup = "cd /sys/fs/cgroup/$(sed 's/^0:://; s/exec-.*//' /proc/self/cgroup); "

// fieldsThroughEngine asks for what can be had together in one app.
func fieldsThroughEngine(t *testing.T, n *node.Node, p *pod.Pod, refused []string) {
	src := t.TempDir()
	sh(t, fmt.Sprintf("cd %s && chmod 755 . && mkdir a a/sub && echo file > f && ln -s f link && mount -t tmpfs sub a/sub", src))
	t.Cleanup(func() { sh(t, "umount "+src+"/a/sub") })
	const caps = `grep CapBnd /proc/self/status | cut -f2`
	tests := []struct {
		app, name, script, want string
		ask                     func(*engine.AppSpec)
	}{
		{"root", "user by name", "id -u; id -g; id -G", "0\n0\n0 7 9", func(s *engine.AppSpec) { s.User, s.Groups, s.GroupsStrict = "root", []uint32{7, 9}, true }},
		{"user", "user by number", "id -u; id -g; id -G", "1234\n5678\n5678 7", func(s *engine.AppSpec) { s.User, s.Group, s.Groups, s.GroupsStrict = "1234", "5678", []uint32{7}, true }},
		{"root", "environment", "echo $A $B; pwd", "1 $x\n/tmp", func(s *engine.AppSpec) { s.Env, s.WorkDir = []string{"A=1", "B=$x"}, "/tmp" }},
		{"root", "files of the pod", "cat /etc/hostname /etc/resolv.conf", "gantry-test\nnameserver 192.0.2.1\noptions ndots:5", nil},
		{"bare", "drop all", caps, "0000000000000000", func(s *engine.AppSpec) { s.Security.DropCaps = []string{"ALL"} }},
		{
			"privileged", "privileged", caps + "; test -e /dev/kmsg && echo kmsg; test -w /sys/fs/cgroup/cgroup.procs && echo cgroup",
			"000001ffffffffff\nkmsg\ncgroup", func(s *engine.AppSpec) { s.Security.Privileged = true },
		},
		{"bare", "read-only rootfs", "touch /x 2>/dev/null || echo no", "no", func(s *engine.AppSpec) { s.Security.ReadOnlyRootfs = true }},
		{"root", "no new privileges", "grep -c 'NoNewPrivs:.1' /proc/self/status", "1", func(s *engine.AppSpec) { s.Security.NoNewPrivileges = true }},
		{"bare", "masked paths", "cat /etc/hostname; echo $?", "0", func(s *engine.AppSpec) { s.Security.MaskedPaths = []string{"/etc/hostname"} }},
		{"root", "rlimits", "ulimit -n; ulimit -Hn", "99\n111", func(s *engine.AppSpec) { s.Rlimits = []pod.Rlimit{{Type: "RLIMIT_NOFILE", Soft: 99, Hard: 111}} }},
		{"device", "device", "stat -c '%t:%T' /dev/z; head -c1 /dev/z | wc -c", "1:5\n1", func(s *engine.AppSpec) {
			s.Devices = []pod.Device{{Path: "/dev/z", Source: "/dev/zero", Permissions: "r"}}
		}},
		{
			"root", "mounts", "cat /link; touch /rw/x && rm /rw/x; touch /ro/x 2>/dev/null || echo ro; touch /ro/sub/x && rm /ro/sub/x; touch /rro/sub/x 2>/dev/null || echo rro",
			"file\nro\nrro", func(s *engine.AppSpec) {
				s.Mounts = append(s.Mounts,
					pod.Mount{Path: "/link", HostPath: src + "/link"},
					pod.Mount{Path: "/rw", HostPath: src + "/a"},
					pod.Mount{Path: "/ro", HostPath: src + "/a", ReadOnly: true},
					pod.Mount{Path: "/rro", HostPath: src + "/a", ReadOnly: true, RecursiveReadOnly: true},
				)
			},
		},
		{"root", "image volume", "test -x /vol/busybox && ls /vol | head -1; touch /vol/x 2>/dev/null || echo ro", "[\nro", func(s *engine.AppSpec) {
			s.Mounts = append(s.Mounts, pod.Mount{Path: "/vol", Image: &pod.Image{ID: busybox}, ImageSubPath: "bin", ReadOnly: true})
		}},
		{
			"root", "limits", ownGroup + "cat memory.max pids.max cpu.max; cat /proc/self/oom_score_adj", "33554432\n40\n150500 100000\n900",
			func(s *engine.AppSpec) {
				s.Resources = pod.Resources{Memory: 32 << 20, Pids: 40, CPUQuota: 150500, CPUPeriod: 100000, OOMScoreAdj: 900}
			},
		},
		{"huge pages", "huge pages", ownGroup + "cat hugetlb.2MB.max", "2097152", func(s *engine.AppSpec) {
			s.Resources.Hugepages = []pod.HugepageLimit{{PageSize: "2MB", Limit: 2 << 20}}
		}},
	}
	seen := map[string]bool{}
	for _, of := range tests {
		if seen[of.app] {
			continue
		}
		seen[of.app] = true
		t.Run(of.app, func(t *testing.T) {
			spec := appSpec("refused")
			var script, want strings.Builder
			var asks []appOption
			for _, test := range tests {
				if test.app != of.app {
					continue
				}
				fmt.Fprintf(&script, "echo '== %s'; (%s)\n", test.name, test.script)
				fmt.Fprintf(&want, "== %s\n%s\n", test.name, test.want)
				if test.ask != nil {
					asks = append(asks, with(test.ask))
					test.ask(&spec)
				}
			}
			if slices.Contains(refused, of.app) {
				if _, err := n.CreateApp(t.Context(), p.ID, spec); !errors.Is(err, pod.ErrUnsupported) {
					t.Errorf("created with %v", err)
				}
				return
			}
			sameText(t, printed(t, n, p, script.String(), asks...), strings.TrimSpace(want.String()))
		})
	}
}

// execThroughEngine checks that an exec is as the app is, and not as the program that
// spawned it.
func execThroughEngine(t *testing.T, n *node.Node, p *pod.Pod) {
	a := newApp(t, n, p, command("sleep", "1000"), with(func(s *engine.AppSpec) {
		s.User, s.Group, s.WorkDir, s.Env = "1000", "1000", "/tmp", []string{"A=1"}
		s.Security.DropCaps, s.Security.NoNewPrivileges = []string{"ALL"}, true
		s.Resources = pod.Resources{Memory: 64 << 20, OOMScoreAdj: 800}
		s.Rlimits = []pod.Rlimit{{Type: "RLIMIT_NOFILE", Soft: 77, Hard: 88}}
	}))
	start(t, n, a)
	out, code := execIn(t, n, a, pod.Process{
		Argv: []string{"sh", "-c", `echo $A$B; pwd; id -u; ulimit -n; cat /proc/self/oom_score_adj; grep -E '^(CapBnd|NoNewPrivs|Seccomp):' /proc/self/status | tr -s '\t\n' '  '; echo; cat /proc/self/cgroup | sed 's/[^:]*exec-.*/exec/'; cat; exit 5`},
		Env:  []string{"B=2"},
	}, "from stdin\n")
	if code != 5 {
		t.Errorf("exit code %d, want 5", code)
	}
	sameText(t, out, "12\n/tmp\n1000\n77\n800\nCapBnd: 0000000000000000 NoNewPrivs: 1 Seccomp: 2 \n0::exec\nfrom stdin\n")
	out, _ = execIn(t, n, a, pod.Process{Argv: []string{"sh", "-c", "test -t 0 && test -t 1 && echo tty; echo $TERM"}, TTY: true}, "")
	sameText(t, out, "tty\r\nxterm\r\n")
	if p.Isolator != "runc" { // which waits for the output, see docs/isolators.md
		began := time.Now()
		out, code = execIn(t, n, a, pod.Process{Argv: []string{"sh", "-c", "sleep 1000 & echo left; exit 4"}}, "")
		if out != "left\n" || code != 4 {
			t.Errorf("an exec that leaves a daemon: %q, %d, after %s", out, code, time.Since(began))
		}
	}
}

func terminalThroughEngine(t *testing.T, n *node.Node, p *pod.Pod) {
	got := printed(t, n, p, `test -t 0 && test -t 1 && echo tty; echo $TERM; tty; stat -c %t:%T /dev/console`, with(func(s *engine.AppSpec) { s.TTY = true }))
	if lines := strings.Fields(strings.ReplaceAll(got, "\r", "")); len(lines) != 4 || lines[0] != "tty" || lines[1] != "xterm" || !strings.HasPrefix(lines[2], "/dev/") {
		t.Errorf("with a terminal: %q", got)
	}
}

func updateThroughEngine(t *testing.T, n *node.Node, p *pod.Pod) {
	a := newApp(t, n, p, command("sleep", "1000"), limits(pod.Resources{Memory: 32 << 20, CPUQuota: 50000, CPUPeriod: 100000}))
	start(t, n, a)
	if err := n.UpdateApp(t.Context(), a.ID, pod.Resources{Memory: 48 << 20, CPUQuota: 71234, CPUShares: 2048}); err != nil {
		t.Fatal(err)
	}
	out, _ := execIn(t, n, a, pod.Process{Argv: []string{"sh", "-c", ownGroup + "cat memory.max cpu.max cpu.weight"}}, "")
	sameText(t, out, "50331648\n71234 100000\n174\n")
	if err := n.UpdateApp(t.Context(), a.ID, pod.Resources{CPUQuota: 10}); !errors.Is(err, pod.ErrInvalid) {
		t.Errorf("a quota that the kernel refuses: %v", err)
	}
}

func profilesThroughEngine(t *testing.T, n *node.Node, p *pod.Pod) {
	file := filepath.Join(t.TempDir(), "p.json")
	if err := os.WriteFile(file, []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	sameText(t, printed(t, n, p, "mkdir /tmp/x 2>/dev/null || echo no", with(func(s *engine.AppSpec) {
		s.Security.Seccomp = pod.Profile{Kind: pod.ProfileLocalhost, Localhost: file}
	})), "no")
	for what, change := range map[string]func(*engine.AppSpec){
		"missing seccomp profile": func(s *engine.AppSpec) {
			s.Security.Seccomp = pod.Profile{Kind: pod.ProfileLocalhost, Localhost: "/nowhere.json"}
		},
		"missing apparmor profile": func(s *engine.AppSpec) {
			s.Security.AppArmor = pod.Profile{Kind: pod.ProfileLocalhost, Localhost: "nowhere"}
		},
		"missing source": func(s *engine.AppSpec) { s.Mounts = []pod.Mount{{Path: "/x", HostPath: "/nowhere"}} },
		"missing device": func(s *engine.AppSpec) {
			s.Devices = []pod.Device{{Path: "/dev/x", Source: "/dev/nowhere", Permissions: "r"}}
		},
		"unknown user": func(s *engine.AppSpec) { s.User = "nobody-here" },
		"sub path out of the image": func(s *engine.AppSpec) {
			s.Mounts = []pod.Mount{{Path: "/x", Image: &pod.Image{ID: busybox}, ImageSubPath: "../../etc", ReadOnly: true}}
		},
	} {
		spec := appSpec("bad")
		change(&spec)
		if _, err := n.CreateApp(t.Context(), p.ID, spec); err == nil {
			t.Errorf("%s: created", what)
		} else {
			t.Logf("%s: %v", what, err)
		}
	}
}

// capableThroughEngine: what a file of the image says of its program's capabilities holds.
func capableThroughEngine(t *testing.T, n *node.Node, p *pod.Pod) {
	const name = imageRegistry + "capable"
	pull(t, n, name)
	sameText(t, printed(t, n, p, "/bin/busybox grep CapEff /proc/self/status; /busybox-capable grep CapEff /proc/self/status", with(func(s *engine.AppSpec) {
		s.Image, s.User = name, "1000"
	})), "CapEff:\t0000000000000000\nCapEff:\t0000000000000400")
}

// checkpointThroughEngine: only crun writes down how a program stands. Others refuse that, and
// the app goes on. What there is of it with crun, the suite of the node tries.
func checkpointThroughEngine(t *testing.T, n *node.Node, p *pod.Pod) {
	if p.Isolator == "oci" {
		return
	}
	a := newApp(t, n, p, command("sleep", "1000"))
	start(t, n, a)
	to := filepath.Join(t.TempDir(), "c.tar")
	if err := n.CheckpointApp(t.Context(), a.ID, to, 0); !errors.Is(err, pod.ErrUnsupported) || !strings.Contains(err.Error(), p.Isolator) {
		t.Errorf("checkpoint: %v", err)
	}
	if _, err := os.Stat(to); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("refused, there is %s: %v", to, err)
	}
	if s, err := n.App(a.ID); err != nil || s.Phase != pod.Running {
		t.Errorf("afterwards it is %+v, %v", s, err)
	}
}

// layerThroughEngine: an image of which something was lost is told of where it is needed, and
// with what to do. Nothing is left of the try, and the next one comes through.
func layerThroughEngine(t *testing.T, n *node.Node, p *pod.Pod) {
	const name = imageRegistry + "layers:10"
	img := pull(t, n, name)
	last := img.Layers[len(img.Layers)-1].DiffID
	layer := filepath.Join(node.Root, "layers/sha256", strings.TrimPrefix(last, "sha256:")+".erofs")
	sh(t, "mv "+layer+" "+layer+".away")
	t.Cleanup(func() { sh(t, "! test -e "+layer+".away || mv "+layer+".away "+layer) })
	spec := appSpec("layer")
	spec.Image, spec.Command = name, []string{"ls", "/layers"}
	_, err := n.CreateApp(t.Context(), p.ID, spec)
	if !errors.Is(err, pod.ErrState) || !strings.Contains(err.Error(), layer) || !strings.Contains(err.Error(), "gantry pull") {
		t.Errorf("without %s: %v", layer, err)
	}
	if s, err := n.Pod(p.ID); err != nil || slices.ContainsFunc(s.Apps, func(a pod.AppStatus) bool { return a.Name == "layer" }) {
		t.Errorf("the pod is %+v, %v", s, err)
	}
	sh(t, "mv "+layer+".away "+layer)
	if got := printed(t, n, p, "ls /layers | wc -l", with(func(s *engine.AppSpec) { s.Image = name })); got == "0" {
		t.Errorf("with all layers: %q", got)
	}
}
