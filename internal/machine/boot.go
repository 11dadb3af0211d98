package machine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"gantry/internal/disk"
	"gantry/internal/initramfs"
	"gantry/internal/pod"
)

// touch notes that kernel and initramfs are in use, and tells whether they are there.
func (b Boot) touch(now time.Time) bool {
	kernel, initramfs := os.Chtimes(b.Kernel, now, now), os.Chtimes(b.Initramfs, now, now)
	return kernel == nil && initramfs == nil
}

// Furnish has kernel and initramfs made, unless they are there: by a program of its own,
// since to unpack a kernel takes memory that nobody needs any more afterwards. said is what
// that has to say, "" if all went as it should.
func (b Boot) Furnish(ctx context.Context) (said string, err error) {
	if b.touch(time.Now()) {
		return "", nil
	}
	in, err := json.Marshal(b)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, b.Guest, "compose")
	cmd.Stdin = bytes.NewReader(in)
	out, err := cmd.CombinedOutput()
	said = strings.TrimSpace(string(out))
	if err != nil {
		return "", fmt.Errorf("make what machines boot: %w: %s: %w", err, said, pod.ErrUnavailable)
	}
	return said, nil
}

// Compose is what the program does.
func Compose(ctx context.Context, in io.Reader) error {
	var b Boot
	if err := json.NewDecoder(in).Decode(&b); err != nil {
		return fmt.Errorf("make what machines boot: %w", err)
	}
	return b.ensure(ctx)
}

// ensure makes kernel and initramfs, unless they are there or another makes them meanwhile.
func (b Boot) ensure(ctx context.Context) error {
	now := time.Now()
	if b.touch(now) {
		return nil
	}
	dir := filepath.Dir(b.Initramfs)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	lock, err := disk.AcquireLock(ctx, dir)
	if err != nil {
		return err
	}
	if err = sweep(dir, now.Add(-unused)); err == nil && !disk.Exists(b.Kernel) {
		err = replace(b.Kernel, func(f *os.File) error {
			why, err := initramfs.WriteKernel(f, b.From)
			if why != nil {
				fmt.Fprintf(os.Stderr, "gantry-guest: %s is booted packed: %v\n", b.From, why)
			}
			return err
		})
	}
	if err == nil && !disk.Exists(b.Initramfs) {
		err = replace(b.Initramfs, func(f *os.File) error {
			return initramfs.Write(f, initramfs.Spec{Init: b.Guest, Modules: b.Modules, Load: b.Load})
		})
	}
	return errors.Join(err, lock.Unlock())
}

// unused is how long nothing was booted with a file that is taken away when another
// is made: a machine may be about to read it. Nothing takes as long to make.
const unused = time.Hour

// newFile is the beginning of the name of what is being made.
const newFile = ".new-"

// sweep takes away what was made of kernels and agents that are gone, and what was never
// finished: whoever makes something has the lock.
func sweep(dir string, before time.Time) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		info, err := os.Lstat(filepath.Join(dir, e.Name())) // now: it may have come into use
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err == nil && info.Mode().IsRegular() && (info.ModTime().Before(before) || strings.HasPrefix(e.Name(), newFile)) {
			err = os.Remove(filepath.Join(dir, e.Name()))
		}
		if err != nil {
			return fmt.Errorf("take away what is not used: %w", err)
		}
	}
	return nil
}

// replace makes a file whole or not at all.
func replace(path string, write func(*os.File) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), newFile)
	if err != nil {
		return err
	}
	if err = write(f); err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("make %s: %w", path, err), os.Remove(f.Name()))
	}
	return disk.SyncDir(filepath.Dir(path))
}
