package initproc

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"gantry/internal/disk"
)

// cgroupOf is a directory that has files of a cgroup.
func cgroupOf(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, value := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(value), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func wantFiles(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, want := range files {
		if got, err := readCgroupFile(dir, name); err != nil || got != want {
			t.Errorf("%s is %q, %v; want %q", name, got, err, want)
		}
	}
}

// TestLimitsOfTheAppsGroup: it has those of the unit, also one that is lifted while the
// runtime works, and the unit gets that back before anybody may change it.
func TestLimitsOfTheAppsGroup(t *testing.T) {
	t.Parallel()
	unit := cgroupOf(t, map[string]string{
		"memory.max": "33554432\n", "memory.high": "max\n", "cpu.max": "5 9\n", "cpu.weight": "0\n", "cpu.idle": "1\n", "hugetlb.2MB.max": "0\n", "pids.max": "40\n",
	})
	group := filepath.Join(unit, "group")
	if err := os.Rename(cgroupOf(t, map[string]string{
		"memory.max": "max", "memory.high": "max", "cpu.max": "max 9", "cpu.weight": "100", "cpu.idle": "0", "hugetlb.2MB.max": "max",
	}), group); err != nil {
		t.Fatal(err)
	}
	r := &room{unit: unit, group: group, lifted: liftMemory(unit)}
	wantFiles(t, unit, map[string]string{"memory.max": "max", "memory.high": "max"})
	if err := r.limit(); err != nil {
		t.Fatal(err)
	}
	wantFiles(t, group, map[string]string{
		"memory.max": "33554432", "memory.high": "max", "cpu.max": "5 9", "cpu.weight": "100", "cpu.idle": "1", "hugetlb.2MB.max": "0",
	})
	if _, err := os.Stat(filepath.Join(group, "pids.max")); err == nil {
		t.Error("a file was made")
	}
	if _, err := disk.TryLock(group); !errors.Is(err, disk.ErrLocked) {
		t.Errorf("others may change the limits: %v", err)
	}
	if err := r.close(); err != nil {
		t.Fatal(err)
	}
	wantFiles(t, unit, map[string]string{"memory.max": "33554432"})
	lock, err := disk.TryLock(group)
	if err != nil {
		t.Fatal(err)
	}
	if err := lock.Unlock(); err != nil {
		t.Error(err)
	}
}

func TestNoRoomIsNeeded(t *testing.T) {
	t.Parallel()
	r, err := makeRoom(Start{})
	if err != nil || r.limit() != nil || r.close() != nil {
		t.Errorf("%+v, %v", r, err)
	}
}
