package node

import (
	"context"
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
	"virtio_pci", "virtio_blk", "virtio_net", "virtiofs", "vmw_vsock_virtio_transport", "overlay", "ext4",
}

// machines is the isolator of virtual machines, which boot the kernel that runs here.
func (o Options) machines(selinux bool) (*kvm.KVM, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, fmt.Errorf("find the kernel: %w", err)
	}
	release := unix.ByteSliceToString(uts.Release[:])
	boot := machine.Boot{From: "/boot/vmlinuz-" + release, Guest: Guest, Modules: "/lib/modules/" + release, Load: modules[:]}
	boot.Kernel = filepath.Join(o.Root, "boot", "kernel-"+keyOf([]string{release}, boot.From))
	boot.Initramfs = filepath.Join(o.Root, "boot", "initramfs-"+keyOf(append(boot.Load, boot.Modules), boot.Guest, filepath.Join(boot.Modules, "modules.dep")))
	m := o.Machines
	needs := machine.Needs{
		Arch: runtime.GOARCH, Emulator: "/usr/bin/qemu-system-x86_64", FileServer: "/usr/libexec/virtiofsd", Boot: boot,
		Disk: m.Disk > 0, Emulate: m.Emulate,
	}
	if !m.Emulate {
		needs.Firmware = "/usr/share/qemu/qboot.rom"
	}
	furnish := func(ctx context.Context) error {
		said, err := boot.Furnish(ctx)
		if said != "" {
			o.Log.Warn("what machines boot was made", "said", said)
		}
		return err
	}
	return kvm.New(kvm.Config{
		Init: Init, Guest: Guest, StdioSocket: stdio.Socket, Emulator: needs.Emulator, FileServer: needs.FileServer, Firmware: needs.Firmware,
		Boot: boot, Emulate: m.Emulate, HugePages: machine.HasHugePages(), Memory: m.Memory, Overhead: m.Overhead, CPUs: m.CPUs, Disk: m.Disk, BootTime: m.BootSeconds,
		SELinux: selinux, Lacks: needs.Check, Furnish: furnish,
	})
}

// keyOf names a file by what it is made of: other words, or other files, make another one.
func keyOf(words []string, files ...string) string {
	h := sha256.New()
	fmt.Fprintln(h, words)
	for _, path := range files {
		if info, err := os.Stat(path); err == nil { // else there is nothing to make one of
			fmt.Fprintln(h, path, info.Size(), info.ModTime().UnixNano())
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
}
