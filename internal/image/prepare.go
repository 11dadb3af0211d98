package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"gantry/internal/disk"
)

// workspace is a directory below prepare/ that one process at a time has. What it
// holds when its owner dies is worth nothing: the next owner empties it, or GC
// removes it.
type workspace struct {
	path string
	lock *disk.Lock
}

// work waits for the workspace of that name. Who waits for one usually finds the
// work done when it is its turn.
func (s *Store) work(ctx context.Context, name string) (*workspace, error) {
	path := filepath.Join(s.dir(dirPrepare), name)
	for {
		if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		w, err := lockWorkspace(ctx, path)
		if err != nil || w != nil {
			return w, err
		}
	}
}

// lockWorkspace locks a workspace and empties it; nil if it was removed meanwhile.
func lockWorkspace(ctx context.Context, path string) (*workspace, error) {
	l, err := disk.AcquireLock(ctx, path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	same, err := sameFile(l.File(), path)
	if err == nil && same {
		err = clearDir(path)
	}
	if err != nil || !same {
		return nil, errors.Join(err, l.Unlock())
	}
	return &workspace{path, l}, nil
}

// sameFile tells whether what we locked is still what the path names.
func sameFile(f *os.File, path string) (bool, error) {
	var a, b unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &a); err != nil {
		return false, err
	}
	switch err := unix.Lstat(path, &b); {
	case errors.Is(err, unix.ENOENT):
		return false, nil
	case err != nil:
		return false, err
	}
	return a.Dev == b.Dev && a.Ino == b.Ino, nil
}

func clearDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// file names a file of the workspace.
func (w *workspace) file(name string) string { return filepath.Join(w.path, name) }

// create makes an empty file in the workspace.
func (w *workspace) create(name string) (*os.File, error) {
	f, err := os.OpenFile(w.file(name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("prepare: %w", err)
	}
	return f, nil
}

// close removes the workspace with what is left in it. It is removed before the
// lock goes, so that who waits for it sees that it is gone.
func (w *workspace) close() error {
	return errors.Join(os.RemoveAll(w.path), w.lock.Unlock())
}
