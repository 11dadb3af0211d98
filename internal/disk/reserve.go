package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Reserve makes a file of size bytes that are the disk's from now on, for
// WriteReserved. It waits for nothing: a reserve that does not outlive a power cut
// is not needed after it.
func Reserve(path string, size int64, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_CLOEXEC|unix.O_NOFOLLOW, mode)
	if err != nil {
		return fmt.Errorf("reserve %s: %w", path, err)
	}
	if err := errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, size), f.Close()); err != nil {
		return fmt.Errorf("reserve %s: %w", path, errors.Join(err, os.Remove(path)))
	}
	return nil
}

// WriteReserved writes a file as WriteFile does, and where the disk is full into
// the file that Reserve made in the same directory: its blocks are there already,
// and a rename needs none. On a file system that writes nothing in place (btrfs)
// the reserve helps no more than chance does.
func WriteReserved(path, reserve string, data []byte, mode fs.FileMode) error {
	err := WriteFile(path, data, mode)
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return err
	}
	if again := spend(path, reserve, data, mode); again != nil {
		return errors.Join(err, again)
	}
	return SyncDir(filepath.Dir(path))
}

func spend(path, reserve string, data []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(reserve, os.O_WRONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Truncate(int64(len(data)))
	}
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(reserve, path)
}
