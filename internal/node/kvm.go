package node

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"

	"gantry/internal/isolator/kvm"
	"gantry/internal/machine"
	"gantry/internal/stdio"
)

// Guest is the program that runs in virtual machines, and stands for what runs there.
const Guest = "/usr/libexec/gantry/gantry-guest"

// Machines are what an operator may say of virtual machines. Without Memory there are none.
type Machines struct {
	Emulate                bool
	Memory, Overhead, Disk int64
	CPUs, BootSeconds      int
}

// modules are what a machine needs of the kernel's: the ways to its host, and the file
// systems of its apps.
var modules = [...]string{
	"virtio_pci", "virtio_blk", "virtio_net", "virtio_rng", "virtiofs", "vmw_vsock_virtio_transport", "overlay", "ext4",
}

// machines is the isolator of virtual machines, which boot the kernel that runs here.
func (o Options) machines(selinux bool) (*kvm.KVM, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, fmt.Errorf("find the kernel: %w", err)
	}
	release := unix.ByteSliceToString(uts.Release[:])
	boot := machine.Boot{Guest: Guest, Modules: "/lib/modules/" + release, Load: modules[:]}
	boot.Initramfs = filepath.Join(o.Root, "boot", bootKey(boot))
	m := o.Machines
	needs := machine.Needs{
		Arch: runtime.GOARCH, Emulator: "/usr/bin/qemu-system-x86_64", FileServer: "/usr/libexec/virtiofsd", Kernel: "/boot/vmlinuz-" + release, Boot: boot,
		Disk: m.Disk > 0, Emulate: m.Emulate,
	}
	return kvm.New(kvm.Config{
		Init: Init, Guest: Guest, StdioSocket: stdio.Socket, Emulator: needs.Emulator, FileServer: needs.FileServer,
		Kernel: needs.Kernel, Boot: boot, Emulate: m.Emulate, Memory: m.Memory, Overhead: m.Overhead, CPUs: m.CPUs, Disk: m.Disk, BootTime: m.BootSeconds,
		SELinux: selinux, Lacks: needs.Check,
	})
}

// bootKey names an initramfs by what it is made of: another program, or other modules, make
// another one.
func bootKey(b machine.Boot) string {
	h := sha256.New()
	fmt.Fprintln(h, b.Modules, b.Load)
	for _, path := range []string{b.Guest, filepath.Join(b.Modules, "modules.dep")} {
		if info, err := os.Stat(path); err == nil { // else there is nothing to make one of
			fmt.Fprintln(h, path, info.Size(), info.ModTime().UnixNano())
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
}
