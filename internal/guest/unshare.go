package guest

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// unshare lets go of what the host shares with an app that has ended: of the file systems
// that were mounted when somebody went there, and of names that the kernel remembers. The
// host's file server keeps each of them open until then, so that nobody could unmount there
// what they are on.
func unshare(app string) error {
	dir := filepath.Join(Share, app)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		err := unix.Unmount(filepath.Join(dir, e.Name()), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) { // a file, or one that nobody went to
			return &fs.PathError{Op: "unmount", Path: e.Name(), Err: err}
		}
	}
	return dropCaches(namesOnly)
}

// namesOnly leaves the content of files cached.
const namesOnly, all = "2", "3"
