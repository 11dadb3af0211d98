package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"gantry/internal/disk"
	"gantry/internal/initramfs"
)

// ensure makes the initramfs, unless it is there or another makes it meanwhile.
func (b Boot) ensure(ctx context.Context) error {
	if disk.Exists(b.Initramfs) {
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
	if !disk.Exists(b.Initramfs) {
		err = b.make()
	}
	return errors.Join(err, lock.Unlock())
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
