//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/engine"
	"gantry/internal/pod"
	"gantry/internal/unit"
	"gantry/test/machine"
)

// TestFlyIsOfTheHost: several apps in a pod, which see the host's processes, network
// and IPC, and share a volume.
func TestFlyIsOfTheHost(t *testing.T) {
	guard(t)
	n := openNode(t)
	pull(t, n, busybox)
	p := newPod(t, n, inFly)
	if p.Namespaces.PID != pod.NamespaceNode || p.Namespaces.IPC != pod.NamespaceNode {
		t.Errorf("the record says %+v", p.Namespaces)
	}
	shared := t.TempDir()
	volume := with(func(s *engine.AppSpec) { s.Mounts = []pod.Mount{{Path: "/shared", HostPath: shared}} })
	first := newApp(t, n, p, shell("echo mine >/shared/first; exec sleep 1000"), volume)
	start(t, n, first)
	s, err := n.App(first.ID)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the first app's file", func() bool {
		_, err := os.Stat(shared + "/first")
		return err == nil
	})
	eventually(t, 10*time.Second, "the first app's program", func() bool {
		return strings.HasPrefix(sh(t, fmt.Sprintf(`tr '\0' ' ' </proc/%d/cmdline`, s.PID)), "sleep 1000")
	})
	got := printed(t, n, p, fmt.Sprintf(`cat /proc/1/comm /shared/first; tr '\0' ' ' </proc/%d/cmdline; echo; hostname; for n in net ipc; do readlink /proc/self/ns/$n; done`, s.PID), volume)
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	sameText(t, got, fmt.Sprintf("systemd\nmine\nsleep 1000 \n%s\n%s", host, sh(t, "readlink /proc/self/ns/net /proc/self/ns/ipc")))
	for _, ns := range []string{"net", "ipc", "pid", "uts", "user", "cgroup"} {
		sameText(t, sh(t, fmt.Sprintf("readlink /proc/%d/ns/%s", s.PID, ns)), sh(t, "readlink /proc/1/ns/"+ns))
	}
	if own := sh(t, fmt.Sprintf("readlink /proc/%d/ns/mnt", s.PID)); own == sh(t, "readlink /proc/1/ns/mnt") {
		t.Error("it has the host's mounts")
	}
	if err := n.StopApp(t.Context(), first.ID, 0); err != nil {
		t.Fatal(err)
	}
	if s := wait(t, n, first); s.Exit.Code != 137 || s.Exit.Signal != int(unix.SIGKILL) {
		t.Errorf("ended with %+v", s.Exit)
	}
}

// TestFlyNeedsTheHostsNetwork: a pod without an address would be made again for ever.
func TestFlyNeedsTheHostsNetwork(t *testing.T) {
	guard(t)
	n := openNode(t)
	_, err := n.CreatePod(t.Context(), pod.Pod{
		Owner: pod.OwnerCLI, Name: "no-fly", Handler: "fly",
		Namespaces: pod.Namespaces{Network: pod.NamespacePod, PID: pod.NamespaceApp, IPC: pod.NamespacePod},
	})
	if !errors.Is(err, pod.ErrUnsupported) || !strings.Contains(err.Error(), "network") {
		t.Errorf("a network of its own: %v", err)
	}
}

// TestFlyCycles: nothing of an app stays mounted, wherever its rootfs was.
func TestFlyCycles(t *testing.T) {
	guard(t)
	n := watched(t)
	pull(t, n, busybox)
	mounts := func() string {
		return sh(t, "findmnt --raw --noheadings -o TARGET,FSTYPE | grep -v /run/gantry/images/ | sort")
	}
	before := mounts()
	for _, where := range []string{"own", "host"} {
		inMounts := func(p *pod.Pod) { p.Annotations = map[string]string{"gantry.io/fly-mounts": where} }
		p := newPod(t, n, inFly, inMounts)
		for i := range machine.Amount(50, 8) {
			a := newApp(t, n, p, shell(fmt.Sprintf("mkdir /x && mount -t tmpfs x /x && echo %d; exit %d", i, i)), with(func(s *engine.AppSpec) {
				s.Security.AddCaps, s.Security.Seccomp.Kind = []string{"SYS_ADMIN"}, pod.ProfileUnconfined
				s.Mounts = []pod.Mount{{Path: "/etc/given", HostPath: "/etc"}}
			}))
			start(t, n, a)
			if s := wait(t, n, a); s.Exit.Code != i {
				t.Fatalf("%s %d: ended with %+v", where, i, s.Exit)
			}
			if i == 0 { // what records the end takes the rootfs away: its removal has nothing to do
				eventually(t, 5*time.Second, "no mounts", func() bool { return mounts() == before })
			}
			if err := n.RemoveApp(t.Context(), a.ID); err != nil {
				t.Fatal(err)
			}
		}
		sameText(t, mounts(), before)
	}
}

