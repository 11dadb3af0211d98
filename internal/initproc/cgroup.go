package initproc

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

const cgroupRoot = "/sys/fs/cgroup"

// unitCgroup is the cgroup directory of the unit we run in. Systemd puts the
// commands around a delegated unit into a group of their own below it.
func unitCgroup() (string, error) {
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", fmt.Errorf("find own cgroup: %w", err)
	}
	path, ok := strings.CutPrefix(strings.TrimSpace(string(data)), "0::")
	if !ok {
		return "", errors.New("find own cgroup: this is not a cgroup v2 system")
	}
	return filepath.Join(cgroupRoot, strings.TrimSuffix(path, "/"+controlGroup)), nil
}

// writeCgroup sets limits that systemd has no property for, or would round.
func writeCgroup(dir string, files []CgroupFile) error {
	for _, f := range files {
		if strings.ContainsRune(f.Name, '/') {
			return fmt.Errorf("%q is no cgroup file", f.Name)
		}
		if err := WriteLimit(dir, f); err != nil {
			return fmt.Errorf("%s = %s: %w", f.Name, f.Value, err)
		}
	}
	return nil
}

// WriteLimit writes a file of a cgroup, also one that is not there before its controller was
// enabled: systemd enables those that it knows, and hugetlb is none of them.
func WriteLimit(dir string, f CgroupFile) error {
	path := filepath.Join(dir, f.Name)
	err := writeCgroupFile(path, f.Value)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	controller, _, _ := strings.Cut(f.Name, ".")
	if err := enableController(dir, controller); err != nil {
		return err
	}
	return writeCgroupFile(path, f.Value)
}

// enableController enables a controller in all groups above dir.
func enableController(dir, controller string) error {
	known, err := os.ReadFile(filepath.Join(cgroupRoot, "cgroup.controllers"))
	if err != nil {
		return err
	}
	if !slices.Contains(strings.Fields(string(known)), controller) {
		return fmt.Errorf("the kernel has no cgroup controller %s", controller)
	}
	rel, err := filepath.Rel(cgroupRoot, filepath.Dir(dir))
	if err != nil {
		return err
	}
	group := cgroupRoot
	for _, name := range append([]string{""}, strings.Split(rel, "/")...) {
		group = filepath.Join(group, name)
		if err := writeCgroupFile(filepath.Join(group, "cgroup.subtree_control"), "+"+controller); err != nil {
			return fmt.Errorf("enable controller %s: %w", controller, err)
		}
	}
	return nil
}

// liftCPU takes the app's CPU limit away while we work for it: with a hundredth of
// a CPU a start would take seconds, and the record of an exit too. The plan's files
// bring it back before the app runs.
func liftCPU() {
	if dir, err := unitCgroup(); err == nil {
		_ = writeCgroupFile(filepath.Join(dir, "cpu.max"), "max") // without it we are only slow
	}
}

func writeCgroupFile(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// oomKills is how many processes of the unit the kernel killed for want of
// memory, whoever's limit it was.
func oomKills() int {
	dir, err := unitCgroup()
	if err != nil {
		return 0
	}
	data, err := os.ReadFile(filepath.Join(dir, "memory.events"))
	if err != nil {
		return 0
	}
	return parseOOMKills(data)
}

func parseOOMKills(data []byte) int {
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		if v, ok := strings.CutPrefix(lines.Text(), "oom_kill "); ok {
			n, _ := strconv.Atoi(v)
			return n
		}
	}
	return 0
}
