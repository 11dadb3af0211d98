//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gantry/internal/engine"
	"gantry/internal/node"
	"gantry/internal/pod"
)

// The tests in oci_test.go ask the isolator alone; these ask for the same things
// through the engine, which looks up users, sources, devices and profiles, and
// makes the namespaces and the network.

// printed runs an app to its end and returns what it printed.
func printed(t *testing.T, n *node.Node, p *pod.Pod, script string, options ...appOption) string {
	t.Helper()
	a := newApp(t, n, p, append([]appOption{shell(script)}, options...)...)
	start(t, n, a)
	if s := wait(t, n, a); s.Exit.Code != 0 {
		t.Errorf("%q ended with %+v", script, s.Exit)
	}
	return strings.TrimSpace(output(t, a))
}

func with(change func(*engine.AppSpec)) appOption { return change }

func TestOCIThroughEngine(t *testing.T) {
	guard(t)
	n := openNode(t)
	pull(t, n, busybox)
	p := newPod(t, n, func(p *pod.Pod) {
		p.Security.Privileged = true
		p.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "0", "kernel.shm_rmid_forced": "1"}
		p.DNS = &pod.DNS{Servers: []string{"192.0.2.1"}, Options: []string{"ndots:5"}}
	})
	src := t.TempDir()
	sh(t, fmt.Sprintf("cd %s && chmod 755 . && mkdir a a/sub && echo file > f && ln -s f link && mount -t tmpfs sub a/sub", src))
	t.Cleanup(func() { sh(t, "umount "+src+"/a/sub") })
	const caps = `grep CapBnd /proc/self/status | cut -f2`
	for _, test := range []struct {
		name, script, want string
		ask                func(*engine.AppSpec)
	}{
		{"user by name", "id -u; id -g; id -G", "0\n0\n0 7 9", func(s *engine.AppSpec) { s.User, s.Groups, s.GroupsStrict = "root", []uint32{7, 9}, true }},
		{"user by number", "id -u; id -g; id -G", "1234\n5678\n5678 7", func(s *engine.AppSpec) { s.User, s.Group, s.Groups, s.GroupsStrict = "1234", "5678", []uint32{7}, true }},
		{"environment", "echo $A $B; pwd", "1 $x\n/tmp", func(s *engine.AppSpec) { s.Env, s.WorkDir = []string{"A=1", "B=$x"}, "/tmp" }},
		{"sysctls", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced", "0\n1", nil},
		{
			"names", "hostname; cat /etc/hostname /etc/resolv.conf; grep -c gantry-test /etc/hosts",
			"gantry-test\ngantry-test\nnameserver 192.0.2.1\noptions ndots:5\n1", nil,
		},
		{"network", "ls /sys/class/net | tr '\\n' ' '; ip -4 -o addr show eth0 | wc -l", "eth0 lo 1", nil},
		{"drop all", caps, "0000000000000000", func(s *engine.AppSpec) { s.Security.DropCaps = []string{"ALL"} }},
		{
			"privileged", caps + "; test -e /dev/kmsg && echo kmsg; test -w /sys/fs/cgroup/cgroup.procs && echo cgroup",
			"000001ffffffffff\nkmsg\ncgroup", func(s *engine.AppSpec) { s.Security.Privileged = true },
		},
		{"read-only rootfs", "touch /x 2>/dev/null || echo no", "no", func(s *engine.AppSpec) { s.Security.ReadOnlyRootfs = true }},
		{"no new privileges", "grep -c 'NoNewPrivs:.1' /proc/self/status", "1", func(s *engine.AppSpec) { s.Security.NoNewPrivileges = true }},
		{"masked paths", "cat /etc/hostname; echo $?", "0", func(s *engine.AppSpec) { s.Security.MaskedPaths = []string{"/etc/hostname"} }},
		{"rlimits", "ulimit -n; ulimit -Hn", "99\n111", func(s *engine.AppSpec) { s.Rlimits = []pod.Rlimit{{Type: "RLIMIT_NOFILE", Soft: 99, Hard: 111}} }},
		{"device", "stat -c '%t:%T' /dev/z; head -c1 /dev/z | wc -c", "1:5\n1", func(s *engine.AppSpec) {
			s.Devices = []pod.Device{{Path: "/dev/z", Source: "/dev/zero", Permissions: "r"}}
		}},
		{
			"mounts", "cat /link; touch /rw/x && rm /rw/x; touch /ro/x 2>/dev/null || echo ro; touch /ro/sub/x && rm /ro/sub/x; touch /rro/sub/x 2>/dev/null || echo rro",
			"file\nro\nrro", func(s *engine.AppSpec) {
				s.Mounts = []pod.Mount{
					{Path: "/link", HostPath: src + "/link"},
					{Path: "/rw", HostPath: src + "/a"},
					{Path: "/ro", HostPath: src + "/a", ReadOnly: true},
					{Path: "/rro", HostPath: src + "/a", ReadOnly: true, RecursiveReadOnly: true},
				}
			},
		},
		{"image volume", "test -x /vol/busybox && ls /vol | head -1; touch /vol/x 2>/dev/null || echo ro", "[\nro", func(s *engine.AppSpec) {
			s.Mounts = []pod.Mount{{Path: "/vol", Image: &pod.Image{ID: busybox}, ImageSubPath: "bin", ReadOnly: true}}
		}},
		{
			"limits", "cd /sys/fs/cgroup; cat memory.max pids.max cpu.max hugetlb.2MB.max; cat /proc/self/oom_score_adj", "33554432\n40\n150500 100000\n0\n900",
			func(s *engine.AppSpec) {
				s.Resources = pod.Resources{
					Memory: 32 << 20, Pids: 40, CPUQuota: 150500, CPUPeriod: 100000, OOMScoreAdj: 900,
					Hugepages: []pod.HugepageLimit{{PageSize: "2MB"}},
				}
			},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			ask := test.ask
			if ask == nil {
				ask = func(*engine.AppSpec) {}
			}
			sameText(t, printed(t, n, p, test.script, with(ask)), test.want)
		})
	}
}

