// Package disk holds the few ways in which Gantry touches the file system: crash
// safe writes, directories that appear and disappear by one rename, and locks.
//
// Whatever was written with it is, after a crash or a power loss at any moment,
// either wholly there or not at all.
package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// WriteFile writes data to path so that a crash leaves the old content or the
// new one: a temporary file in the same directory, fsync, rename, fsync of the
// directory.
func WriteFile(path string, data []byte, mode fs.FileMode) error {
	tmp, err := writeTemp(path, data, mode)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write %s: %w", path, errors.Join(err, os.Remove(tmp)))
	}
	return SyncDir(filepath.Dir(path))
}

// WriteOnce does the same, but leaves a file that is there by then.
func WriteOnce(path string, data []byte, mode fs.FileMode) error {
	tmp, err := writeTemp(path, data, mode)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	err = unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
	if err == nil {
		return SyncDir(filepath.Dir(path))
	}
	if errors.Is(err, fs.ErrExist) {
		return os.Remove(tmp)
	}
	return fmt.Errorf("write %s: %w", path, errors.Join(err, os.Remove(tmp)))
}

// WriteNew writes a file into a directory that is not in place yet: no rename is
// needed, since the directory's own rename is what makes it visible.
func WriteNew(path string, data []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_CLOEXEC|unix.O_NOFOLLOW, mode)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := fill(f, data, mode); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// File is one of several to write at once.
type File struct {
	Path string
	Data []byte
	Mode fs.FileMode
}

// WriteFiles writes files of one directory, each as WriteFile does, and none before
// those in front of it. It waits for the disk twice, however many they are.
func WriteFiles(files ...File) error {
	var open []*os.File
	for _, f := range files {
		tmp, err := os.CreateTemp(filepath.Dir(f.Path), "."+filepath.Base(f.Path)+".*")
		if err != nil {
			return errors.Join(fmt.Errorf("write %s: %w", f.Path, err), discard(open))
		}
		open = append(open, tmp)
		if err := put(tmp, f); err != nil {
			return errors.Join(fmt.Errorf("write %s: %w", f.Path, err), discard(open))
		}
	}
	if err := syncAll(open); err != nil {
		return errors.Join(err, discard(open))
	}
	for i, f := range files {
		if err := os.Rename(open[i].Name(), f.Path); err != nil {
			return errors.Join(fmt.Errorf("write %s: %w", f.Path, err), discard(open[i:]))
		}
	}
	return errors.Join(closeAll(open), SyncDir(filepath.Dir(files[0].Path)))
}

// WriteAllNew is WriteNew for several files, which may be in several directories.
func WriteAllNew(files ...File) error {
	var open []*os.File
	for _, f := range files {
		file, err := os.OpenFile(f.Path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_CLOEXEC|unix.O_NOFOLLOW, f.Mode)
		if err != nil {
			return errors.Join(fmt.Errorf("write %s: %w", f.Path, err), closeAll(open))
		}
		open = append(open, file)
		if err := put(file, f); err != nil {
			return errors.Join(fmt.Errorf("write %s: %w", f.Path, err), closeAll(open))
		}
	}
	return errors.Join(syncAll(open), closeAll(open))
}

// put is fill without what waits for the disk.
func put(to *os.File, f File) error {
	_, err := to.Write(f.Data)
	return errors.Join(err, to.Chmod(f.Mode))
}

// syncAll makes the contents of files durable. All are on their way to the disk
// before the first is waited for: then one commit of the file system's journal
// has them all, where one after the other would cost a commit each.
func syncAll(files []*os.File) error {
	if len(files) > 1 {
		for _, f := range files {
			// Only a hint; Sync is what counts.
			_ = unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
		}
	}
	for _, f := range files {
		if err := f.Sync(); err != nil {
			return fmt.Errorf("sync %s: %w", f.Name(), err)
		}
	}
	return nil
}

func closeAll(files []*os.File) error {
	var errs []error
	for _, f := range files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

func discard(files []*os.File) error {
	var errs []error
	for _, f := range files {
		errs = append(errs, f.Close(), os.Remove(f.Name()))
	}
	return errors.Join(errs...)
}

func writeTemp(path string, data []byte, mode fs.FileMode) (string, error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return "", err
	}
	if err := fill(f, data, mode); err != nil {
		return "", errors.Join(err, os.Remove(f.Name()))
	}
	return f.Name(), nil
}

// fill writes, syncs and closes. The mode is set by fchmod: the umask must not
// decide who can read a record.
func fill(f *os.File, data []byte, mode fs.FileMode) error {
	_, err := f.Write(data)
	return errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
}

// SyncDir makes renames in a directory durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
}

// Move renames old to new and makes it durable on both sides. It refuses to
// replace anything.
func Move(old, new string) error {
	if err := unix.Renameat2(unix.AT_FDCWD, old, unix.AT_FDCWD, new, unix.RENAME_NOREPLACE); err != nil {
		return &os.LinkError{Op: "rename", Old: old, New: new, Err: err}
	}
	if err := SyncDir(filepath.Dir(new)); err != nil {
		return err
	}
	if filepath.Dir(old) == filepath.Dir(new) {
		return nil
	}
	return SyncDir(filepath.Dir(old))
}

// Exists tells whether something is at path; an error other than "not there"
// counts as yes, so that nothing is overwritten or removed by mistake.
func Exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
