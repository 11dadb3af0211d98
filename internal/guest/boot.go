package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const cgroupRoot = "/sys/fs/cgroup"

// place is a file system that the machine needs from its start.
type place struct {
	kind, target string
	flags        uintptr
	data         string
}

// boot does what the first process of a machine has to do before somebody may ask it for
// anything. It runs in an initramfs, and leaves it. It returns the key of who may.
func boot() (key []byte, err error) {
	if err := leaveInitramfs(); err != nil {
		return nil, fmt.Errorf("leave the initramfs: %w", err)
	}
	// Nobody is disturbed by its haste yet; each step below waits for the kernel's others.
	if err := expedite(true); err != nil {
		return nil, err
	}
	if err := loadModules(false); err != nil {
		return nil, fmt.Errorf("load modules: %w", err)
	}
	if err := mountAll([]place{
		{"cgroup2", cgroupRoot, unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "memory_recursiveprot"},
		{"virtiofs", Share, unix.MS_NODEV, ""}, // programs in volumes may be setuid, as elsewhere
	}); err != nil {
		return nil, err
	}
	m, err := readMachine()
	if err != nil {
		return nil, fmt.Errorf("read what the machine is to be: %w", err)
	}
	if err := seed(m.Seed); err != nil {
		return nil, fmt.Errorf("seed the random numbers: %w", err)
	}
	// Nobody is to read later what this machine's keys come from.
	if err := os.Remove(filepath.Join(Share, MachineFile)); err != nil {
		return nil, err
	}
	if err := mountScratch(); err != nil {
		return nil, fmt.Errorf("mount the writable disk: %w", err)
	}
	if err := m.apply(); err != nil {
		return nil, err
	}
	if err := (groups{cgroupRoot}).prepare(); err != nil {
		return nil, fmt.Errorf("prepare cgroups: %w", err)
	}
	return m.Key, nil
}

// open lets the host reach the machine, which is ready for it.
func open() error {
	if err := loadModules(true); err != nil {
		return fmt.Errorf("load modules: %w", err)
	}
	// An app that gets hold of this program must not be able to change it, nor take away what
	// others stand on: neither here nor where the kernel has mounted the same.
	for _, flags := range []uintptr{0, unix.MS_BIND | unix.MS_NOSUID | unix.MS_NODEV} {
		if err := unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_RDONLY|flags, ""); err != nil {
			return fmt.Errorf("make the root read-only: %w", err)
		}
	}
	return nil
}

// expedite, until the machine has its network, has the kernel wait no longer than it must for readers of what is to change
// (RCU), as it does itself until it starts the first process.
func expedite(on bool) error {
	value := "0"
	if on {
		value = "1"
	}
	if err := writeFile("/sys/kernel/rcu_expedited", value); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("expedite the boot: %w", err)
	}
	return nil
}

// mountAll makes and mounts places, in order.
func mountAll(places []place) error {
	for _, p := range places {
		if err := os.MkdirAll(p.target, 0o755); err != nil {
			return err
		}
		source := p.kind
		if p.kind == "virtiofs" {
			source = Tag
		}
		if err := unix.Mount(source, p.target, p.kind, p.flags, p.data); err != nil {
			return fmt.Errorf("mount %s on %s: %w", p.kind, p.target, err)
		}
	}
	return nil
}

// newRoot is where the initramfs is mounted once more: a mount namespace cannot leave it
// where the kernel has put it, as it can leave any other root.
const newRoot = "/root"

func leaveInitramfs() error {
	if err := os.MkdirAll(newRoot, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("/", newRoot, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount it on %s: %w", newRoot, err)
	}
	if err := unix.Chdir(newRoot); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return err
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	if err := mountAll([]place{
		{"proc", "/proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"sysfs", "/sys", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"devtmpfs", "/dev", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=755"},
		{"tmpfs", "/run", unix.MS_NOSUID | unix.MS_NODEV, "mode=755"},
	}); err != nil {
		return err
	}
	return os.MkdirAll(consoles, 0o700)
}

// loadModules loads what the initramfs lists: the way to the host, or all else. The host's
// question waits for a machine that cannot be reached yet. One that is asked before it
// listens says no, and is asked again later.
func loadModules(wayToHost bool) error {
	list, err := os.ReadFile("/modules")
	if err != nil {
		return err
	}
	for path := range strings.FieldsSeq(string(list)) {
		if strings.Contains(filepath.Base(path), "vsock_virtio_transport") != wayToHost {
			continue
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	if wayToHost { // the last ones
		return os.RemoveAll("/lib/modules")
	}
	return nil
}

func readMachine() (m Machine, err error) {
	data, err := os.ReadFile(filepath.Join(Share, MachineFile))
	if err == nil {
		err = json.Unmarshal(data, &m)
	}
	return m, err
}

// mountScratch finds the disk by its serial number. Without one apps write to memory.
func mountScratch() error {
	if err := os.MkdirAll(Scratch, 0o711); err != nil {
		return err
	}
	serials, err := filepath.Glob("/sys/block/vd*/serial")
	if err != nil {
		return err
	}
	for _, file := range serials {
		serial, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if strings.TrimSpace(string(serial)) == ScratchSerial {
			disk := "/dev/" + filepath.Base(filepath.Dir(file))
			// To write all inode tables would take the host's disk for nothing.
			return unix.Mount(disk, Scratch, "ext4", unix.MS_NODEV, "noinit_itable")
		}
	}
	return unix.Mount("tmpfs", Scratch, "tmpfs", unix.MS_NODEV, "mode=711")
}

// apply makes the machine what it is to be.
func (m Machine) apply() error {
	if m.Hostname != "" {
		if err := unix.Sethostname([]byte(m.Hostname)); err != nil {
			return fmt.Errorf("set hostname: %w", err)
		}
	}
	size := "mode=1777"
	if m.ShmBytes > 0 {
		size += fmt.Sprintf(",size=%d", m.ShmBytes)
	}
	if err := mountAll([]place{{"tmpfs", Shm, unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, size}}); err != nil {
		return err
	}
	return nil
}
