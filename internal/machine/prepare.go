package machine

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"gantry/internal/disk"
	"gantry/internal/guest"
	"gantry/internal/pod"
)

// prepare makes what a machine needs before it boots. The pod's network is being made
// meanwhile. It may be called again.
func prepare(ctx context.Context, podDir string) error {
	var plan Plan
	err := readJSON(filepath.Join(podDir, PlanFile), &plan)
	if err != nil {
		return fmt.Errorf("prepare machine: read plan: %w", err)
	}
	for _, file := range ErrorFiles(podDir) {
		if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("prepare machine: %w", err)
		}
	}
	if err := plan.Boot.ensure(ctx); err != nil {
		return fmt.Errorf("prepare machine: what it boots: %w", err)
	}
	if err := inNetwork(plan.Run, makeTap); err != nil {
		return fmt.Errorf("prepare machine: network: %w", err)
	}
	if plan.Machine.Key, err = makeKey(podDir); err != nil {
		return fmt.Errorf("prepare machine: key: %w", err)
	}
	if err := share(filepath.Join(plan.Run, ShareDir), plan.Machine); err != nil {
		return fmt.Errorf("prepare machine: share: %w", err)
	}
	if err := makeDisk(ctx, filepath.Join(podDir, Disk), plan.DiskBytes); err != nil {
		return fmt.Errorf("prepare machine: writable disk: %w", err)
	}
	return nil
}

// makeKey returns the key of a pod's machine. There is one for as long as there is the pod.
func makeKey(podDir string) ([]byte, error) {
	path := filepath.Join(podDir, KeyFile)
	key, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) || err == nil && len(key) != guest.KeyBytes {
		key = make([]byte, guest.KeyBytes)
		rand.Read(key)
		err = disk.WriteFile(path, key, 0o600)
	}
	return key, err
}

// seedBytes is as much as the kernel's generator of random numbers holds.
const seedBytes = 64

// share makes the directory that the machine sees. What is mounted in it later comes
// through to whoever has it already.
func share(dir string, m guest.Machine) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	mounted, err := isMount(dir)
	if err != nil {
		return err
	}
	if !mounted {
		if err := unix.Mount("gantry", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=700,size=4m,nr_inodes=4096"); err != nil {
			return fmt.Errorf("mount: %w", err)
		}
	}
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share mounts: %w", err)
	}
	m.Seed = make([]byte, seedBytes)
	rand.Read(m.Seed)
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return disk.WriteFile(filepath.Join(dir, guest.MachineFile), data, 0o600)
}

func isMount(dir string) (bool, error) {
	return isMountAt(unix.AT_FDCWD, dir, unix.AT_SYMLINK_NOFOLLOW)
}

func isMountAt(dir int, name string, flags int) (bool, error) {
	var stat unix.Statx_t
	if err := unix.Statx(dir, name, flags, 0, &stat); err != nil {
		return false, err
	}
	return stat.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// makeDisk makes a disk that takes room when it is written to.
func makeDisk(ctx context.Context, path string, size int64) error {
	if size == 0 || disk.Exists(path) {
		return nil
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(tmp, size); err != nil {
		return err
	}
	// The machine makes what it needs of the rest; a journal would be for a machine that
	// comes again, and this one does not.
	cmd := exec.CommandContext(ctx, mkfs, "-q", "-F", "-m", "0", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard", tmp)
	if out, err := cmd.CombinedOutput(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return fmt.Errorf("%s is missing, install e2fsprogs: %w", mkfs, pod.ErrUnavailable)
		}
		return fmt.Errorf("%s: %w: %s", mkfs, err, strings.TrimSpace(string(out)))
	}
	return os.Rename(tmp, path)
}

// Release takes the share of a pod off the host, by its run directory: its records may be
// gone.
func Release(run string) error {
	dir := filepath.Join(run, ShareDir)
	for {
		err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		if err != nil {
			return fmt.Errorf("release machine: unmount %s: %w", dir, err)
		}
	}
	// The socket stays; the file with its number is of file servers that made their own.
	socket := filepath.Join(run, SocketFile)
	for _, path := range []string{dir, socket, socket + ".pid"} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("release machine: %w", err)
		}
	}
	return nil
}
