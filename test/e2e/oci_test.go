//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/isolator"
	"gantry/internal/isolator/oci"
	"gantry/internal/isolator/recipe"
	"gantry/internal/namespace"
	"gantry/internal/pod"
	"gantry/internal/systemd"
	"gantry/internal/unit"
)

// These tests run the oci isolator's plans with nothing else of Gantry but
// gantry-init: no engine, no network, no gantry-stdio. Each asks for something
// and looks from inside the container whether it is so.

const ociInit = "/usr/libexec/gantry/gantry-init"

// ociNode is what the tests of one run share: the isolator, systemd, an image.
type ociNode struct {
	t    *testing.T
	iso  *oci.OCI
	pid1 *systemd.Manager
	tree isolator.Tree
	mnt  unit.Unit
}

func newOCINode(t *testing.T, c oci.Config) *ociNode {
	t.Helper()
	if _, err := os.Stat(ociInit); err != nil {
		notRun(t, "gantry-init is not installed: %v", err)
	}
	iso, err := oci.New(c)
	if err != nil {
		t.Fatal(err)
	}
	m, err := systemd.Dial(context.Background(), systemd.Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	n := &ociNode{t: t, iso: iso, pid1: m}
	n.image()
	for _, dir := range []string{"/run/gantry", "/run/gantry/exits"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// image makes an EROFS image with a busybox in it and describes its mount.
func (n *ociNode) image() {
	n.t.Helper()
	dir := "/var/tmp/gantry-oci-test"
	file := dir + "/busybox.erofs"
	n.tree.Path = "/run/gantry/images/00c1"
	n.tree.Unit = unit.Mount(n.tree.Path)
	sh(n.t, strings.NewReplacer("$dir", dir, "$file", file).Replace(`
		test -s $file && exit
		rm -rf $dir; mkdir -p $dir/root && cd $dir/root
		mkdir -p bin etc tmp root srv deep/er data mnt && chmod 1777 tmp
		cp /bin/busybox bin/ && for a in $(/bin/busybox --list | grep -vx busybox); do ln -s busybox bin/$a; done
		echo root:x:0:0:root:/root:/bin/sh > etc/passwd; echo 'from the image' > deep/er/file; echo x > etc/hostname; ln -s /etc way; ln -s ../../../../../etc/passwd far
		chown -R 1000:1000 srv
		mkfs.erofs -Enoinline_data $file . >/dev/null`))
	n.mnt = unit.Unit{Name: n.tree.Unit, Properties: []unit.Property{
		{Name: "What", Value: unit.String(file)},
		{Name: "Type", Value: unit.String("erofs")},
		{Name: "Options", Value: unit.String("ro")},
		{Name: "StopWhenUnneeded", Value: unit.Bool(true)},
	}}
	n.t.Cleanup(func() { os.Remove(n.tree.Path) })
}

// ociPod is a pod that is up.
type ociPod struct {
	*ociNode
	pod *pod.Pod
	dir isolator.Dirs
	out string // mounted at /out in every app
}

func (n *ociNode) newPod(change func(*pod.Pod)) *ociPod {
	n.t.Helper()
	id := pod.NewID()
	p := &pod.Pod{
		Version: 1, ID: id, Owner: pod.OwnerCLI, Name: "oci", Namespace: "e2e", Isolator: "oci", Hostname: "inside",
		Slice: unit.PodSlice(string(id)), DNS: &pod.DNS{Servers: []string{"192.0.2.1"}, Searches: []string{"e2e.test"}},
		Namespaces: pod.Namespaces{Network: pod.NamespacePod, PID: pod.NamespaceApp, IPC: pod.NamespacePod},
	}
	if change != nil {
		change(p)
	}
	s := &ociPod{ociNode: n, pod: p, dir: isolator.Dirs{Pod: "/var/lib/gantry/pods/" + string(id), Run: "/run/gantry/pods/" + string(id)}}
	s.out = "/var/tmp/gantry-oci-test/out-" + string(id)
	plan, err := n.iso.Sandbox(isolator.Sandbox{Pod: p, Dir: s.dir})
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(s.remove)
	s.write(s.dir.Pod, plan.Files)
	if err := os.MkdirAll(s.out, 0o777); err != nil {
		n.t.Fatal(err)
	}
	sh(n.t, "chmod 1777 "+s.out)
	s.namespaces()
	s.start(plan.Units)
	return s
}

// namespaces does what the engine does.
func (s *ociPod) namespaces() {
	s.t.Helper()
	spec := namespace.Spec{Dir: s.dir.Run, Hostname: s.pod.Hostname, Sysctls: s.pod.Sysctls, Child: ociInit}
	if u := s.pod.Namespaces.User; u != nil {
		spec.Kinds = append(spec.Kinds, namespace.User)
		for _, m := range u.UIDs {
			spec.UIDs = append(spec.UIDs, namespace.Map{Container: int(m.Container), Host: int(m.Host), Length: int(m.Length)})
		}
		spec.GIDs = spec.UIDs
	}
	if s.pod.Namespaces.IPC != pod.NamespaceNode {
		spec.Kinds, spec.ShmSize = append(spec.Kinds, namespace.IPC), 64<<20
	}
	if !s.pod.HostNetwork() {
		spec.Kinds = append(spec.Kinds, namespace.Net, namespace.UTS)
	}
	if err := namespace.Create(spec); err != nil {
		s.t.Fatal(err)
	}
}

func (s *ociPod) remove() {
	ctx := context.Background()
	for _, name := range []string{unit.Pod(string(s.pod.ID)), unit.Holder(string(s.pod.ID))} {
		if err := s.pid1.Stop(ctx, name); err != nil {
			s.t.Errorf("stop %s: %v", name, err)
		}
	}
	if err := namespace.Remove(s.dir.Run); err != nil {
		s.t.Error(err)
	}
	for _, dir := range []string{s.dir.Pod, s.out} {
		if err := os.RemoveAll(dir); err != nil {
			s.t.Error(err)
		}
	}
}

func (s *ociPod) write(dir string, files []isolator.File) {
	s.t.Helper()
	for _, f := range files {
		path := filepath.Join(dir, f.Path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			s.t.Fatal(err)
		}
		if err := os.WriteFile(path, f.Data, os.FileMode(f.Mode)); err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s *ociPod) start(units []unit.Unit, aux ...unit.Unit) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience(30*time.Second))
	defer cancel()
	last := len(units) - 1
	aux = append(aux, units[:last]...)
	if _, err := s.pid1.Start(ctx, units[last], aux...); err != nil {
		s.t.Fatalf("%v\n%s", err, s.journal(units[last].Name))
	}
}

func (s *ociPod) journal(name string) string {
	out, _ := exec.Command("journalctl", "--no-pager", "-n30", "-u", name).CombinedOutput()
	return string(out)
}

// ociApp is an app that was started.
type ociApp struct {
	*ociPod
	in   isolator.App
	unit string
}

// app starts an app that runs a script in busybox's shell.
func (s *ociPod) app(script string, change func(*isolator.App)) *ociApp {
	s.t.Helper()
	id := pod.NewID()
	a := &pod.App{
		Version: 1, ID: id, Pod: s.pod.ID, Name: "app", Image: pod.Image{ID: "sha256:00c1"},
		Argv: []string{"/bin/sh", "-c", script}, WorkingDir: "/", StopTimeout: 10 * time.Second, Namespaces: s.pod.Namespaces,
		Mounts: []pod.Mount{{Path: "/out", Source: s.out}},
	}
	in := isolator.App{Pod: s.pod, App: a, Dir: s.dir, Rootfs: s.tree, Resources: a.Resources}
	in.Dir.App = filepath.Join(s.dir.Pod, "apps", string(id))
	if change != nil {
		change(&in)
	}
	plan, err := s.iso.App(in)
	if err != nil {
		s.t.Fatal(err)
	}
	s.write(in.Dir.App, plan.Files)
	sh(s.t, fmt.Sprintf("cd %s && mkdir -m 700 rw rw/work && mkdir -m 755 rw/upper", in.Dir.App))
	name := plan.Units[len(plan.Units)-1].Name
	s.t.Cleanup(func() {
		_ = s.pid1.Kill(context.Background(), name, "main", 9) // it may be gone
		// What records the end of a killed app would write while its directory goes.
		for _, name := range []string{name, unit.Exit(string(id))} {
			if err := s.pid1.Stop(context.Background(), name); err != nil {
				s.t.Errorf("stop %s: %v", name, err)
			}
		}
		os.Remove("/run/gantry/exits/" + string(id))
	})
	s.start(plan.Units, s.mnt)
	return &ociApp{ociPod: s, in: in, unit: name}
}

// wait returns the app's exit record.
func (a *ociApp) wait() pod.Exit {
	a.t.Helper()
	var e pod.Exit
	eventually(a.t, 20*time.Second, "exit of "+a.unit, func() bool {
		data, err := os.ReadFile(filepath.Join(a.in.Dir.App, "exit.json"))
		return err == nil && json.Unmarshal(data, &e) == nil
	})
	return e
}

// run starts an app and returns what its script printed; the script must end well.
func (s *ociPod) run(script string, change func(*isolator.App)) string {
	s.t.Helper()
	a := s.app("{ "+script+"\n} >/out/said 2>&1", change)
	e := a.wait()
	said, err := os.ReadFile(filepath.Join(s.out, "said"))
	if err != nil || e.Code != 0 {
		s.t.Errorf("script ended with %+v: %v\n%s", e, err, s.journal(a.unit))
	}
	os.Remove(filepath.Join(s.out, "said"))
	return strings.TrimSpace(string(said))
}

func sameText(t *testing.T, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("inside the container:\n--- got\n%s\n--- want\n%s", got, want)
	}
}

func TestOCIProcess(t *testing.T) {
	guard(t)
	p := newOCINode(t, oci.Config{}).newPod(nil)
	got := p.run(`echo "$# $1 $A $HOSTNAME $PATH"; pwd; id; umask; cat /proc/self/oom_score_adj
		grep -E 'open files|core file|locked memory|Max processes' /proc/self/limits | sed 's/  */ /g'`, func(in *isolator.App) {
		in.App.Argv = append(in.App.Argv, "zero", "a  b$A%n")
		in.Secret.Env = []string{"A=1 2", "PATH=/bin"}
		in.App.WorkingDir = "/deep/er"
		in.App.Security.UID, in.App.Security.GID, in.App.Security.Groups = 1000, 2000, []uint32{3000, 4000}
		in.App.Rlimits = []pod.Rlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}}
		in.Resources.OOMScoreAdj = 555
	})
	sameText(t, got, `1 a  b$A%n 1 2 inside /bin
/deep/er
uid=1000 gid=2000 groups=2000,3000,4000
0022
555
Max core file size unlimited unlimited bytes 
Max processes unlimited unlimited processes 
Max open files 100 200 files 
Max locked memory 8388608 8388608 bytes`)
}

