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

// Boot does what the first process of a machine has to do before there is an app. It
// runs in an initramfs, and leaves it.
func Boot() error {
	if err := leaveInitramfs(); err != nil {
		return fmt.Errorf("leave the initramfs: %w", err)
	}
	if err := loadModules(); err != nil {
		return fmt.Errorf("load modules: %w", err)
	}
	if err := mountAll([]place{
		{"cgroup2", cgroupRoot, unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "memory_recursiveprot"},
		{"virtiofs", Share, unix.MS_NOSUID | unix.MS_NODEV, ""},
	}); err != nil {
		return err
	}
	m, err := readMachine()
	if err != nil {
		return fmt.Errorf("read what the machine is to be: %w", err)
	}
	if err := mountScratch(); err != nil {
		return fmt.Errorf("mount the writable disk: %w", err)
	}
	if err := m.apply(); err != nil {
		return err
	}
	if err := (groups{cgroupRoot}).prepare(); err != nil {
		return fmt.Errorf("prepare cgroups: %w", err)
	}
	// An app that gets hold of this program must not be able to change it.
	if err := unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("make the root read-only: %w", err)
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

// newRoot is where the root is made that the machine has afterwards: a mount namespace
// cannot leave an initramfs as it can leave any other root.
const newRoot = "/root"

func leaveInitramfs() error {
	if err := mountAll([]place{{"tmpfs", newRoot, unix.MS_NOSUID | unix.MS_NODEV, "mode=755,size=64m"}}); err != nil {
		return err
	}
	if err := copyAll("/", newRoot, "init", "modules", "lib"); err != nil {
		return err
	}
	if err := unix.Chdir(newRoot); err != nil {
		return err
	}
	if err := mountAll([]place{
		{"proc", newRoot + "/proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"sysfs", newRoot + "/sys", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"devtmpfs", newRoot + "/dev", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=755"},
		{"tmpfs", newRoot + "/run", unix.MS_NOSUID | unix.MS_NODEV, "mode=755"},
	}); err != nil {
		return err
	}
	for _, name := range []string{"init", "modules", "lib"} {
		if err := os.RemoveAll("/" + name); err != nil { // memory that nobody needs any more
			return err
		}
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
	return os.MkdirAll(consoles, 0o700)
}

// copyAll copies names, and what is below them.
func copyAll(from, to string, names ...string) error {
	for _, name := range names {
		source, target := filepath.Join(from, name), filepath.Join(to, name)
		info, err := os.Stat(source)
		if err != nil {
			return err
		}
		if info.IsDir() {
			entries, err := os.ReadDir(source)
			if err != nil {
				return err
			}
			if err := os.MkdirAll(target, 0o755); err != nil {
				return err
			}
			for _, e := range entries {
				if err := copyAll(source, target, e.Name()); err != nil {
					return err
				}
			}
			continue
		}
		data, err := os.ReadFile(source)
		if err != nil {
			return err
		}
		if err := os.WriteFile(target, data, info.Mode()); err != nil {
			return err
		}
	}
	return nil
}

// loadModules loads what the initramfs lists.
func loadModules() error {
	list, err := os.ReadFile("/modules")
	if err != nil {
		return err
	}
	for path := range strings.FieldsSeq(string(list)) {
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
	return os.RemoveAll("/lib/modules")
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
			return unix.Mount(disk, Scratch, "ext4", unix.MS_NODEV, "")
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
	if err := m.Network.apply(); err != nil {
		return fmt.Errorf("set up the network: %w", err)
	}
	for name, value := range m.Sysctls {
		path := filepath.Join("/proc/sys", strings.ReplaceAll(name, ".", "/"))
		if err := writeFile(path, value); err != nil {
			return fmt.Errorf("sysctl %s: %w", name, err)
		}
	}
	return nil
}