func TestOCIProfilesThroughEngine(t *testing.T) {
	guard(t)
	n := openNode(t)
	pull(t, n, busybox)
	p := newPod(t, n)
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

func TestOCIUserNamespaceThroughEngine(t *testing.T) {
	guard(t)
	n := openNode(t)
	pull(t, n, busybox)
	ids := []pod.IDMap{{Container: 0, Host: 700000, Length: 65536}}
	p := newPod(t, n, func(p *pod.Pod) { p.Namespaces.User = &pod.UserNS{UIDs: ids, GIDs: ids} })
	vol := t.TempDir()
	sh(t, "chmod 755 "+vol+" "+filepath.Dir(vol)+" && touch "+vol+"/mine")
	got := printed(t, n, p, `tr -s ' ' </proc/self/uid_map; stat -c '%u %n' / /bin /vol/mine /dev/shm; touch /x /vol/y; stat -c %u /x; ip -4 -o addr show eth0 | wc -l; id -u`,
		with(func(s *engine.AppSpec) { s.Mounts = []pod.Mount{{Path: "/vol", HostPath: vol, UIDs: ids, GIDs: ids}} }))
	sameText(t, got, "0 700000 65536\n0 /\n0 /bin\n0 /vol/mine\n0 /dev/shm\n0\n1\n0")
	sameText(t, sh(t, "stat -c %u "+vol+"/y"), "0")
	a := newApp(t, n, p, command("sleep", "1000"))
	start(t, n, a)
	s, err := n.App(a.ID)
	if err != nil {
		t.Fatal(err)
	}
	sameText(t, sh(t, fmt.Sprintf("stat -c %%u /proc/%d", s.PID)), "700000")
	out, code := execIn(t, n, a, pod.Process{Argv: []string{"sh", "-c", "id -u; tr -s ' ' </proc/self/uid_map"}}, "")
	if code != 0 {
		t.Errorf("exec ended with %d", code)
	}
	sameText(t, strings.TrimSpace(out), "0\n 0 700000 65536")
}

// execIn runs a process in an app and returns what it printed.
func execIn(t *testing.T, n *node.Node, a *pod.App, p pod.Process, stdin string) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience(10*time.Second))
	defer cancel()
	var out, errs bytes.Buffer // two: they are written at the same time
	s := engine.Streams{Stdout: &out, Stderr: &errs, TTY: p.TTY}
	if stdin != "" {
		s.Stdin = strings.NewReader(stdin)
	}
	if p.TTY {
		s.Stderr = nil
	}
	code, err := n.Exec(ctx, a.ID, p, s)
	if err != nil {
		t.Fatalf("exec: %v", err)
	}
	return out.String() + errs.String(), code
}

func TestOCISharedPIDThroughEngine(t *testing.T) {
	guard(t)
	n := openNode(t)
	pull(t, n, busybox)
	p := newPod(t, n, func(p *pod.Pod) { p.Namespaces.PID = pod.NamespacePod })
	first := newApp(t, n, p, command("sleep", "1000"))
	start(t, n, first)
	sameText(t, printed(t, n, p, `tr '\0' ' ' </proc/1/cmdline; echo; pidof sleep | wc -w`), "gantry-holder \n1")
	holderHasNothing(t, n, p)
	own := newApp(t, n, p, command("sleep", "2000"), with(func(s *engine.AppSpec) { s.Namespaces = p.Namespaces; s.Namespaces.PID = pod.NamespaceApp }))
	start(t, n, own)
	sameText(t, printed(t, n, p, `tr '\0' ' ' </proc/1/cmdline`, with(func(s *engine.AppSpec) {
		s.Namespaces = p.Namespaces
		s.Namespaces.PID, s.Namespaces.Target = pod.NamespaceTarget, own.ID
	})), "sleep 2000")
}

