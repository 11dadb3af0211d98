package initproc

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const selinuxAttr = "security.selinux"

// maxRelabelDepth bounds the descriptors that are open at a time.
const maxRelabelDepth = 500

// relabel gives all that is to have one its label.
func relabel(list []Relabel) error {
	for _, r := range list {
		r.set = r.setLabel
		for _, path := range r.Paths {
			if err := r.tree(path); err != nil {
				return fmt.Errorf("give %s the label %s: %w", path, r.Label, err)
			}
		}
	}
	return nil
}

// tree gives what a mount's source is, and all below it on the same file system, an
// SELinux label. Apps can change volumes while we look: nothing is found by a path of
// more than one name, and no symbolic link is followed.
func (r *Relabel) tree(path string) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	// The file itself: setxattr takes no descriptor that is for paths only.
	if err := r.set(fmt.Sprintf("/proc/self/fd/%d", fd), false); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	return r.below(fd, ".", st.Dev, 0)
}

// below goes into the directory of this name in another one.
func (r *Relabel) below(parent int, name string, device uint64, depth int) error {
	if depth > maxRelabelDepth {
		return fmt.Errorf("directories are nested more than %d deep", maxRelabelDepth)
	}
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return gone(err)
	}
	dir := os.NewFile(uintptr(fd), name)
	defer dir.Close()
	for {
		entries, err := dir.ReadDir(256)
		for _, entry := range entries {
			if err := r.entry(fd, entry.Name(), device, depth); err != nil {
				return fmt.Errorf("%s: %w", entry.Name(), err)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (r *Relabel) entry(dir int, name string, device uint64, depth int) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT); err != nil {
		return gone(err)
	}
	if st.Dev != device {
		return nil // something else is mounted there
	}
	if err := r.set(filepath.Join(fmt.Sprintf("/proc/self/fd/%d", dir), name), true); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return r.below(dir, name, device, depth+1)
	}
	return nil
}

// setLabel changes the label of a file, or of a link itself, unless it is right. File
// systems without labels of files, and such as cannot be written to, keep what they have.
func (r *Relabel) setLabel(path string, link bool) error {
	get, set := unix.Getxattr, unix.Setxattr
	if link {
		get, set = unix.Lgetxattr, unix.Lsetxattr
	}
	have := make([]byte, 256)
	if n, err := get(path, selinuxAttr, have); err == nil && string(trimZero(have[:n])) == r.Label {
		return nil
	}
	err := set(path, selinuxAttr, []byte(r.Label), 0)
	if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EROFS) {
		return nil
	}
	return gone(err)
}

func trimZero(b []byte) []byte {
	if n := len(b); n > 0 && b[n-1] == 0 {
		return b[:n-1]
	}
	return b
}

// gone forgives that a file was removed, or exchanged for another, meanwhile.
func gone(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	return err
}
