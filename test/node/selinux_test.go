//go:build e2e

package node

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// showLabel prints the label of who runs it.
const showLabel = "tr -d '\\000' </proc/self/attr/current; echo"

func needsSELinux(t *testing.T) {
	t.Helper()
	if !exists("/sys/fs/selinux/enforce") {
		notRun(t, "SELinux is not on: boot the VM with it (trial up --selinux)")
	}
}

// processLabel is what a container says of itself.
func (c container) processLabel(t *testing.T) string {
	t.Helper()
	out, _, code := c.exec(t, "sh", "-c", showLabel)
	if code != 0 {
		t.Fatalf("exec: %d", code)
	}
	return strings.TrimSpace(out)
}

// labelOf is the label of a file of the host.
func labelOf(t *testing.T, path string) string {
	t.Helper()
	buf := make([]byte, 256)
	n, err := unix.Lgetxattr(path, "security.selinux", buf)
	if err != nil {
		t.Fatalf("label of %s: %v", path, err)
	}
	return strings.TrimRight(string(buf[:n]), "\x00")
}

// TestSELinuxLabels: every pod has a level of its own, which its processes and files have
// and those of another pod have not.
func TestSELinuxLabels(t *testing.T) {
	guard(t)
	needsSELinux(t)
	e := dial(t)
	p := e.run(t, e.podConfig(t, "one"))
	config := containerConfig("app", showLabel+"; sleep 1000000")
	config.Mounts = []*cri.Mount{{Image: config.Image, ContainerPath: "/image", Readonly: true}}
	c := p.create(t, config).start(t)
	eventually(t, 20*time.Second, "it tells its label", func() bool { return len(c.logFile(t)) > 0 })
	label := strings.TrimSpace(texts(c.logFile(t), "stdout"))
	parts := regexp.MustCompile(`^system_u:system_r:container_t:(s0:c\d+,c\d+)$`).FindStringSubmatch(label)
	if parts == nil {
		t.Fatalf("the label is %q", label)
	}
	if got := c.processLabel(t); got != label {
		t.Errorf("an exec has %q", got)
	}
	level := parts[1]
	root := "/proc/" + e.pids(t, []container{c})[0] + "/root"
	for path, want := range map[string]string{
		"/bin/sh": "container_file_t:" + level, "/": "container_file_t:" + level, "/dev/shm": "container_file_t:" + level,
		"/etc/hostname": "container_file_t:" + level, "/etc/resolv.conf": "container_file_t:" + level,
		"/dev": "container_file_t:" + level, "/image/bin": "container_ro_file_t:s0",
	} {
		if got := labelOf(t, root+path); got != "system_u:object_r:"+want {
			t.Errorf("%s has %s, want %s", path, got, want)
		}
	}
	other := p.runScript(t, "other", "sleep 1000000")
	if got := other.processLabel(t); got != label {
		t.Errorf("another container of the pod has %q, and not %q", got, label)
	}
	second := e.run(t, e.podConfig(t, "two")).runScript(t, "app", "sleep 1000000")
	if got := second.processLabel(t); got == label || !strings.HasPrefix(got, "system_u:system_r:container_t:s0:c") {
		t.Errorf("another pod has %q, the first %q", got, label)
	}
}

// TestSELinuxOptions: what a pod or a container says of its label holds, the container's
// before the pod's, and what the policy does not know is refused.
func TestSELinuxOptions(t *testing.T) {
	guard(t)
	needsSELinux(t)
	e := dial(t)
	podConfig := e.podConfig(t, "options")
	podConfig.Linux.SecurityContext.SelinuxOptions = &cri.SELinuxOption{Level: "s0:c3,c4"}
	p := e.run(t, podConfig)
	with := func(o *cri.SELinuxOption) func(*cri.ContainerConfig) {
		return func(c *cri.ContainerConfig) { security(c).SelinuxOptions = o }
	}
	p.runCases(t, map[string]fieldCase{
		"pods":     {func(*cri.ContainerConfig) {}, showLabel, "^system_u:system_r:container_t:s0:c3,c4\n$"},
		"own":      {with(&cri.SELinuxOption{Type: "spc_t", Level: "s0:c5"}), showLabel, "^system_u:system_r:spc_t:s0:c5\n$"},
		"own-user": {with(&cri.SELinuxOption{User: "unconfined_u", Role: "system_r"}), showLabel, "^unconfined_u:system_r:container_t:s0:c3,c4\n$"},
	})
	p.refused(t, map[string]func(*cri.ContainerConfig){
		"a type that is not there": with(&cri.SELinuxOption{Type: "no_such_t"}),
		"two parts in one":         with(&cri.SELinuxOption{Type: "container_t:s0"}),
		"a level of words":         with(&cri.SELinuxOption{Level: "top secret"}),
		"a label for the host's files": func(c *cri.ContainerConfig) {
			c.Mounts = []*cri.Mount{{HostPath: "/etc", ContainerPath: "/host", SelinuxRelabel: true}}
		},
	})
	privileged := e.podConfig(t, "privileged")
	privileged.Linux.SecurityContext.Privileged = true
	config := containerConfig("app", "sleep 1000000")
	security(config).Privileged = true
	if got := e.run(t, privileged).create(t, config).start(t).processLabel(t); !strings.HasPrefix(got, "system_u:system_r:spc_t:s0:c") {
		t.Errorf("a privileged container has %q", got)
	}
}

