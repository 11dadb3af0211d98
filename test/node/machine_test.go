//go:build e2e

package node

import (
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"gantry/test/machine"
)

// TestMachine checks what Gantry takes for granted of a node.
func TestMachine(t *testing.T) {
	guard(t)
	for what, command := range map[string]string{
		"cgroup v2":             `test "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs`,
		"erofs":                 `modprobe erofs && grep -qw erofs /proc/filesystems`,
		"overlay":               `modprobe overlay && grep -qw overlay /proc/filesystems`,
		"apparmor":              `grep -q Y /sys/module/apparmor/parameters/enabled`,
		"a kvm that opens":      `modprobe kvm_amd || modprobe kvm_intel; test -w /dev/kvm`,
		"CNI plugins":           `test -x /opt/cni/bin/bridge -a -x /opt/cni/bin/host-local -a -x /opt/cni/bin/portmap`,
		"a CNI network":         `test -s /etc/cni/net.d/10-trial.conflist`,
		"a default route":       `ip -4 route show default | grep -q via`,
		"no IPv6 on the uplink": `! ip -6 addr show dev eth0 | grep -q inet6`,
		"IPv6 for pods":         `test "$(cat /proc/sys/net/ipv6/conf/all/disable_ipv6)" = 0`,
		"own name":              `getent hosts "$(hostname)"`,
		"no failed unit":        `test -z "$(systemctl --failed --no-legend)"`,
		"a real filesystem":     `test "$(stat -fc %T /var/lib)" = ext2/ext3`,
	} {
		t.Run(what, func(t *testing.T) { sh(t, command) })
	}
}

// TestRegistry checks that images can be had at all.
func TestRegistry(t *testing.T) {
	guard(t)
	resp, err := http.Get("http://127.0.0.1:5000/v2/library/busybox/manifests/latest")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("the registry answers %s: %s", resp.Status, body)
	}
}

// TestGuardSees leaves one trace of each kind and checks that none is missed:
// a guard that sees nothing would make every test pass.
func TestGuardSees(t *testing.T) {
	guard(t)
	before := machine.Observe()
	undo := func(command string) { t.Cleanup(func() { sh(t, command) }) }

	dir := "/run/gantry/pods/trial-guard"
	madePods := !exists("/run/gantry/pods")
	sh(t, "mkdir -p "+dir)
	undo("rmdir " + dir)
	if madePods {
		undo("rmdir /run/gantry/pods; rmdir /run/gantry 2>/dev/null || true")
	}
	sh(t, "mount -t tmpfs trial "+dir)
	undo("umount " + dir)
	sh(t, "ip netns add trial-guard")
	undo("ip netns del trial-guard")
	sh(t, "ip link add trialguard type dummy")
	undo("ip link del trialguard")
	sh(t, "systemd-run -q --unit=gantry-app-trialguard sleep 1000")
	undo("systemctl stop gantry-app-trialguard")
	sh(t, "mkdir -p /var/lib/cni/networks/trial && touch /var/lib/cni/networks/trial/10.88.255.254")
	undo("rm /var/lib/cni/networks/trial/10.88.255.254")
	sh(t, "iptables -t nat -N CNI-0123456789abcdef01234567")
	undo("iptables -t nat -X CNI-0123456789abcdef01234567")
	program := t.TempDir() + "/gantry-left"
	sh(t, "cp /usr/bin/sleep "+program)
	cmd := exec.Command(program, "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // killed, so always an error
	})

	var left machine.Traces
	eventually(t, time.Second, "all traces seen", func() bool {
		left = machine.Observe().Since(before)
		return len(left) >= 8
	})
	for _, kind := range []string{"mount", "netns", "unit", "cgroup", "CNI lease", "network link", "firewall chain", "process", "directory"} {
		if len(left[kind]) == 0 {
			t.Errorf("a left %s goes unseen", kind)
		}
	}
	for kind, items := range left {
		for _, item := range items {
			if strings.Contains(item, "cannot be observed") {
				t.Errorf("%s: %s", kind, item)
			}
		}
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
