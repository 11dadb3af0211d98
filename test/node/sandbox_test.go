//go:build e2e

package node

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// refusedPod wants a sandbox to be refused.
func (e engine) refusedPod(t *testing.T, what string, config *cri.PodSandboxConfig) {
	t.Helper()
	if err := os.MkdirAll(config.LogDirectory, 0o755); err != nil {
		t.Fatal(err)
	}
	got, err := e.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: config})
	if err == nil {
		t.Errorf("%s: was made", what)
		pod{e, got.PodSandboxId, config}.remove(t)
	}
}

func TestFieldsOfSandbox(t *testing.T) {
	guard(t)
	e := dial(t)
	config := e.podConfig(t, "sandbox")
	config.Hostname = "some-name"
	config.DnsConfig = &cri.DNSConfig{Servers: []string{"192.0.2.1", "2001:db8::1"}, Searches: []string{"a.example", "b.example"}, Options: []string{"ndots:5"}}
	config.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "81", "kernel.shm_rmid_forced": "1"}
	config.PortMappings = []*cri.PortMapping{
		{ContainerPort: 90, HostPort: 18090, HostIp: "127.0.0.1"},
		{ContainerPort: 91, HostPort: 18091, Protocol: cri.Protocol_UDP},
		{ContainerPort: 92, HostPort: 18092, Protocol: cri.Protocol_SCTP},
	}
	p := e.run(t, config)
	s := p.status(t)
	if s.Metadata.GetAttempt() != 0 || s.Metadata.GetUid() != config.Metadata.Uid || s.Metadata.GetNamespace() != "e2e" || s.CreatedAt == 0 {
		t.Errorf("the status is %v", s)
	}
	none := func(*cri.ContainerConfig) {}
	p.runCases(t, map[string]fieldCase{
		"hostname": {none, "hostname", "some-name"},
		"dns":      {none, "cat /etc/resolv.conf", "(?s)search a.example b.example\nnameserver 192.0.2.1\nnameserver 2001:db8::1\noptions ndots:5"},
		"sysctls":  {none, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced", "81\n1"},
		"shm":      {none, "df -k /dev/shm | tail -1 | grep -c 65536", "1"},
	})
	listen := p.runScript(t, "listen", "nc -l -p 90 -e echo tcp & exec sleep 1000006")
	answersByUDP(t, listen, "sleep 1000006", 91)
	for network, address := range map[string]string{"tcp": "127.0.0.1:18090", "udp": "127.0.0.1:18091"} {
		eventually(t, 10*time.Second, "the port of the host leads to the pod by "+network, func() bool { return says(network, address) == network+"\n" })
	}
	// No kernel of ours need have SCTP: that packets of it would be led to the pod is all that is looked at.
	if rules := sh(t, "{ nft list ruleset; iptables-save; } 2>/dev/null | grep -i sctp; true"); !strings.Contains(rules, "18092") {
		t.Errorf("the rules for SCTP are %q", rules)
	}
	listen.stop(t, 0)
	for what, change := range map[string]func(*cri.PodSandboxConfig){
		"a sysctl of the host": func(c *cri.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"kernel.panic": "5"} },
		"a sysctl of the network in the host's": func(c *cri.PodSandboxConfig) {
			onHost(c)
			c.Linux.Sysctls = map[string]string{"net.ipv4.ip_forward": "1"}
		},
		"a pod without a name": func(c *cri.PodSandboxConfig) { c.Metadata.Name = "" },
	} {
		if !ours() {
			continue
		}
		bad := e.podConfig(t, "bad")
		change(bad)
		e.refusedPod(t, what, bad)
	}
	if _, err := e.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: e.podConfig(t, "handler"), RuntimeHandler: "no-such-handler"}); err == nil {
		t.Error("a handler that is not there was taken")
	}
}

// answersByUDP answers in the network of a container, which has no program that could; it
// is found by the command that it runs.
func answersByUDP(t *testing.T, c container, command string, port int) {
	t.Helper()
	var pid string
	eventually(t, 10*time.Second, c.config.Metadata.Name+" runs", func() bool {
		pid = strings.TrimSpace(sh(t, "pgrep -x -f '"+command+"'; true"))
		return pid != ""
	})
	type result struct {
		net.PacketConn
		error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread() // for good: the thread is of another network now, and ends with this
		conn, err := listenIn("/proc/"+pid+"/ns/net", port)
		made <- result{conn, err}
	}()
	conn := <-made
	if conn.error != nil {
		t.Fatal(conn.error)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		buf := make([]byte, 64)
		for {
			_, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = conn.WriteTo([]byte("udp\n"), from)
		}
	}()
}

// listenIn takes the thread into a network and listens there.
func listenIn(network string, port int) (net.PacketConn, error) {
	f, err := os.Open(network)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, err
	}
	return net.ListenPacket("udp", fmt.Sprint(":", port))
}

