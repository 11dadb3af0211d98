package machine

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// whole is a node that has all.
func whole(t *testing.T) Needs {
	t.Helper()
	dir := t.TempDir()
	put := func(name string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, name := range []string{"dev/kvm", "dev/vhost-vsock", "dev/net/tun", "modules/modules.dep"} {
		put(name, 0o644)
	}
	return Needs{
		Arch: "amd64", Emulator: put("qemu", 0o755), FileServer: put("virtiofsd", 0o755), Firmware: put("qboot.rom", 0o644),
		Boot: Boot{From: put("vmlinuz", 0o644), Guest: put("guest", 0o755), Modules: filepath.Join(dir, "modules")}, Dev: filepath.Join(dir, "dev"),
	}
}

func TestNeeds(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(t *testing.T, n *Needs)
		want   []string
	}{
		"all there":     {func(*testing.T, *Needs) {}, nil},
		"no kvm":        {func(t *testing.T, n *Needs) { gone(t, n.Dev+"/kvm") }, []string{"/dev/kvm: is not there", "modprobe kvm_intel or kvm_amd", "nested", "kvm.emulate"}},
		"emulated":      {func(t *testing.T, n *Needs) { gone(t, n.Dev+"/kvm"); n.Emulate = true }, nil},
		"no vsock":      {func(t *testing.T, n *Needs) { gone(t, n.Dev+"/vhost-vsock") }, []string{"modprobe vhost_vsock"}},
		"no tun":        {func(t *testing.T, n *Needs) { gone(t, n.Dev+"/net/tun") }, []string{"/net/tun: is not there", "modprobe tun"}},
		"no qemu":       {func(t *testing.T, n *Needs) { gone(t, n.Emulator) }, []string{"/qemu: is not there (install qemu-system-x86)"}},
		"no firmware":   {func(t *testing.T, n *Needs) { gone(t, n.Firmware) }, []string{"/qboot.rom: is not there (install qemu-system-data, of qemu 5.2 or later)"}},
		"any firmware":  {func(_ *testing.T, n *Needs) { n.Firmware = "" }, nil},
		"no server":     {func(t *testing.T, n *Needs) { gone(t, n.FileServer) }, []string{"install virtiofsd"}},
		"no program":    {func(_ *testing.T, n *Needs) { n.FileServer = n.Boot.From }, []string{"vmlinuz: is no program"}},
		"no kernel":     {func(t *testing.T, n *Needs) { gone(t, n.Boot.From) }, []string{"vmlinuz: is not there (install the kernel"}},
		"no modules":    {func(t *testing.T, n *Needs) { gone(t, n.Boot.Modules+"/modules.dep") }, []string{"/modules: is not there (install the modules"}},
		"several":       {func(t *testing.T, n *Needs) { gone(t, n.Boot.From); gone(t, n.Emulator) }, []string{"this node lacks ", "; ", "vmlinuz", "qemu-system-x86"}},
		"another arch":  {func(_ *testing.T, n *Needs) { n.Arch = "riscv64" }, []string{"this node is of riscv64: machines are made on amd64 only"}},
		"no permission": {func(t *testing.T, n *Needs) { locked(t, n.Dev+"/vhost-vsock") }, []string{"vhost-vsock: permission denied"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := whole(t)
			c.change(t, &n)
			err := n.Check()
			if c.want == nil {
				if err != nil {
					t.Error(err)
				}
				return
			}
			for _, want := range c.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("got %v, want %q", err, want)
				}
			}
		})
	}
}

func gone(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func locked(t *testing.T, path string) {
	t.Helper()
	if os.Geteuid() == 0 {
		t.Skip("root may do all")
	}
	if err := os.Chmod(path, 0); err != nil {
		t.Fatal(err)
	}
}

// TestNeedsOfDisk: without the program that makes one there is none.
func TestNeedsOfDisk(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	n := whole(t)
	n.Disk = true
	err := n.Check()
	if runnable("/usr/sbin/"+mkfs) == nil {
		if err != nil {
			t.Errorf("it is where systemd looks: %v", err)
		}
		return
	}
	if err == nil || !strings.Contains(err.Error(), "install e2fsprogs, or set kvm.disk to 0") {
		t.Error(err)
	}
}