// TestFlyOnTheHostsMounts: the host sees the rootfs, for as long as the app runs, also
// if what records its end is killed.
func TestFlyOnTheHostsMounts(t *testing.T) {
	guard(t)
	n := watched(t)
	pull(t, n, busybox)
	p := newPod(t, n, inFly, func(p *pod.Pod) { p.Annotations = map[string]string{"gantry.io/fly-mounts": "host"} })
	a := newApp(t, n, p, shell("echo here >/made; echo up; exec sleep 1000"))
	start(t, n, a)
	says(t, a, "up")
	root := "/run/gantry/fly/" + string(a.ID)
	sameText(t, sh(t, "cat "+root+"/made"), "here")
	out, _ := execIn(t, n, a, pod.Process{Argv: []string{"cat", "/made"}}, "")
	sameText(t, out, "here\n")
	dir := filepath.Join("/sys/fs/cgroup", unit.CgroupOf(p.Slice))
	for range 20 {
		killBelow(t, dir)
		time.Sleep(10 * time.Millisecond)
	}
	wait(t, n, a)
	if err := n.RemoveApp(t.Context(), a.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(root); err == nil {
		t.Errorf("%s is left", root)
	}
	if table := sh(t, "cat /proc/self/mountinfo"); strings.Contains(table, root) {
		t.Error("the rootfs is mounted still")
	}
}

// TestFlyStartErrors: what cannot run says why, and reads StartError; nothing is left
// half-way, wherever it failed.
func TestFlyStartErrors(t *testing.T) {
	guard(t)
	n := openNode(t)
	pull(t, n, busybox)
	p := newPod(t, n, inFly)
	file := filepath.Join(t.TempDir(), "noprogram")
	if err := os.WriteFile(file, []byte("\x7fELFno"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what, message string
		options       []appOption
	}{
		{"missing program", "/no/such/program", []appOption{command("/no/such/program")}},
		{"not in the path", `"nosuch"`, []appOption{command("nosuch")}},
		{"a directory", "is a directory", []appOption{command("/bin")}},
		{"what may not be executed", "permission denied", []appOption{command("/etc/passwd")}},
		{"working directory is a file", "/etc/passwd", []appOption{command("true"), with(func(s *engine.AppSpec) { s.WorkDir = "/etc/passwd" })}},
		{"mount below a file", "/etc/passwd/x", []appOption{command("true"), with(func(s *engine.AppSpec) {
			s.Mounts = []pod.Mount{{Path: "/etc/passwd/x", HostPath: "/etc"}}
		})}},
	} {
		a := newApp(t, n, p, c.options...)
		err := n.StartApp(t.Context(), a.ID)
		if err == nil || !strings.Contains(err.Error(), c.message) {
			t.Errorf("%s: start: %v", c.what, err)
		}
		if s, err := n.App(a.ID); err != nil || s.Phase != pod.Exited || s.Exit.Reason != pod.ReasonStartError || s.Exit.Code != 128 {
			t.Errorf("%s: %s %+v, %v", c.what, s.Phase, s.Exit, err)
		}
	}
	// The kernel alone can tell that this is none, when systemd has been told of the start.
	a := newApp(t, n, p, command("/noprogram"), with(func(s *engine.AppSpec) { s.Mounts = []pod.Mount{{Path: "/noprogram", HostPath: file}} }))
	err := n.StartApp(t.Context(), a.ID)
	if s := wait(t, n, a); s.Exit.Reason != pod.ReasonStartError || !strings.Contains(s.Exit.Message, "exec format error") {
		t.Errorf("no program: start: %v; %+v", err, s.Exit)
	}
	if out := output(t, a); out != "" {
		t.Errorf("the app's log has %q", out)
	}
}

// TestFlyHostilePaths: what an image or a volume has in it leads nobody out.
func TestFlyHostilePaths(t *testing.T) {
	guard(t)
	n := openNode(t)
	pull(t, n, busybox)
	p := newPod(t, n, inFly)
	volume := t.TempDir()
	sh(t, fmt.Sprintf("cd %s && ln -s /../../../../../../etc up && ln -s /proc/1/root magic && mkdir out", volume))
	mounted := with(func(s *engine.AppSpec) {
		s.Mounts = []pod.Mount{{Path: "/v", HostPath: volume}, {Path: "/v/up/there", HostPath: volume + "/out"}}
	})
	sameText(t, printed(t, n, p, "touch /etc/there/here; ls /v/out", mounted), "here")
	if _, err := os.Stat("/etc/there"); err == nil {
		t.Error("a directory was made in the host's /etc")
	}
	a := newApp(t, n, p, command("true"), with(func(s *engine.AppSpec) {
		s.Mounts = []pod.Mount{{Path: "/v", HostPath: volume}, {Path: "/v/magic/etc/gantry-e2e", HostPath: volume + "/out"}}
	}))
	err := n.StartApp(t.Context(), a.ID)
	if _, statErr := os.Stat("/etc/gantry-e2e"); statErr == nil {
		t.Errorf("a directory was made in the host's /etc; start: %v", err)
	}
}

// TestFlyExecStaysInside: an exec's working directory is the app's word, too.
func TestFlyExecStaysInside(t *testing.T) {
	guard(t)
	n := openNode(t)
	pull(t, n, busybox)
	p := newPod(t, n, inFly)
	a := newApp(t, n, p, shell("rmdir /work && ln -s /proc/1/root /work && echo up; exec sleep 1000"), with(func(s *engine.AppSpec) {
		s.WorkDir, s.Security.DropCaps = "/work", []string{"ALL"}
	}))
	start(t, n, a)
	says(t, a, "up")
	ctx, cancel := context.WithTimeout(t.Context(), patience(10*time.Second))
	defer cancel()
	var out bytes.Buffer
	_, err := n.Exec(ctx, a.ID, pod.Process{Argv: []string{"cat", "etc/hostname"}}, engine.Streams{Stdout: &out, Stderr: &out})
	if err == nil || !strings.Contains(err.Error(), "/work") || out.Len() > 0 {
		t.Errorf("exec in a directory that leads out: %v, %q", err, out.String())
	}
}

// TestFlyStdioIsTheUsers: programs open /dev/stdout again.
func TestFlyStdioIsTheUsers(t *testing.T) {
	guard(t)
	n := openNode(t)
	pull(t, n, busybox)
	p := newPod(t, n, inFly)
	user := with(func(s *engine.AppSpec) { s.User, s.Group = "1000", "1000" })
	sameText(t, printed(t, n, p, "echo out >/dev/stdout; echo err >/dev/stderr", user), "out\nerr")
	a := newApp(t, n, p, command("sleep", "1000"), user)
	start(t, n, a)
	out, code := execIn(t, n, a, pod.Process{Argv: []string{"sh", "-c", "echo out >/dev/stdout"}}, "")
	if sameText(t, out, "out\n"); code != 0 {
		t.Errorf("exec ended with %d", code)
	}
}

// TestFlyKeepsTheCgroupOptions: they are of all cgroups of the machine.
func TestFlyKeepsTheCgroupOptions(t *testing.T) {
	guard(t)
	n := openNode(t)
	pull(t, n, busybox)
	sh(t, "mount -o remount,nsdelegate,memory_recursiveprot /sys/fs/cgroup") // as systemd does
	options := func() string { return sh(t, "findmnt -n -o FS-OPTIONS /sys/fs/cgroup") }
	before := options()
	for _, isolated := range []podOption{inFly, inOCI, inRunc} {
		for _, privileged := range []bool{false, true} {
			p := newPod(t, n, isolated, func(p *pod.Pod) { p.Security.Privileged = privileged })
			printed(t, n, p, "ls /sys/fs/cgroup", with(func(s *engine.AppSpec) { s.Security.Privileged = privileged }))
			sameText(t, options(), before)
		}
	}
}

// TestFlySeccompKills: a profile that kills is no reason to hang.
func TestFlySeccompKills(t *testing.T) {
	guard(t)
	n := openNode(t)
	pull(t, n, busybox)
	p := newPod(t, n, inFly)
	file := filepath.Join(t.TempDir(), "p.json")
	if err := os.WriteFile(file, []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["execve"],"action":"SCMP_ACT_KILL"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	a := newApp(t, n, p, command("true"), with(func(s *engine.AppSpec) {
		s.Security.Seccomp = pod.Profile{Kind: pod.ProfileLocalhost, Localhost: file}
	}))
	err := n.StartApp(t.Context(), a.ID)
	if s := wait(t, n, a); s.Exit.Reason != pod.ReasonStartError || !strings.Contains(s.Exit.Message, "seccomp") {
		t.Errorf("start: %v; ended with %+v", err, s.Exit)
	}
}

// TestFlyBidirectional: what a privileged app mounts in a shared volume the host sees.
func TestFlyBidirectional(t *testing.T) {
	guard(t)
	n := openNode(t)
	pull(t, n, busybox)
	p := newPod(t, n, inFly, func(p *pod.Pod) { p.Security.Privileged = true })
	dir := t.TempDir()
	sh(t, fmt.Sprintf("mount --bind %s %s && mount --make-shared %s", dir, dir, dir))
	t.Cleanup(func() { sh(t, "umount -R "+dir) })
	before := sh(t, "findmnt --raw --noheadings -o TARGET | sort")
	a := newApp(t, n, p, shell("mkdir /v/m && mount -t tmpfs m /v/m && echo hello >/v/m/f && echo up; exec sleep 1000"), with(func(s *engine.AppSpec) {
		s.Security.Privileged = true
		s.Mounts = []pod.Mount{{Path: "/v", HostPath: dir, Propagation: pod.PropagationShared}}
	}))
	start(t, n, a)
	says(t, a, "up")
	sameText(t, sh(t, "cat "+dir+"/m/f"), "hello")
	after := strings.Fields(sh(t, "findmnt --raw --noheadings -o TARGET | sort"))
	after = slices.DeleteFunc(after, func(m string) bool {
		return m == dir+"/m" || strings.HasPrefix(m, "/run/gantry/images/") || slices.Contains(strings.Fields(before), m)
	})
	if len(after) > 0 {
		t.Errorf("the host sees %v, too", after)
	}
	out, code := execIn(t, n, a, pod.Process{Argv: []string{"cat", "/v/m/f"}}, "")
	if sameText(t, out, "hello\n"); code != 0 {
		t.Errorf("exec ended with %d", code)
	}
	sh(t, "umount "+dir+"/m")
}

// TestFlyOutOfMemory: the reason is the kernel's.
func TestFlyOutOfMemory(t *testing.T) {
	guard(t)
	n := openNode(t)
	pull(t, n, busybox)
	p := newPod(t, n, inFly)
	a := newApp(t, n, p, shell("dd if=/dev/zero of=/dev/null bs=100M count=1"), limits(pod.Resources{Memory: 16 << 20, MemorySwap: 16 << 20}))
	start(t, n, a)
	if s := wait(t, n, a); s.Exit.Reason != pod.ReasonOOMKilled {
		t.Errorf("ended with %+v", s.Exit)
	}
}

// TestFlyKilledStarts kills gantry-init at any moment of a start: the app has run or it
// has not, and nothing of it stays.
func TestFlyKilledStarts(t *testing.T) {
	guard(t)
	n := watched(t)
	pull(t, n, busybox)
	p := newPod(t, n, inFly, func(p *pod.Pod) { p.Annotations = map[string]string{"gantry.io/fly-mounts": "host"} })
	dir := filepath.Join("/sys/fs/cgroup", unit.CgroupOf(p.Slice))
	const most, steps = 50, 10
	cut := 0
	for i := 0; i < machine.Amount(most, steps) || cut == 0 && i < most; i++ { // a short run goes on until one fell into a start
		a := newApp(t, n, p, command("sleep", "1000"))
		ctx, cancel := context.WithTimeout(t.Context(), patience(20*time.Second))
		started := make(chan error, 1)
		go func() { started <- n.StartApp(ctx, a.ID) }()
		time.Sleep(time.Duration(i%steps)*patience(10*time.Millisecond) + time.Duration(i/steps)*patience(2*time.Millisecond))
		killBelow(t, dir)
		err := <-started
		cancel()
		if err == nil { // killed before there was anything, or behind the start
			killBelow(t, dir)
		}
		s := wait(t, n, a)
		if s.Exit.Code != 137 && s.Exit.Code != 128 {
			t.Errorf("kill %d: start: %v; ended with %+v", i, err, s.Exit)
		}
		if err != nil {
			cut++
		}
		if err := n.RemoveApp(t.Context(), a.ID); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d starts were cut short", cut)
	if cut == 0 {
		t.Error("no kill fell into a start")
	}
	if table := sh(t, "cat /proc/self/mountinfo"); strings.Contains(table, "/run/gantry/fly/") {
		t.Error("a rootfs is mounted still")
	}
}