func TestOCIFiles(t *testing.T) {
	guard(t)
	p := newOCINode(t, oci.Config{}).newPod(nil)
	got := p.run(`hostname; cat /etc/hostname /etc/resolv.conf; grep inside /etc/hosts; echo changed > /etc/hostname && echo writable
		cat /deep/er/file; echo new > /deep/er/file && cat /deep/er/file; stat -c '%a %u' /tmp /srv`, nil)
	sameText(t, got, `inside
inside
search e2e.test
nameserver 192.0.2.1
127.0.1.1	inside
writable
from the image
new
1777 0
755 1000`)
	got = p.run(`cat /deep/er/file; touch /x; echo y > /etc/resolv.conf; touch /dev/x /dev/shm/x /tmp/x; cat /etc/hostname`, func(in *isolator.App) {
		in.App.Security.ReadOnlyRootfs = true
	})
	sameText(t, got, `from the image
touch: /x: Read-only file system
/bin/sh: can't create /etc/resolv.conf: Read-only file system
touch: /tmp/x: Read-only file system
changed`)
}

func TestOCINamespaces(t *testing.T) {
	guard(t)
	kinds := []string{"cgroup", "ipc", "mnt", "net", "pid", "user", "uts"}
	own := func(kind string) string { link, _ := os.Readlink("/proc/1/ns/" + kind); return link }
	const show = `for n in cgroup ipc mnt net pid user uts; do readlink /proc/self/ns/$n; done; echo $$`
	node := newOCINode(t, oci.Config{})
	look := func(t *testing.T, p *ociPod, change func(*isolator.App)) map[string]string {
		t.Helper()
		lines := strings.Split(p.run(show, change), "\n")
		if len(lines) != len(kinds)+1 {
			t.Fatalf("said %q", lines)
		}
		seen := map[string]string{"$$": lines[len(kinds)]}
		for i, k := range kinds {
			seen[k] = lines[i]
		}
		return seen
	}
	check := func(t *testing.T, a, b map[string]string, same string) {
		t.Helper()
		for _, k := range kinds {
			if got, want := a[k] == b[k], strings.Contains(same, k); got != want {
				t.Errorf("%s: the same is %v, want %v", k, got, want)
			}
		}
	}
	host := map[string]string{}
	for _, k := range kinds {
		host[k] = own(k)
	}
	p := node.newPod(nil)
	// Numbers of namespaces are used again: both apps must be there at a time.
	a := p.app("cd /proc/self/ns; for n in cgroup ipc mnt net pid user uts; do readlink $n; done >/out/first; exec sleep 1000", nil)
	second := look(t, p, nil)
	lines, err := os.ReadFile(filepath.Join(a.out, "first"))
	if err != nil {
		t.Fatal(err)
	}
	first := map[string]string{"$$": second["$$"]}
	for i, line := range strings.Fields(string(lines)) {
		first[kinds[i]] = line
	}
	check(t, first, host, "user")
	check(t, first, second, "ipc net user uts")
	if first["$$"] != "1" {
		t.Errorf("PID in an own namespace is %s, want 1", first["$$"])
	}
	all := node.newPod(func(p *pod.Pod) {
		p.Hostname, p.DNS = "", nil
		p.Namespaces = pod.Namespaces{Network: pod.NamespaceNode, PID: pod.NamespaceNode, IPC: pod.NamespaceNode}
	})
	check(t, look(t, all, nil), host, "ipc net pid user uts")
	priv := node.newPod(func(p *pod.Pod) { p.Security.Privileged = true })
	check(t, look(t, priv, func(in *isolator.App) { in.App.Security.Privileged = true }), host, "cgroup user")
}

