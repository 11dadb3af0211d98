//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"gantry/internal/engine"
	"gantry/internal/node"
	"gantry/internal/pod"
	"gantry/internal/unit"
)

const kvmDisk = 160 << 20

// pointToPoint is a network in which a route leads to the gateway, and nothing is next to a pod:
// as in many of those that route.
const pointToPoint = `{
  "cniVersion": "1.0.0", "name": "gantry-e2e-ptp", "plugins": [
    {"type": "ptp", "ipMasq": true, "mtu": 1380,
     "ipam": {"type": "host-local", "dataDir": "%s", "ranges": [%s], "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
    {"type": "portmap", "snat": true, "capabilities": {"portMappings": true}}
  ]}`

// TestKVMOutside: what a machine has of the host is what CNI gave the pod, a disk of the
// size that was configured, and the files that are shared with it.
func TestKVMOutside(t *testing.T) {
	guard(t)
	dir := t.TempDir()
	conf := fmt.Sprintf(pointToPoint, dir+"/leases", dualStack)
	if err := os.WriteFile(dir+"/10-e2e.conflist", []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	n := withMachines(t, func(m *node.Machines) { m.Disk, m.CPUs = kvmDisk, 2 }, func(o *node.Options) { o.NetworkConfDir = dir })
	pull(t, n, busybox)
	p := machinePod(t, n, func(p *pod.Pod) {
		p.Ports = []pod.Port{{Protocol: pod.TCP, PodPort: 80, HostPort: 18080}}
	})
	if got := printed(t, n, p, "nproc"); got != "2" {
		t.Errorf("it has %s processors", got)
	}
	t.Run("network", func(t *testing.T) { machineNetwork(t, n, p) })
	t.Run("files", func(t *testing.T) { machineFiles(t, n, p) })
	t.Run("mounts", func(t *testing.T) { machineMounts(t, n, p) })
	t.Run("clock", func(t *testing.T) { machineClock(t, n, p) })
	t.Run("full disk", func(t *testing.T) { machineDisk(t, n, p) })
	// Another one: where the first has written the host has room for it, and the disk may be
	// read-only then.
	t.Run("full host", func(t *testing.T) { hostDisk(t, n, machinePod(t, n)) })
}

// machineNetwork: both addresses, the MTU and the port of the host are the pod's.
func machineNetwork(t *testing.T, n *node.Node, p *pod.Pod) {
	s, err := n.Pod(p.ID)
	if err != nil || len(s.IPs) != 2 {
		t.Fatalf("the pod has %q, %v", s.IPs, err)
	}
	got := printed(t, n, p, `cat /sys/class/net/eth0/mtu; ip -o addr show eth0 scope global | sed 's/.*inet6* //; s#/.*##'; ip route | grep -c '^default via 10.99.0.1\|^10.99.0.1 dev\|^10.99.0.0/24 via'; ip -6 route | grep -c '^default via fd00:99::1\|^fd00:99::1 dev'; ip -6 route | grep '^fd00:99::/64 dev' | wc -l`)
	sameText(t, got, "1380\n"+s.IPs[0]+"\n"+s.IPs[1]+"\n3\n2\n0")
	a := newApp(t, n, p, shell("mkdir /www; echo hello >/www/index.html; head -c 1000000 /dev/zero >/www/big; httpd -p '[::]:80' -h /www; echo up; exec sleep 1000"))
	start(t, n, a)
	says(t, a, "up")
	eventually(t, 5*time.Second, "the host has its IPv6 address", func() bool { return sh(t, "ip -6 addr show tentative") == "" })
	for _, url := range []string{"http://" + s.IPs[0], "http://[" + s.IPs[1] + "]", "http://10.99.0.1:18080"} {
		if got := sh(t, "curl -s -m 60 '"+url+"' || true"); got != "hello" {
			t.Errorf("%s: %q", url, got)
		}
	}
	// More than goes into one packet.
	if got := sh(t, "curl -s -m 60 http://"+s.IPs[0]+"/big | wc -c"); got != "1000000" {
		t.Errorf("of a large file came %s bytes", got)
	}
}

// machineFiles: of the host the machine can see what is shared with it, and nothing beside
// that. Who serves its files sees no more either, so it does not matter who asks.
func machineFiles(t *testing.T, n *node.Node, p *pod.Pod) {
	dir := t.TempDir()
	sh(t, "cd "+dir+" && mkdir -p shared && echo visible >shared/file && echo secret >beside && ln -s ../beside shared/up && ln -s "+dir+"/beside shared/absolute")
	a := newApp(t, n, p, shell("cat /v/file; cat /v/up /v/absolute 2>/dev/null; echo up; exec sleep 1000"), with(func(s *engine.AppSpec) {
		s.Mounts = []pod.Mount{{Path: "/v", HostPath: dir + "/shared"}}
	}))
	start(t, n, a)
	eventually(t, 10*time.Second, "it sees the file and no other", func() bool { return output(t, a) == "visible\nup\n" })
	group := sh(t, "systemctl show --value -P ControlGroup "+unit.FileServer(string(p.ID)))
	inner := sh(t, "tail -n 1 /sys/fs/cgroup"+group+"/cgroup.procs") // the one in its own namespaces
	root := "/proc/" + inner + "/root"
	if same := sh(t, "stat -L -c %d:%i / "+root+"/ | uniq | wc -l"); same != "2" {
		t.Errorf("the file server is in the host's root")
	}
	apps, err := filepath.Glob("/var/lib/gantry/pods/" + string(p.ID) + "/apps/*")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{"proc": true}
	for _, app := range apps {
		known[filepath.Base(app)] = true
	}
	for name := range strings.FieldsSeq(sh(t, "ls -A "+root+"/")) {
		if !known[name] {
			t.Errorf("the file server sees %s, which is of no app", name)
		}
	}
	if got := sh(t, "find "+root+"/ -maxdepth 4 -name beside"); got != "" {
		t.Errorf("the file server sees %s", got)
	}
	// An image is the one file system of it that all pods have, so what one has read is in
	// the host's memory for all.
	const device = " | cut -d' ' -f3 | sort -u"
	mine, hosts := sh(t, "grep ' - erofs ' /proc/"+inner+"/mountinfo"+device), sh(t, "grep ' /run/gantry/images/.* - erofs ' /proc/self/mountinfo"+device)
	if mine == "" || !strings.Contains("\n"+hosts+"\n", "\n"+mine+"\n") {
		t.Errorf("the machine's image is of the file systems %q, the host's of %q", mine, hosts)
	}
}

// machineMounts: what the host mounts in a volume later comes through where that is asked
// for, and nowhere else. There it is in nobody's way when it is unmounted.
func machineMounts(t *testing.T, n *node.Node, p *pod.Pod) {
	dir := t.TempDir()
	sh(t, fmt.Sprintf("mount --bind %s %s && mount --make-shared %s && mkdir %s/private %s/slave", dir, dir, dir, dir, dir))
	t.Cleanup(func() { sh(t, "umount -R "+dir) })
	a := newApp(t, n, p, shell("ls /p /s; echo up; exec sleep 1000"), with(func(s *engine.AppSpec) {
		s.Mounts = []pod.Mount{{Path: "/p", HostPath: dir, Propagation: pod.PropagationPrivate}, {Path: "/s", HostPath: dir, Propagation: pod.PropagationSlave}}
	}))
	start(t, n, a)
	eventually(t, 10*time.Second, "it has looked", func() bool { return strings.HasSuffix(output(t, a), "up\n") })
	for _, name := range []string{"private", "slave"} {
		sh(t, fmt.Sprintf("mount -t tmpfs later %s/%s && echo later >%s/%s/file", dir, name, dir, name))
	}
	eventually(t, 10*time.Second, "one volume has what is mounted, and the other has not", func() bool {
		out, _ := execIn(t, n, a, pod.Process{Argv: []string{"sh", "-c", "cat /p/private/file /s/slave/file 2>/dev/null"}}, "")
		return out == "later\n"
	})
	if out, _ := execIn(t, n, a, pod.Process{Argv: []string{"sh", "-c", "cat /p/private/file 2>/dev/null || echo none"}}, ""); out != "none\n" {
		t.Errorf("a volume that is private has %q", out)
	}
	if err := n.RemoveApp(t.Context(), a.ID); err != nil {
		t.Error(err)
	}
}

// hostDisk: where the host has no more room apps are told, and none stands still for it.
func hostDisk(t *testing.T, n *node.Node, p *pod.Pod) {
	beside := newApp(t, n, p, shell("while [ ! -e /end/now ]; do sleep 0.1; done; echo still; exit 3"), endBy(t))
	start(t, n, beside)
	writes := newApp(t, n, p, shell("while [ ! -e /end/now ]; do sleep 0.1; done; dd if=/dev/zero of=/more bs=1M count=100 conv=fsync 2>&1 | grep -ci error; exit 4"), endBy(t))
	start(t, n, writes)
	empty := noRoom(t)
	endNow(t, writes)
	if s := wait(t, n, writes); s.Exit.Code != 4 || output(t, writes) == "0\n" || output(t, writes) == "" {
		t.Errorf("what wrote ended as %+v, with %q", s.Exit, output(t, writes))
	}
	endNow(t, beside)
	if s := wait(t, n, beside); s.Exit.Code != 3 || output(t, beside) != "still\n" {
		t.Errorf("the app beside it ended as %+v, with %q", s.Exit, output(t, beside))
	}
	if err := empty(); err != nil {
		t.Fatal(err)
	}
}

// machineClock: it follows the host's. Whoever stands for an app compares the two, and at once
// when it begins.
func machineClock(t *testing.T, n *node.Node, p *pod.Pod) {
	a := newApp(t, n, p, shell("date -s @1000000000 >/dev/null && echo set; exec sleep 1000"), with(func(s *engine.AppSpec) {
		s.Security.AddCaps, s.Security.Seccomp.Kind = []string{"SYS_TIME"}, pod.ProfileUnconfined
	}))
	start(t, n, a)
	says(t, a, "set")
	sh(t, "kill -9 $(systemctl show -P MainPID gantry-app-"+string(a.ID)+".service)")
	eventually(t, 20*time.Second, "the machine's clock is right", func() bool {
		out, _ := execIn(t, n, a, pod.Process{Argv: []string{"date", "+%s"}}, "")
		got, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
		return err == nil && time.Since(time.Unix(got, 0)).Abs() < patience(2*time.Second)
	})
	if err := n.RemoveApp(t.Context(), a.ID); err != nil {
		t.Error(err)
	}
}

// machineDisk: the disk that all apps of a machine write to has an end. The host gives no
// more than that, and who is there is not disturbed.
func machineDisk(t *testing.T, n *node.Node, p *pod.Pod) {
	beside := newApp(t, n, p, shell("while [ ! -e /end/now ]; do sleep 0.1; done; echo still; exit 3"), endBy(t))
	start(t, n, beside)
	full := newApp(t, n, p, shell("dd if=/dev/zero of=/big bs=1M count=400 2>&1 | grep -c 'No space left'; du -m /big | cut -f1; exec sleep 1000"))
	start(t, n, full)
	eventually(t, 60*time.Second, "it is full", func() bool { return strings.Count(output(t, full), "\n") == 2 })
	var ends, size int
	if _, err := fmt.Sscan(output(t, full), &ends, &size); err != nil || ends != 1 || size > kvmDisk>>20 || size < kvmDisk>>21 {
		t.Errorf("it says %q: %v", output(t, full), err)
	}
	got, err := strconv.Atoi(sh(t, "du -m /var/lib/gantry/pods/"+string(p.ID)+"/scratch.img | cut -f1"))
	if err != nil || got > kvmDisk>>20+1 {
		t.Errorf("the host gave %d MiB, %v", got, err)
	}
	eventually(t, 10*time.Second, "what it has written is counted", func() bool {
		of, err := n.AppStats(t.Context(), full.ID)
		return err == nil && of.RootfsBytes >= uint64(size-1)<<20
	})
	endNow(t, beside)
	if s := wait(t, n, beside); s.Exit.Code != 3 || output(t, beside) != "still\n" {
		t.Errorf("the app beside it ended as %+v, with %q", s.Exit, output(t, beside))
	}
	if err := n.RemoveApp(t.Context(), full.ID); err != nil {
		t.Error(err)
	}
	if got := printed(t, n, p, "head -c 20000000 /dev/zero >/new && echo room"); got != "room" {
		t.Errorf("after the big one was removed: %q", got)
	}
}