// holderHasNothing looks at the holder as an app that may trace it does, and as one
// that may not.
func holderHasNothing(t *testing.T, n *node.Node, p *pod.Pod) {
	t.Helper()
	tracer := with(func(s *engine.AppSpec) { s.Security.AddCaps = []string{"SYS_PTRACE"} })
	got := printed(t, n, p, `grep -E '^(CapEff|CapPrm|NoNewPrivs|Seccomp):' /proc/1/status | tr -d '\t'
		ls -A /proc/1/root; (: >/proc/1/root/new) 2>/dev/null && echo made
		wc -l </proc/1/mountinfo; (: >>/proc/1/exe) 2>/dev/null && echo written
		for ns in net uts ipc; do [ $(readlink /proc/1/ns/$ns) = $(readlink /proc/self/ns/$ns) ] || echo "another $ns"; done`, tracer)
	sameText(t, got, "CapPrm:0000000000000000\nCapEff:0000000000000000\nNoNewPrivs:1\nSeccomp:2\n1")
	sameText(t, printed(t, n, p, `ls /proc/1/root 2>&1 | grep -o "Permission denied"`), "Permission denied")
}

// TestOCIExecThroughEngine checks that an exec is as the app is, and not as the
// program that spawned it.
func TestOCIExecThroughEngine(t *testing.T) {
	guard(t)
	n := openNode(t)
	pull(t, n, busybox)
	p := newPod(t, n)
	a := newApp(t, n, p, command("sleep", "1000"), with(func(s *engine.AppSpec) {
		s.User, s.Group, s.WorkDir, s.Env = "1000", "1000", "/tmp", []string{"A=1"}
		s.Security.DropCaps, s.Security.NoNewPrivileges = []string{"ALL"}, true
		s.Resources = pod.Resources{Memory: 64 << 20, OOMScoreAdj: 800}
		s.Rlimits = []pod.Rlimit{{Type: "RLIMIT_NOFILE", Soft: 77, Hard: 88}}
	}))
	start(t, n, a)
	out, code := execIn(t, n, a, pod.Process{
		Argv: []string{"sh", "-c", `echo $A$B; pwd; id -u; ulimit -n; cat /proc/self/oom_score_adj; grep -E '^(CapBnd|NoNewPrivs|Seccomp):' /proc/self/status | tr -s '\t\n' '  '; echo; cat /proc/self/cgroup | sed 's/exec-.*/exec/'; cat; exit 5`},
		Env:  []string{"B=2"},
	}, "from stdin\n")
	if code != 5 {
		t.Errorf("exit code %d, want 5", code)
	}
	sameText(t, out, "12\n/tmp\n1000\n77\n800\nCapBnd: 0000000000000000 NoNewPrivs: 1 Seccomp: 2 \n0::/exec\nfrom stdin\n")
	out, _ = execIn(t, n, a, pod.Process{Argv: []string{"sh", "-c", "test -t 0 && test -t 1 && echo tty; echo $TERM"}, TTY: true}, "")
	sameText(t, out, "tty\r\nxterm\r\n")
}

func TestOCITerminalThroughEngine(t *testing.T) {
	guard(t)
	n := openNode(t)
	pull(t, n, busybox)
	p := newPod(t, n)
	got := printed(t, n, p, `test -t 0 && test -t 1 && echo tty; echo $TERM; tty; stat -c %t:%T /dev/console`, with(func(s *engine.AppSpec) { s.TTY = true }))
	if lines := strings.Fields(strings.ReplaceAll(got, "\r", "")); len(lines) != 4 || lines[0] != "tty" || lines[1] != "xterm" || !strings.HasPrefix(lines[2], "/dev/") {
		t.Errorf("with a terminal: %q", got)
	}
}

func TestOCIUpdateThroughEngine(t *testing.T) {
	guard(t)
	n := openNode(t)
	pull(t, n, busybox)
	p := newPod(t, n)
	a := newApp(t, n, p, command("sleep", "1000"), limits(pod.Resources{Memory: 32 << 20, CPUQuota: 100000, CPUPeriod: 100000}))
	start(t, n, a)
	if err := n.UpdateApp(t.Context(), a.ID, pod.Resources{Memory: 48 << 20, CPUQuota: 151234, CPUShares: 2048}); err != nil {
		t.Fatal(err)
	}
	out, _ := execIn(t, n, a, pod.Process{Argv: []string{"sh", "-c", "cd /sys/fs/cgroup; cat memory.max cpu.max cpu.weight"}}, "")
	sameText(t, out, "50331648\n151234 100000\n174\n")
	if err := n.UpdateApp(t.Context(), a.ID, pod.Resources{CPUQuota: 10}); !errors.Is(err, pod.ErrInvalid) {
		t.Errorf("a quota that the kernel refuses: %v", err)
	}
}