func TestOCISharedPID(t *testing.T) {
	guard(t)
	p := newOCINode(t, oci.Config{}).newPod(func(p *pod.Pod) { p.Namespaces.PID = pod.NamespacePod })
	s, err := p.pid1.State(context.Background(), unit.Holder(string(p.pod.ID)))
	if err != nil || s.MainPID == 0 {
		t.Fatalf("holder: %+v, %v", s, err)
	}
	join := func(in *isolator.App) { in.HolderPID = s.MainPID }
	other := p.app("exec sleep 1000", join)
	sameText(t, p.run(`tr '\0' ' ' </proc/1/cmdline; echo; pidof sleep | wc -w`, join), "gantry-holder \n1")
	target := p.app("exec sleep 2000", func(in *isolator.App) { in.App.Namespaces.PID = pod.NamespaceApp })
	state, err := p.pid1.State(context.Background(), target.unit)
	if err != nil {
		t.Fatal(err)
	}
	sameText(t, p.run(`tr '\0' ' ' </proc/1/cmdline`, func(in *isolator.App) {
		in.App.Namespaces.PID, in.TargetPID = pod.NamespaceTarget, state.MainPID
	}), "sleep 2000")
	_ = other
}

func TestOCISysctls(t *testing.T) {
	guard(t)
	p := newOCINode(t, oci.Config{}).newPod(func(p *pod.Pod) {
		p.Sysctls = map[string]string{"net.ipv4.ip_forward": "1", "kernel.shmmax": "65536", "fs.mqueue.msg_max": "7"}
	})
	sameText(t, p.run(`cd /proc/sys; cat net/ipv4/ip_forward kernel/shmmax fs/mqueue/msg_max; echo 0 > net/ipv4/ip_forward; true`, nil),
		"1\n65536\n7\n/bin/sh: can't create net/ipv4/ip_forward: Read-only file system")
}

