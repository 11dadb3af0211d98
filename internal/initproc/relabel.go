package initproc

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const selinuxAttr = "security.selinux"

// maxRelabelDepth bounds the descriptors that are open at a time.
const maxRelabelDepth = 500

// relabel gives all that is to have one its label.
func relabel(list []Relabel) error {
	for _, r := range list {
		for _, path := range r.Paths {
			w := &labelWalk{label: r.Label, set: setLabel}
			if err := w.tree(path); err != nil {
				return fmt.Errorf("give %s the label %s: %w", path, r.Label, err)
			}
			if w.kept > 0 { // apps made them so, and must not be able to keep others from starting
				fmt.Fprintf(os.Stderr, "%d files of %s keep their labels: %v\n", w.kept, path, w.why)
			}
		}
	}
	return nil
}

// labelWalk gives what a mount's source is, and all below it in the same mount, an
// SELinux label. Apps can change volumes while we look: below the source nothing is found
// by a path of more than one name, and no symbolic link is followed.
type labelWalk struct {
	label string
	set   func(path, label string, link bool) error
	kept  int
	why   error // of the first that keeps its label
}

func (w *labelWalk) tree(path string) error {
	fd, err := openSource(path)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	at, err := look(fd, "")
	if err != nil {
		return err
	}
	// The file itself: setxattr takes no descriptor that is for paths only.
	err = w.set(fmt.Sprintf("/proc/self/fd/%d", fd), w.label, false)
	if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EROFS) {
		return nil // a file system without labels, or one that keeps what it has
	}
	if err != nil || at.Mode&unix.S_IFMT != unix.S_IFDIR {
		return err
	}
	return w.below(fd, ".", at.Mnt_id, 0)
}

// openSource opens what was found without links when the app was created: somebody may
// have put one into its way since. Our own directories may lie behind the operator's.
func openSource(path string) (int, error) {
	fd, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS})
	ours := strings.HasPrefix(path, StateRoot+"/") || strings.HasPrefix(path, RunRoot+"/")
	if errors.Is(err, unix.ELOOP) && ours {
		return unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	}
	return fd, err
}

// look tells what a name in a directory is, or with none what is open, and in which
// mount. Nothing is asked of a server.
func look(fd int, name string) (st unix.Statx_t, err error) {
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT | unix.AT_STATX_DONT_SYNC
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	err = unix.Statx(fd, name, flags, unix.STATX_TYPE|unix.STATX_MNT_ID, &st)
	return st, err
}

// below goes into the directory of this name in another one.
func (w *labelWalk) below(parent int, name string, mount uint64, depth int) error {
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return gone(err)
	}
	dir := os.NewFile(uintptr(fd), name)
	defer dir.Close()
	if at, err := look(fd, ""); err != nil || at.Mnt_id != mount {
		return err // something was mounted there meanwhile
	}
	for {
		entries, err := dir.ReadDir(256)
		for _, entry := range entries {
			if err := w.entry(fd, entry.Name(), mount, depth); err != nil {
				w.keep(err)
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

func (w *labelWalk) keep(err error) {
	w.kept++
	if w.why == nil {
		w.why = err
	}
}

func (w *labelWalk) entry(dir int, name string, mount uint64, depth int) error {
	at, err := look(dir, name)
	if err != nil {
		return gone(err)
	}
	if at.Mnt_id != mount {
		return nil // something else is mounted there
	}
	// What cannot have it does not keep what is in it from having it.
	if err := gone(w.set(filepath.Join(fmt.Sprintf("/proc/self/fd/%d", dir), name), w.label, true)); err != nil {
		w.keep(err)
	}
	if at.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	if depth == maxRelabelDepth {
		return fmt.Errorf("directories are nested more than %d deep", maxRelabelDepth)
	}
	return w.below(dir, name, mount, depth+1)
}

// setLabel changes the label of a file, or of a link itself, unless it is right.
func setLabel(path, label string, link bool) error {
	get, set := unix.Getxattr, unix.Setxattr
	if link {
		get, set = unix.Lgetxattr, unix.Lsetxattr
	}
	have := make([]byte, 256)
	if n, err := get(path, selinuxAttr, have); err == nil && strings.TrimSuffix(string(have[:n]), "\x00") == label {
		return nil
	}
	return set(path, selinuxAttr, []byte(label), 0)
}

// gone forgives that a file was removed, or exchanged for another, meanwhile.
func gone(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	return err
}
