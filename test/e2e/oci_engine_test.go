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
	"gantry/internal/unit"
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

// TestRemainsOfAMachine: what a machine has in its pod's directory is taken away with the
// pod, should the machine not have done it.
func TestRemainsOfAMachine(t *testing.T) {
	guard(t)
	n := openNode(t)
	p := newPod(t, n)
	dir := "/run/gantry/pods/" + string(p.ID)
	sh(t, "mkdir "+dir+"/share && mount -t tmpfs share "+dir+"/share && mkdir "+dir+"/share/app && mount -t tmpfs part "+dir+"/share/app && touch "+dir+"/files.sock")
	if err := n.StopPod(t.Context(), p.ID); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its directory is there: %v", err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), dir) {
		t.Errorf("there are still mounts below %s (%v)", dir, err)
	}
}

func TestOCIThroughEngine(t *testing.T) {
	guard(t)
	n := openNode(t)
	pull(t, n, busybox)
	p := newPod(t, n, func(p *pod.Pod) {
		p.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "0", "kernel.shm_rmid_forced": "1"}
		p.DNS = &pod.DNS{Servers: []string{"192.0.2.1"}, Options: []string{"ndots:5"}}
	})
	for _, test := range []struct{ name, script, want string }{
		{"sysctls", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced", "0\n1"},
		{
			"names", "hostname; cat /etc/hostname /etc/resolv.conf; grep -c gantry-test /etc/hosts",
			"gantry-test\ngantry-test\nnameserver 192.0.2.1\noptions ndots:5\n1",
		},
		{"network", "ls /sys/class/net | tr '\\n' ' '; ip -4 -o addr show eth0 | wc -l", "eth0 lo 1"},
	} {
		t.Run(test.name, func(t *testing.T) { sameText(t, printed(t, n, p, test.script), test.want) })
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

// TestExecCostsTheAppNothing: the runtime that brings a process into an app stays outside
// of it, whose limits would hold it up. It goes with the process all the same.
func TestExecCostsTheAppNothing(t *testing.T) {
	guard(t)
	n := openNode(t, func(o *node.Options) { o.OwnCgroup = ownCgroup(t) })
	pull(t, n, busybox)
	p := newPod(t, n, inOCI)
	a := newApp(t, n, p, command("sleep", "1000"), limits(pod.Resources{CPUQuota: 5000, CPUPeriod: 100000}))
	start(t, n, a)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	over := make(chan error)
	go func() {
		_, err := n.Exec(ctx, a.ID, pod.Process{Argv: []string{"sleep", "4712"}}, engine.Streams{})
		over <- err
	}()
	inside := fmt.Sprintf("cat %s/exec-*/cgroup.procs 2>/dev/null | xargs -r -n1 ps -o args= -p", filepath.Join("/sys/fs/cgroup", unit.CgroupOf(p.Slice), unit.App(string(a.ID))))
	eventually(t, 20*time.Second, "the process is in its group, and the runtime is not", func() bool { return sh(t, inside+" || true") == "sleep 4712" })
	cancel()
	if err := <-over; !errors.Is(err, context.Canceled) {
		t.Errorf("exec: %v", err)
	}
	eventually(t, 10*time.Second, "all of it is gone", func() bool {
		return sh(t, inside+"; pgrep -xc crun || true") == "0"
	})
}