func TestOCISecurity(t *testing.T) {
	guard(t)
	const status = `grep -E '^(Cap(Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs|Seccomp):' /proc/self/status | tr -s '\t\n' '  '`
	caps := func(inh, prm, eff, bnd, amb string, nnp, seccomp int) string {
		return fmt.Sprintf("CapInh: %s CapPrm: %s CapEff: %s CapBnd: %s CapAmb: %s NoNewPrivs: %d Seccomp: %d", inh, prm, eff, bnd, amb, nnp, seccomp)
	}
	const none, std, every, bind = "0000000000000000", "00000000a80425fb", "000001ffffffffff", "0000000000000400"
	node := newOCINode(t, oci.Config{})
	p := node.newPod(func(p *pod.Pod) { p.Security.Privileged = true })
	for _, test := range []struct {
		name   string
		change func(*pod.Security)
		want   string
	}{
		{"default", func(*pod.Security) {}, caps(none, std, std, std, none, 0, 2)},
		{"unconfined", func(s *pod.Security) { s.Seccomp.Kind = pod.ProfileUnconfined }, caps(none, std, std, std, none, 0, 0)},
		{"no new privileges", func(s *pod.Security) { s.NoNewPrivileges = true }, caps(none, std, std, std, none, 1, 2)},
		{"user", func(s *pod.Security) { s.UID = 1000 }, caps(none, none, none, std, none, 0, 2)},
		{"drop all", func(s *pod.Security) { s.DropCaps = []string{"ALL"} }, caps(none, none, none, none, none, 0, 2)},
		{"add all", func(s *pod.Security) { s.AddCaps = []string{"ALL"} }, caps(none, every, every, every, none, 0, 2)},
		{
			"drop all add one",
			func(s *pod.Security) { s.DropCaps, s.AddCaps = []string{"ALL"}, []string{"NET_BIND_SERVICE"} },
			caps(none, bind, bind, bind, none, 0, 2),
		},
		{
			"ambient",
			func(s *pod.Security) {
				s.UID, s.DropCaps, s.AmbientCaps = 1000, []string{"ALL"}, []string{"NET_BIND_SERVICE"}
			},
			caps(bind, bind, bind, bind, bind, 0, 2),
		},
		{"privileged", func(s *pod.Security) { s.Privileged = true }, caps(none, every, every, every, none, 0, 0)},
	} {
		t.Run(test.name, func(t *testing.T) {
			sameText(t, p.run(status, func(in *isolator.App) { test.change(&in.App.Security) }), test.want)
		})
	}
}

func TestOCISeccomp(t *testing.T) {
	guard(t)
	p := newOCINode(t, oci.Config{}).newPod(nil)
	const try = `unshare -U true && echo unshared; mkdir /tmp/d && echo made`
	sameText(t, p.run(try, nil), "unshare: unshare(0x10000000): Operation not permitted\nmade")
	sameText(t, p.run(try, func(in *isolator.App) { in.App.Security.Seccomp.Kind = pod.ProfileUnconfined }), "unshared\nmade")
	// crun finds compiled profiles again by a hash that leaves error numbers out.
	for errno, want := range map[int]string{28: "No space left on device", 30: "Read-only file system"} {
		got := p.run("mkdir /tmp/d || echo no", func(in *isolator.App) {
			in.App.Security.Seccomp = pod.Profile{Kind: pod.ProfileLocalhost, Localhost: "/p.json"}
			in.SeccompProfile = fmt.Appendf(nil, `{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": %d}]}`, errno)
		})
		sameText(t, got, "mkdir: can't create directory '/tmp/d': "+want+"\nno")
	}
}

func TestOCIAppArmor(t *testing.T) {
	guard(t)
	const profile = `profile gantry-e2e flags=(attach_disconnected,mediate_deleted) { file, capability, network, umount, signal, deny /deep/** r, }`
	load := exec.Command("apparmor_parser", "-r")
	load.Stdin = strings.NewReader(profile)
	if out, err := load.CombinedOutput(); err != nil {
		notRun(t, "AppArmor takes no profile: %v: %s", err, out)
	}
	t.Cleanup(func() {
		unload := exec.Command("apparmor_parser", "-R")
		unload.Stdin = strings.NewReader(profile)
		if out, err := unload.CombinedOutput(); err != nil {
			t.Errorf("unload profile: %v: %s", err, out)
		}
	})
	p := newOCINode(t, oci.Config{AppArmorDefault: "gantry-e2e"}).newPod(nil)
	const try = "cat /proc/self/attr/current; cat /deep/er/file; true"
	const confined = "gantry-e2e (enforce)\ncat: can't open '/deep/er/file': Permission denied"
	sameText(t, p.run(try, nil), confined)
	sameText(t, p.run(try, func(in *isolator.App) {
		in.App.Security.AppArmor = pod.Profile{Kind: pod.ProfileLocalhost, Localhost: "gantry-e2e"}
	}), confined)
	sameText(t, p.run(try, func(in *isolator.App) { in.App.Security.AppArmor.Kind = pod.ProfileUnconfined }), "unconfined\nfrom the image")
}

func TestOCIHiddenPaths(t *testing.T) {
	guard(t)
	p := newOCINode(t, oci.Config{}).newPod(func(p *pod.Pod) { p.Security.Privileged = true })
	const try = `wc -c < /proc/timer_list | sed 's/^[1-9].*/some/'; ls /sys/firmware | wc -l | sed 's/^[1-9].*/some/'
		for m in /proc/sys /sys /sys/fs/cgroup; do grep " $m " /proc/self/mountinfo | tail -1 | cut -d' ' -f6 | cut -d, -f1; done
		(echo 1 > /proc/sys/kernel/printk_ratelimit_burst) 2>/dev/null || echo no`
	sameText(t, p.run(try, nil), "0\n0\nro\nro\nro\nno")
	sameText(t, p.run(try, func(in *isolator.App) {
		in.App.Security.MaskedPaths, in.App.Security.ReadOnlyPaths = []string{}, []string{}
	}), "some\nsome\nro\nro")
	sameText(t, p.run(`cat /deep/er/file; ls /srv; touch /data/x; true`, func(in *isolator.App) {
		in.App.Security.MaskedPaths, in.App.Security.ReadOnlyPaths = []string{"/deep/er/file", "/srv"}, []string{"/data"}
	}), "touch: /data/x: Read-only file system")
	sameText(t, p.run(try, func(in *isolator.App) { in.App.Security.Privileged = true }), "some\nsome\nrw\nrw")
}