// says sends a line to an address and returns what it answers first.
func says(network, address string) string {
	conn, err := net.DialTimeout(network, address, time.Second)
	if err != nil {
		return ""
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	_, _ = conn.Write([]byte("hello\n")) // who does not listen does not answer either
	buf := make([]byte, 8)
	n, _ := conn.Read(buf)
	return string(buf[:n])
}

func TestFieldsOfNamespaces(t *testing.T) {
	guard(t)
	e := dial(t)
	inode := func(name string) string {
		text, err := os.Readlink("/proc/self/ns/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	read := func(c container) map[string]string {
		out, _, _ := c.exec(t, "sh", "-c", "for n in net pid ipc uts mnt user cgroup; do echo $n $(readlink /proc/self/ns/$n); done")
		got := map[string]string{}
		for line := range strings.Lines(out) {
			name, ns, _ := strings.Cut(strings.TrimSpace(line), " ")
			got[name] = ns
		}
		return got
	}
	for name, c := range map[string]struct {
		options *cri.NamespaceOption
		host    []string // namespaces that are the host's
	}{
		"own":       {&cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}, []string{"user"}},
		"host-net":  {&cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_CONTAINER}, []string{"user", "net", "uts"}},
		"host-pid":  {&cri.NamespaceOption{Pid: cri.NamespaceMode_NODE}, []string{"user", "pid"}},
		"host-ipc":  {&cri.NamespaceOption{Ipc: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_CONTAINER}, []string{"user", "ipc"}},
		"all-hosts": {&cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_NODE, Ipc: cri.NamespaceMode_NODE}, []string{"user", "net", "uts", "pid", "ipc"}},
	} {
		config := e.podConfig(t, name)
		config.Linux.SecurityContext.NamespaceOptions = c.options
		if c.options.Network == cri.NamespaceMode_NODE {
			config.Hostname = ""
		}
		p := e.run(t, config)
		app := containerConfig("app", "while :; do sleep 0.1; done")
		app.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{Network: c.options.Network, Pid: c.options.Pid, Ipc: c.options.Ipc}
		got := read(p.create(t, app).start(t))
		host := " " + strings.Join(c.host, " ") + " "
		for _, ns := range []string{"net", "pid", "ipc", "uts", "mnt", "user", "cgroup"} {
			want := strings.Contains(host, " "+ns+" ")
			if (got[ns] == inode(ns)) != want {
				t.Errorf("%s: namespace %s is %s, that of the host %s", name, ns, got[ns], inode(ns))
			}
		}
	}
}

// TestUserNamespace: root inside is nobody outside, also in a volume that is mapped.
func TestUserNamespace(t *testing.T) {
	guard(t)
	e := dial(t)
	const base, length = 300_000, 65_536
	ids := []*cri.IDMapping{{HostId: base, ContainerId: 0, Length: length}}
	config := e.podConfig(t, "userns")
	config.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: ids, Gids: ids}
	p := e.run(t, config)
	dir, err := os.MkdirTemp("/var/tmp", "trial-userns-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	app := containerConfig("app", "cat /proc/self/uid_map | tr -s ' '; touch /vol/made; id -u; stat -c %u:%g /vol/made /etc/passwd; : userns-marker-of-the-app; while :; do sleep 0.1; done")
	app.Linux.SecurityContext.NamespaceOptions.UsernsOptions = config.Linux.SecurityContext.NamespaceOptions.UsernsOptions
	app.Mounts = []*cri.Mount{{HostPath: dir, ContainerPath: "/vol", UidMappings: ids, GidMappings: ids}}
	c := p.create(t, app).start(t)
	eventually(t, 10*time.Second, "all is said", func() bool { return len(c.logFile(t)) == 4 })
	if got, want := texts(c.logFile(t), "stdout"), fmt.Sprintf(" 0 %d %d\n0\n0:0\n0:0\n", base, length); got != want {
		t.Errorf("inside: %q, want %q", got, want)
	}
	if got := sh(t, "stat -c %u:%g "+dir+"/made"); got != "0:0" {
		t.Errorf("outside the file in a mapped volume belongs to %s", got)
	}
	if got := sh(t, "ps -o uid= -p "+sh(t, "pgrep -o -f userns-marker-of-the-[a]pp")); strings.TrimSpace(got) != fmt.Sprint(base) {
		t.Errorf("outside the process belongs to %s, want %d", got, base)
	}
	old := t.TempDir()
	sh(t, "mount -t ramfs trial "+old)
	t.Cleanup(func() { sh(t, "umount "+old) })
	p.refused(t, map[string]func(*cri.ContainerConfig){
		"own-a volume whose file system has no mapped mounts": func(c *cri.ContainerConfig) {
			c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = config.Linux.SecurityContext.NamespaceOptions.UsernsOptions
			c.Mounts = []*cri.Mount{{HostPath: old, ContainerPath: "/vol", UidMappings: ids, GidMappings: ids}}
		},
	})
	if ours() {
		bad := e.podConfig(t, "bad")
		bad.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_POD}
		e.refusedPod(t, "a user namespace without a mapping", bad)
	}
}

// TestPropagationToTheHost: what a privileged container mounts in a bidirectional volume
// the host sees.
func TestPropagationToTheHost(t *testing.T) {
	guard(t)
	e := dial(t)
	config := onHost(e.podConfig(t, "bidirectional"))
	config.Linux.SecurityContext.Privileged = true
	p := e.run(t, config)
	dir, err := os.MkdirTemp("/var/tmp", "trial-shared-")
	if err != nil {
		t.Fatal(err)
	}
	sh(t, fmt.Sprintf("mount --bind %[1]s %[1]s && mount --make-shared %[1]s", dir))
	t.Cleanup(func() { sh(t, fmt.Sprintf("umount -R %[1]s && rmdir %[1]s/sub %[1]s", dir)) })
	app := containerConfig("app", "mkdir /vol/sub && mount -t tmpfs inside /vol/sub && touch /vol/sub/seen && echo done; while :; do sleep 0.1; done")
	app.Linux.SecurityContext.Privileged = true
	app.Mounts = []*cri.Mount{{HostPath: dir, ContainerPath: "/vol", Propagation: cri.MountPropagation_PROPAGATION_BIDIRECTIONAL}}
	c := p.create(t, app).start(t)
	eventually(t, 10*time.Second, "it is mounted", func() bool { return len(c.logFile(t)) > 0 })
	if !exists(dir + "/sub/seen") {
		t.Errorf("the host sees nothing of it; the container said %q", texts(c.logFile(t), "stderr"))
	}
}