// TestSELinuxRelabel: a volume's files get the label of the container where that is
// asked for, and nothing outside of it does.
func TestSELinuxRelabel(t *testing.T) {
	guard(t)
	needsSELinux(t)
	e := dial(t)
	const of = "system_u:object_r:container_file_t:s0:c7,c8"
	dir := t.TempDir()
	outside := filepath.Join(dir, "outside")
	volume, plain := filepath.Join(dir, "volume"), filepath.Join(dir, "plain")
	for _, d := range []string{filepath.Join(volume, "a/b"), plain} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{outside, filepath.Join(volume, "a/b/file"), filepath.Join(plain, "file")} {
		writeFile(t, f, "x")
		if err := unix.Setxattr(f, "security.selinux", []byte("system_u:object_r:etc_t:s0"), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(outside, filepath.Join(volume, "a/link")); err != nil {
		t.Fatal(err)
	}
	p := e.run(t, e.podConfig(t, "relabel"))
	config := containerConfig("app", "echo y >/volume/new; sleep 1000000")
	security(config).SelinuxOptions = &cri.SELinuxOption{Level: "s0:c7,c8"}
	config.Mounts = []*cri.Mount{
		{HostPath: volume, ContainerPath: "/volume", SelinuxRelabel: true},
		{HostPath: plain, ContainerPath: "/plain"},
	}
	p.create(t, config).start(t)
	for _, name := range []string{"", "a", "a/b", "a/b/file", "a/link"} {
		if got := labelOf(t, filepath.Join(volume, name)); got != of {
			t.Errorf("%s of the volume has %s", name, got)
		}
	}
	for _, path := range []string{outside, filepath.Join(plain, "file")} {
		if got := labelOf(t, path); got != "system_u:object_r:etc_t:s0" {
			t.Errorf("%s has %s now", path, got)
		}
	}
}

// TestSELinuxWithUserNamespace: both together.
func TestSELinuxWithUserNamespace(t *testing.T) {
	guard(t)
	needsSELinux(t)
	e := dial(t)
	podConfig := e.podConfig(t, "userns")
	ids := []*cri.IDMapping{{HostId: 1 << 20, ContainerId: 0, Length: 65536}}
	podConfig.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: ids, Gids: ids}
	p := e.run(t, podConfig)
	config := containerConfig("app", "sleep 1000000")
	security(config).NamespaceOptions = podConfig.Linux.SecurityContext.NamespaceOptions
	c := p.create(t, config).start(t)
	if got := c.processLabel(t); !strings.HasPrefix(got, "system_u:system_r:container_t:s0:c") {
		t.Errorf("the label is %q", got)
	}
	root := fmt.Sprintf("/proc/%s/root", e.pids(t, []container{c})[0])
	if got := labelOf(t, root+"/bin/sh"); !strings.HasPrefix(got, "system_u:object_r:container_file_t:s0:c") {
		t.Errorf("a file has %q", got)
	}
}

// TestSELinuxFly: what is isolated from nothing has the label of what starts it, and a volume
// keeps its own. A label that is asked for is refused.
func TestSELinuxFly(t *testing.T) {
	guard(t)
	needsSELinux(t)
	e := dial(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	writeFile(t, file, "x")
	const of = "system_u:object_r:etc_t:s0"
	for _, path := range []string{dir, file} {
		if err := unix.Setxattr(path, "security.selinux", []byte(of), 0); err != nil {
			t.Fatal(err)
		}
	}
	p := e.run(t, e.flyConfig(t, "fly"))
	config := containerConfig("app", showLabel+"; echo y >>/volume/file; sleep 1000000")
	config.Mounts = []*cri.Mount{{HostPath: dir, ContainerPath: "/volume", SelinuxRelabel: true}}
	c := p.create(t, config).start(t)
	eventually(t, 20*time.Second, "it tells its label", func() bool { return len(c.logFile(t)) > 0 })
	label := strings.TrimSpace(texts(c.logFile(t), "stdout"))
	if !strings.HasPrefix(label, "system_u:system_r:") || strings.Contains(label, "container_t") {
		t.Errorf("the label is %q", label)
	}
	if got := c.processLabel(t); !strings.HasPrefix(got, "system_u:system_r:") || strings.Contains(got, "container_t") {
		t.Errorf("an exec has %q", got)
	}
	for _, path := range []string{dir, file} {
		if got := labelOf(t, path); got != of {
			t.Errorf("%s has %s now", path, got)
		}
	}
	p.refused(t, map[string]func(*cri.ContainerConfig){
		"a label": func(c *cri.ContainerConfig) { security(c).SelinuxOptions = &cri.SELinuxOption{Level: "s0:c5"} },
	})
}