func TestOCIMounts(t *testing.T) {
	guard(t)
	p := newOCINode(t, oci.Config{}).newPod(nil)
	src := p.out + "/src"
	sh(t, fmt.Sprintf(`mkdir -p %[1]s/a/sub %[1]s/late %[1]s/both && echo file > %[1]s/f && mount -t tmpfs sub %[1]s/a/sub && chmod 777 %[1]s/a/sub`, src))
	t.Cleanup(func() {
		sh(t, fmt.Sprintf("umount -R %[1]s/a/sub; umount -R %[1]s/late; umount -R %[1]s/both || true", src))
	})
	options := `o() { grep " $1 " /proc/self/mountinfo | tail -1 | cut -d' ' -f6 | sed 's/,[a-z]*atime//'; }`
	got := p.run(options+`
		touch /rw/x /rw/sub/x /ro/x /ro/sub/x /rro/x /rro/sub/x; cat /file; o /opts; o /rro/sub`, func(in *isolator.App) {
		in.App.Mounts = append(in.App.Mounts,
			pod.Mount{Path: "/rw", Source: src + "/a"},
			pod.Mount{Path: "/ro", Source: src + "/a", ReadOnly: true},
			pod.Mount{Path: "/rro", Source: src + "/a", ReadOnly: true, RecursiveReadOnly: true},
			pod.Mount{Path: "/file", Source: src + "/f", ReadOnly: true},
			pod.Mount{Path: "/opts", Source: src + "/a", Options: []string{"noexec", "nodev", "nosuid"}})
	})
	sameText(t, got, `touch: /ro/x: Read-only file system
touch: /rro/x: Read-only file system
touch: /rro/sub/x: Read-only file system
file
rw,nosuid,nodev,noexec
ro`)
	a := p.app(`until test -e /out/go; do sleep .1; done
		{ ls /slave /private | tr '\n' ' '; } >/out/said; rm /out/go`, func(in *isolator.App) {
		in.App.Mounts = append(in.App.Mounts,
			pod.Mount{Path: "/slave", Source: src + "/late", Propagation: pod.PropagationSlave},
			pod.Mount{Path: "/private", Source: src + "/late"})
	})
	sh(t, fmt.Sprintf("mount -t tmpfs late %[1]s/late && touch %[1]s/late/seen %[2]s/go", src, p.out))
	a.wait()
	said, _ := os.ReadFile(p.out + "/said")
	sameText(t, string(said), "/private:  /slave: seen ")
}

// TestOCIBidirectional mounts in the container and looks on the host, and the
// other way round.
func TestOCIBidirectional(t *testing.T) {
	guard(t)
	p := newOCINode(t, oci.Config{}).newPod(func(p *pod.Pod) { p.Security.Privileged = true })
	dir := p.out + "/both"
	sh(t, fmt.Sprintf("mkdir -p %[1]s/in %[1]s/out", dir))
	t.Cleanup(func() { sh(t, fmt.Sprintf("umount %[1]s/in; umount %[1]s/out", dir)) })
	a := p.app(`mount -t tmpfs x /both/in && touch /both/in/hello; touch /out/ready
		until test -e /both/out/hello; do sleep .1; done; touch /out/done; sleep 1000`, func(in *isolator.App) {
		in.App.Security.Privileged = true
		in.App.Mounts = append(in.App.Mounts, pod.Mount{Path: "/both", Source: dir, Propagation: pod.PropagationShared})
	})
	eventually(t, 10*time.Second, "mount in the app", func() bool { _, err := os.Stat(p.out + "/ready"); return err == nil })
	if _, err := os.Stat(dir + "/in/hello"); err != nil {
		t.Errorf("mount of the app does not show on the host: %v", err)
	}
	sh(t, fmt.Sprintf("mount -t tmpfs x %[1]s/out && touch %[1]s/out/hello", dir))
	eventually(t, 10*time.Second, "mount of the host in the app", func() bool { _, err := os.Stat(p.out + "/done"); return err == nil })
	if table := sh(t, "cat /proc/self/mountinfo"); strings.Contains(table, oci.RootfsTarget) {
		t.Errorf("the rootfs shows on the host:\n%s", table)
	}
	if err := p.pid1.Stop(context.Background(), a.unit); err != nil {
		t.Error(err)
	}
	sh(t, "test -e "+dir+"/in/hello")
}

func TestOCIImageVolume(t *testing.T) {
	guard(t)
	p := newOCINode(t, oci.Config{}).newPod(nil)
	got := p.run(`cat /vol/er/file; touch /vol/x; /vol2/busybox true; stat -c %A /one; ls /to-etc; wc -l < /to-passwd`, func(in *isolator.App) {
		image := &pod.Image{ID: "sha256:00c1"}
		in.ImageVolumes = map[string]isolator.Tree{image.ID: in.Rootfs}
		in.App.Mounts = append(in.App.Mounts,
			pod.Mount{Path: "/vol", Image: image, ImageSubPath: "deep", ReadOnly: true},
			pod.Mount{Path: "/vol2", Image: image, ImageSubPath: "bin", ReadOnly: true},
			pod.Mount{Path: "/one", Image: image, ImageSubPath: "deep/er/file", ReadOnly: true},
			// Links lead to the image's own files, and never to the host's.
			pod.Mount{Path: "/to-etc", Image: image, ImageSubPath: "way", ReadOnly: true},
			pod.Mount{Path: "/to-passwd", Image: image, ImageSubPath: "far", ReadOnly: true})
	})
	sameText(t, got, `from the image
touch: /vol/x: Read-only file system
/bin/sh: /vol2/busybox: Permission denied
-rw-r--r--
hostname
passwd
1`)
}

