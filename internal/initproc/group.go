package initproc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"gantry/internal/disk"
)

// controlGroup is where systemd puts the commands around a delegated unit.
const controlGroup = ".control"

// room is what is made in the unit's cgroup for a runtime that manages cgroups, and puts
// the app into one below. The zero room is for one that does not.
type room struct {
	unit, group string
	lifted      []CgroupFile
	lock        *disk.Lock
}

// makeRoom leaves the unit's cgroup, for the kernel passes no controllers on from one
// that has processes. The memory limit is lifted: the runtime needs more than many an
// app may have.
func makeRoom(s Start) (*room, error) {
	if s.Group == "" {
		return &room{}, nil
	}
	dir, err := unitCgroup()
	if err != nil {
		return nil, err
	}
	control := filepath.Join(dir, controlGroup)
	if err := os.Mkdir(control, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if err := writeCgroupFile(filepath.Join(control, "cgroup.procs"), "0"); err != nil { // ourselves
		return nil, err
	}
	return &room{unit: dir, group: filepath.Join(dir, s.Group), lifted: liftMemory(dir)}, nil
}

// liftMemory returns the limits that were there. Those that stay make nothing but a
// failure more likely.
func liftMemory(dir string) (was []CgroupFile) {
	for _, name := range []string{"memory.high", "memory.max"} {
		value, err := readCgroupFile(dir, name)
		if err == nil && value != "max" && writeCgroupFile(filepath.Join(dir, name), "max") == nil {
			was = append(was, CgroupFile{name, value})
		}
	}
	return was
}

// limit gives the app's own group the limits of the unit. Once the app is ready others may
// change them: its lock keeps them from that until the unit has its limits back.
func (r *room) limit() (err error) {
	if r.group == "" {
		return nil
	}
	if r.lock, err = disk.TryLock(r.group); err != nil {
		return err
	}
	if err := CopyLimits(r.unit, r.group); err != nil {
		return err
	}
	return writeAll(r.group, r.lifted)
}

// close gives the unit back what was lifted. Until then the app had it in its group.
func (r *room) close() error {
	if r.lock == nil {
		return nil
	}
	return errors.Join(writeAll(r.unit, r.lifted), r.lock.Unlock())
}

func writeAll(dir string, files []CgroupFile) error {
	for _, f := range files {
		if err := writeCgroupFile(filepath.Join(dir, f.Name), f.Value); err != nil {
			return fmt.Errorf("%s = %s: %w", f.Name, f.Value, err)
		}
	}
	return nil
}

// limitFiles are the limits of a cgroup that programs look for in their own.
var limitFiles = [...]string{
	"cpu.idle", "cpu.weight", "cpu.max", "cpu.max.burst", "cpuset.cpus", "cpuset.mems", "hugetlb.*.max", "pids.max",
	"memory.max", "memory.high", "memory.low", "memory.min", "memory.swap.max", "memory.zswap.max", "memory.oom.group",
}

// CopyLimits gives a cgroup the limits of that above it. They hold for it anyway, but an
// app takes those for its own that it finds where it is.
func CopyLimits(from, to string) error {
	for _, pattern := range limitFiles {
		files, err := filepath.Glob(filepath.Join(from, pattern))
		if err != nil {
			return err
		}
		for _, file := range files {
			if err := copyLimit(from, to, filepath.Base(file)); err != nil {
				return fmt.Errorf("copy limit %s: %w", filepath.Base(file), err)
			}
		}
	}
	return nil
}

func copyLimit(from, to, name string) error {
	want, err := readCgroupFile(from, name)
	if err != nil {
		return err
	}
	have, err := readCgroupFile(to, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // its controller is not passed on: nobody looks for it here
	}
	if err != nil || have == want {
		return err
	}
	if name == "cpu.weight" && want == "0" {
		return nil // of an idle group
	}
	return writeCgroupFile(filepath.Join(to, name), want)
}

func readCgroupFile(dir, name string) (string, error) {
	data, err := os.ReadFile(filepath.Join(dir, name))
	return strings.TrimSpace(string(data)), err
}
