package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"gantry/internal/disk"
	"gantry/internal/initramfs"
)

// ensure makes the initramfs, unless it is there or another makes it meanwhile. It notes
// that it is in use.
func (b Boot) ensure(ctx context.Context) error {
	now := time.Now()
	if os.Chtimes(b.Initramfs, now, now) == nil {
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
	if err = sweep(dir, now.Add(-unused)); err == nil && !disk.Exists(b.Initramfs) {
		err = b.make()
	}
	return errors.Join(err, lock.Unlock())
}

// unused is how long nothing was booted with an initramfs that is taken away when another
// is made: a machine may be about to read it. Nothing takes as long to make.
const unused = time.Hour

// sweep takes away what was made of kernels and agents that are gone, and what was never
// finished.
func sweep(dir string, before time.Time) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		info, err := e.Info()
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err == nil && info.Mode().IsRegular() && info.ModTime().Before(before) {
			err = os.Remove(filepath.Join(dir, e.Name()))
		}
		if err != nil {
			return fmt.Errorf("take away what is not used: %w", err)
		}
	}
	return nil
}

func (b Boot) make() error {
	f, err := os.CreateTemp(filepath.Dir(b.Initramfs), ".new-")
	if err != nil {
		return err
	}
	err = initramfs.Write(f, initramfs.Spec{Init: b.Guest, Modules: b.Modules, Load: b.Load})
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), b.Initramfs)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("make %s: %w", b.Initramfs, err), os.Remove(f.Name()))
	}
	return disk.SyncDir(filepath.Dir(b.Initramfs))
}