func TestOCIShm(t *testing.T) {
	guard(t)
	p := newOCINode(t, oci.Config{}).newPod(nil)
	sameText(t, p.run(`df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2; stat -c %a /dev/shm; echo shared > /dev/shm/x`, nil), "65536\n1777")
	sameText(t, p.run(`cat /dev/shm/x`, nil), "shared")
	host := p.newPod(func(p *pod.Pod) { p.Namespaces.IPC = pod.NamespaceNode })
	sh(t, "echo host > /dev/shm/gantry-e2e")
	t.Cleanup(func() { os.Remove("/dev/shm/gantry-e2e") })
	sameText(t, host.run("cat /dev/shm/gantry-e2e", nil), "host")
}

func TestOCIDevices(t *testing.T) {
	guard(t)
	p := newOCINode(t, oci.Config{}).newPod(func(p *pod.Pod) { p.Security.Privileged = true })
	// The machine's disk stands for a device that no container gets by itself.
	const try = `head -c1 /dev/zero | wc -c; echo x > /dev/full; head -c1 /dev/urandom | wc -c; : > /dev/null && echo null
		ls /dev | tr '\n' ' ' | sed 's/ $//'; echo; mknod /tmp/disk b MAJOR MINOR && echo made; head -c1 /tmp/disk 2>&1 | grep -o 'not permitted'`
	var stat unix.Stat_t
	if err := unix.Stat("/dev/vda", &stat); err != nil {
		t.Fatal(err)
	}
	major, minor := unix.Major(uint64(stat.Rdev)), unix.Minor(uint64(stat.Rdev))
	script := strings.NewReplacer("MAJOR", fmt.Sprint(major), "MINOR", fmt.Sprint(minor)).Replace
	sameText(t, p.run(script(try), nil), `1
sh: write error: No space left on device
1
null
core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero
made
not permitted`)
	disk := pod.Device{
		Path: "/dev/sub/disk", Source: "/dev/vda", Permissions: "r", Type: "b", Major: int64(major), Minor: int64(minor), Mode: 0o640, GID: 7,
	}
	sameText(t, p.run(`stat -c '%a %g %F' /dev/sub/disk; head -c1 /dev/sub/disk | wc -c; (: >> /dev/sub/disk); true`, func(in *isolator.App) {
		in.App.Devices = []pod.Device{disk}
	}), "640 7 block special file\n1\n/bin/sh: can't create /dev/sub/disk: Operation not permitted")
	sameText(t, p.run(script(`mknod /tmp/disk b MAJOR MINOR; head -c1 /tmp/disk | wc -c; (: >> /tmp/disk) && echo writable; ls /dev/sub`), func(in *isolator.App) {
		in.App.Security.Privileged, in.App.Devices = true, []pod.Device{disk}
	}), "1\nwritable\ndisk")
}

func TestOCIResources(t *testing.T) {
	guard(t)
	p := newOCINode(t, oci.Config{}).newPod(nil)
	last := strconv.Itoa(runtime.NumCPU() - 1) // the machine may have one only
	set := func(in *isolator.App) {
		in.Resources = pod.Resources{
			CPUPeriod: 100000, CPUQuota: 212345, CPUShares: 512, Memory: 64 << 20, MemorySwap: 64 << 20, Pids: 50,
			CPUSet: last, MemorySet: "0", OOMScoreAdj: 100,
			Hugepages: []pod.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}},
			Unified: map[string]string{
				"memory.oom.group": "1", "memory.high": "50331648", "memory.min": "1048576", "memory.low": "2097152",
				"cpu.max.burst": "1000",
			},
		}
	}
	const show = `cd /sys/fs/cgroup; for f in cpu.max cpu.max.burst cpu.weight memory.max memory.swap.max memory.high memory.min memory.low \
		memory.oom.group pids.max cpuset.cpus cpuset.mems hugetlb.2MB.max; do echo $f $(cat $f); done; cat /proc/self/cgroup; nproc`
	const want = `cpu.max 212345 100000
cpu.max.burst 1000
cpu.weight 59
memory.max 67108864
memory.swap.max 0
memory.high 50331648
memory.min 1048576
memory.low 2097152
memory.oom.group 1
pids.max 50
cpuset.cpus %s
cpuset.mems 0
hugetlb.2MB.max 4194304
0::/
1`
	sameText(t, p.run(show, set), fmt.Sprintf(want, last))
	sameText(t, p.run(`cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory.oom.group; mkdir /sys/fs/cgroup/x; true`, nil),
		"max\nmax\n1\nmkdir: can't create directory '/sys/fs/cgroup/x': Read-only file system")
	sameText(t, p.run(`cat /sys/fs/cgroup/memory.oom.group`, func(in *isolator.App) {
		in.Resources.Unified = map[string]string{"memory.oom.group": "0"}
	}), "0")
}

