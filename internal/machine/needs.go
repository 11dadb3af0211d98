package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Needs are what a node must have to make machines.
type Needs struct {
	// Arch is the node's architecture, in Go's words.
	Arch                 string
	Emulator, FileServer string
	// Firmware is the emulator's, "" for its own choice.
	Firmware string
	Boot     Boot
	// Disk tells that a machine gets one, and Emulate that it needs no /dev/kvm.
	Disk, Emulate bool
	// Dev is where devices are: "" is /dev.
	Dev string
}

// Check tells all that is missing, and how to get it. To open a device has the kernel load
// its module, where udev or systemd has made the file already.
func (n Needs) Check() error {
	if n.Arch != "amd64" {
		return fmt.Errorf("this node is of %s: machines are made on amd64 only", n.Arch)
	}
	dev := n.Dev
	if dev == "" {
		dev = "/dev"
	}
	var missing []string
	need := func(err error, what, remedy string) {
		if err != nil {
			missing = append(missing, fmt.Sprintf("%s: %s (%s)", what, short(err), remedy))
		}
	}
	if !n.Emulate {
		need(openDevice(dev+"/kvm"), dev+"/kvm",
			"modprobe kvm_intel or kvm_amd; a host that is a virtual machine itself needs nested virtualisation; kvm.emulate does without, slowly")
	}
	need(openDevice(dev+"/vhost-vsock"), dev+"/vhost-vsock", "modprobe vhost_vsock")
	need(openDevice(dev+"/net/tun"), dev+"/net/tun", "modprobe tun")
	need(runnable(n.Emulator), n.Emulator, "install qemu-system-x86")
	if n.Firmware != "" {
		need(there(n.Firmware), n.Firmware, "install qemu-system-data, of qemu 5.2 or later")
	}
	need(runnable(n.FileServer), n.FileServer, "install virtiofsd")
	need(runnable(n.Boot.Guest), n.Boot.Guest, "it comes with Gantry")
	need(there(n.Boot.From), n.Boot.From, "install the kernel that runs, or boot one that is installed")
	need(there(filepath.Join(n.Boot.Modules, "modules.dep")), n.Boot.Modules, "install the modules of the kernel that runs, or boot one that has its own")
	if n.Disk {
		_, err := exec.LookPath(mkfs)
		if err != nil && runnable("/usr/sbin/"+mkfs) == nil {
			err = nil // which is in systemd's path
		}
		need(err, mkfs, "install e2fsprogs, or set kvm.disk to 0")
	}
	if len(missing) == 0 {
		return nil
	}
	return errors.New("this node lacks " + strings.Join(missing, "; "))
}

// HasHugePages tells whether the kernel can have memory file systems in huge pages at all.
func HasHugePages() bool { return there("/sys/kernel/mm/transparent_hugepage/shmem_enabled") == nil }

const mkfs = "mkfs.ext4"

func openDevice(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

func there(path string) error {
	_, err := os.Stat(path)
	return err
}

func runnable(path string) error {
	info, err := os.Stat(path)
	if err == nil && (!info.Mode().IsRegular() || info.Mode()&0o111 == 0) {
		err = errors.New("is no program")
	}
	return err
}

// short leaves out what stands beside it anyway.
func short(err error) error {
	var path *fs.PathError
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, exec.ErrNotFound):
		return errors.New("is not there")
	case errors.As(err, &path):
		return path.Err
	}
	return err
}