// TestOCIUpdate changes the limits of a running app the way the engine does.
func TestOCIUpdate(t *testing.T) {
	guard(t)
	p := newOCINode(t, oci.Config{}).newPod(nil)
	a := p.app("exec sleep 1000", func(in *isolator.App) {
		in.Resources = pod.Resources{CPUQuota: 50000, CPUPeriod: 100000, Memory: 64 << 20}
	})
	props, files, err := recipe.Resources(pod.Resources{CPUQuota: 150123, CPUPeriod: 100000, CPUShares: 2048, Memory: 96 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.pid1.SetProperties(context.Background(), a.unit, props); err != nil {
		t.Fatal(err)
	}
	s, err := p.pid1.State(context.Background(), a.unit)
	if err != nil {
		t.Fatal(err)
	}
	dir := "/sys/fs/cgroup" + s.ControlGroup
	for _, f := range files {
		if err := os.WriteFile(filepath.Join(dir, f.Name), []byte(f.Value), 0); err != nil {
			t.Error(err)
		}
	}
	sameText(t, sh(t, "cd "+dir+" && cat cpu.max cpu.weight memory.max"), "150123 100000\n174\n100663296")
	// What systemd keeps is rounded up to whole percents; it writes that when it
	// next has a reason to.
	sh(t, "systemctl daemon-reload && systemctl set-property --runtime "+a.unit+" MemoryMax=80M")
	if got := sh(t, "cd "+dir+" && cat cpu.max"); got != "150123 100000" && got != "151000 100000" {
		t.Errorf("cpu.max after a reload: %s", got)
	}
}

func TestOCIOutOfMemory(t *testing.T) {
	guard(t)
	p := newOCINode(t, oci.Config{}).newPod(nil)
	eat := `(sleep 1000) & tail /dev/zero; echo survived > /out/said`
	limit := func(in *isolator.App) { in.Resources = pod.Resources{Memory: 16 << 20, MemorySwap: 16 << 20} }
	e := p.app(eat, limit).wait()
	if e.Reason != pod.ReasonOOMKilled || e.Code != 137 {
		t.Errorf("group kill: %+v", e)
	}
	sameText(t, p.run("tail /dev/zero; echo survived", func(in *isolator.App) {
		limit(in)
		in.Resources.Unified = map[string]string{"memory.oom.group": "0"}
	}), "Killed\nsurvived")
}

func TestOCIUserNamespace(t *testing.T) {
	guard(t)
	const base = 500000
	ids := []pod.IDMap{{Container: 0, Host: base, Length: 65536}}
	p := newOCINode(t, oci.Config{}).newPod(func(p *pod.Pod) {
		p.Namespaces.User = &pod.UserNS{UIDs: ids, GIDs: ids}
	})
	vol := p.out + "/vol"
	sh(t, fmt.Sprintf("mkdir -p %[1]s && echo x > %[1]s/root && echo y > %[1]s/user && chown 1000:1000 %[1]s/user", vol))
	got := p.run(`tr -s ' ' < /proc/self/uid_map; stat -c '%u:%g %n' / /bin/busybox /srv /vol/root /vol/user /etc/hostname /etc/resolv.conf /dev/shm /dev/null /img/er
		touch /new /srv/new && chown 1000 /new && stat -c %u /new; touch /vol/new /dev/shm/new && echo ok; hostname inner && hostname
		mount -t tmpfs x /mnt 2>&1; echo 1 > /etc/hostname && echo writable; id; ls -d /sys/class/net/lo; cat /proc/self/setgroups`,
		func(in *isolator.App) {
			image := &pod.Image{ID: "sha256:00c1"}
			in.ImageVolumes = map[string]isolator.Tree{image.ID: in.Rootfs}
			in.App.Mounts = append(in.App.Mounts,
				pod.Mount{Path: "/vol", Source: vol, UIDs: ids, GIDs: ids},
				pod.Mount{Path: "/img", Image: image, ImageSubPath: "deep", ReadOnly: true})
			in.App.Security.AddCaps = []string{"SYS_ADMIN"}
			in.App.Security.Groups = []uint32{3000}
		})
	sameText(t, got, `0 500000 65536
0:0 /
0:0 /bin/busybox
1000:1000 /srv
0:0 /vol/root
1000:1000 /vol/user
0:0 /etc/hostname
0:0 /etc/resolv.conf
0:0 /dev/shm
0:0 /dev/null
0:0 /img/er
1000
ok
inner
writable
uid=0(root) gid=0 groups=0,3000
/sys/class/net/lo
allow`)
	sameText(t, sh(t, "stat -c %u "+vol+"/new"), "0")
}

func TestOCIExec(t *testing.T) {
	guard(t)
	p := newOCINode(t, oci.Config{}).newPod(nil)
	a := p.app("exec sleep 1000", func(in *isolator.App) {
		in.App.Security.UID, in.App.Security.GID, in.App.Security.Groups = 1000, 1000, []uint32{7}
		in.App.Security.DropCaps, in.App.Security.NoNewPrivileges = []string{"ALL"}, true
		in.App.WorkingDir, in.Secret.Env = "/deep", []string{"A=1", "B=2"}
		in.App.Rlimits = []pod.Rlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}}
	})
	plan, err := p.iso.Exec(a.in, pod.Process{
		Argv: []string{"/bin/sh", "-c", `echo $A $B $C; pwd; id; grep -E '^(CapBnd|NoNewPrivs|Seccomp):' /proc/self/status | tr -s '\t\n' '  '; echo; ulimit -n; exit 7`},
		Env:  []string{"B=3", "C=4"},
	})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(a.in.Dir.App, "process.json")
	if err := os.WriteFile(file, plan.Process, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := execCommand(plan, file)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 7 {
		t.Errorf("exec: %v", err)
	}
	sameText(t, strings.TrimSpace(string(out)), `1 3 4
/deep
uid=1000 gid=1000 groups=7,1000
CapBnd: 0000000000000000 NoNewPrivs: 1 Seccomp: 2 
100`)
}

// execCommand runs an exec without an engine, which would make a cgroup for it.
func execCommand(plan isolator.Exec, process string) *exec.Cmd {
	var args []string
	for _, a := range plan.Args[1:] {
		switch a {
		case isolator.ProcessArg:
			a = process
		case "--cgroup", isolator.GroupPathArg:
			continue
		}
		args = append(args, a)
	}
	return exec.Command(plan.Path, args...)
}

// TestOCIUnit asks PID 1 what it made of the app's unit.
func TestOCIUnit(t *testing.T) {
	guard(t)
	p := newOCINode(t, oci.Config{}).newPod(nil)
	a := p.app(`trap 'exit 3' USR1; echo trapped >/out/said; while :; do sleep .1; done`, func(in *isolator.App) {
		in.App.StopSignal, in.App.StopTimeout = 10, 77*time.Second
	})
	for name, want := range map[string]string{
		"Type": "notify", "NotifyAccess": "all", "KillMode": "mixed", "KillSignal": "10", "TimeoutStopUSec": "1min 17s",
		"TimeoutStartUSec": "1min 50s", "CollectMode": "inactive-or-failed", "Restart": "no", "OOMPolicy": "kill",
		"Delegate": "yes", "TasksMax": "infinity", "DevicePolicy": "closed", "PrivateMounts": "yes", "IgnoreOnIsolate": "yes",
		"IgnoreSIGPIPE": "no", "StandardOutput": "journal", "Description": "e2e/oci/app", "Slice": p.pod.Slice, "LimitNOFILE": "1048576",
		"LimitNOFILESoft": "1048576", "LimitNPROC": "infinity", "LimitCORESoft": "infinity", "Requisite": unit.Pod(string(p.pod.ID)),
		"UMask": "0022", "SyslogIdentifier": "gantry-init", "OOMScoreAdjust": "0",
	} {
		if got := sh(t, "systemctl show --value -p "+name+" "+a.unit); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
	eventually(t, 10*time.Second, "the app's trap", func() bool {
		said, err := os.ReadFile(filepath.Join(p.out, "said"))
		return err == nil && string(said) == "trapped\n"
	})
	// Stopping the pod's unit is a complete, ordered teardown.
	if err := p.pid1.Stop(context.Background(), unit.Pod(string(p.pod.ID))); err != nil {
		t.Fatal(err)
	}
	if e := a.wait(); e.Code != 3 {
		t.Errorf("exit after the stop signal: %+v", e)
	}
	if out := sh(t, "systemctl list-units --all --no-legend --plain "+p.pod.Slice); strings.Contains(out, "active") {
		eventually(t, 5*time.Second, "end of the pod's slice", func() bool {
			return !strings.Contains(sh(t, "systemctl list-units --all --no-legend --plain "+p.pod.Slice), " active")
		})
	}
}

// TestOCISystemd runs a systemd as PID 1 of a privileged app: it takes the unit's
// cgroup for its own, makes groups in it, and the host's systemd must neither mind
// nor lose the app's exit. The machine's own files are the image.
func TestOCISystemd(t *testing.T) {
	guard(t)
	node := newOCINode(t, oci.Config{})
	p := node.newPod(func(p *pod.Pod) { p.Security.Privileged = true })
	// Not the root's own mount: overlay's upper directory must not lie below its lower.
	p.tree = isolator.Tree{Path: "/run/gantry/images/00c2", Unit: unit.Mount("/run/gantry/images/00c2")}
	p.mnt = unit.Unit{Name: p.tree.Unit, Properties: []unit.Property{
		{Name: "What", Value: unit.String("/")},
		{Name: "Type", Value: unit.String("none")},
		{Name: "Options", Value: unit.String("bind,ro")},
		{Name: "StopWhenUnneeded", Value: unit.Bool(true)},
	}}
	t.Cleanup(func() { os.Remove(p.tree.Path) })
	sh(t, fmt.Sprintf("mkdir -p %[1]s/apps && mount -t tmpfs apps %[1]s/apps", p.dir.Pod))
	t.Cleanup(func() { sh(t, "umount "+p.dir.Pod+"/apps") })

	a := p.app("", func(in *isolator.App) {
		in.App.Argv = []string{"/usr/lib/systemd/systemd", "--unit=basic.target", "--log-target=console"}
		in.Secret.Env = []string{"container=gantry"}
		in.App.Security.Privileged, in.App.StopSignal = true, 37 // SIGRTMIN+3: halt
		in.App.Mounts = nil
	})
	exec1 := func(argv ...string) string {
		plan, err := p.iso.Exec(a.in, pod.Process{Argv: argv})
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(a.in.Dir.App, "process.json")
		if err := os.WriteFile(file, plan.Process, 0o600); err != nil {
			t.Fatal(err)
		}
		out, _ := execCommand(plan, file).CombinedOutput()
		return strings.TrimSpace(string(out))
	}
	eventually(t, 30*time.Second, "systemd in the app", func() bool {
		return exec1("/usr/bin/systemctl", "is-active", "basic.target") == "active"
	})
	s, err := p.pid1.State(context.Background(), a.unit)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(sh(t, "systemd-cgls --no-pager /sys/fs/cgroup"+s.ControlGroup+"; cat /sys/fs/cgroup"+s.ControlGroup+"/cgroup.subtree_control"))
	sh(t, "test -d /sys/fs/cgroup"+s.ControlGroup+"/init.scope")
	sh(t, "systemctl daemon-reload && systemctl set-property --runtime "+a.unit+" MemoryMax=1G")
	if err := p.pid1.Kill(context.Background(), a.unit, "main", 37); err != nil {
		t.Fatal(err)
	}
	if e := a.wait(); e.Code != 0 && e.Code != 130 {
		t.Errorf("exit: %+v", e)
	}
}
