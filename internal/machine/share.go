package machine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// Share is a part of the host that an app of the machine sees.
type Share struct {
	Source string `json:"source"`
	// Sub is a part of Source, an image's tree: links on the way to it are the image's.
	Sub string `json:"sub,omitempty"`
	// Target is where it is mounted, below the pod's share.
	Target   string `json:"target"`
	ReadOnly bool   `json:"readOnly,omitempty"`
	// Recursive takes what is mounted below along, and AllReadOnly makes that read-only too.
	Recursive   bool `json:"recursive,omitempty"`
	AllReadOnly bool `json:"allReadOnly,omitempty"`
}

// mount makes it visible. It is none the second time.
func (s Share) mount() error {
	source, err := s.open()
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer unix.Close(source)
	if err := s.place(source); err != nil {
		return err
	}
	if mounted, err := isMount(s.Target); mounted || err != nil {
		return err
	}
	clone := uint(unix.AT_EMPTY_PATH | unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if s.Recursive {
		clone |= unix.AT_RECURSIVE
	}
	tree, err := unix.OpenTree(source, "", clone)
	if err != nil {
		return fmt.Errorf("clone: %w", err)
	}
	defer unix.Close(tree)
	if err := s.restrict(tree); err != nil {
		return fmt.Errorf("set attributes: %w", err)
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, s.Target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	return nil
}

// unshare takes what an app saw of the host out of the pod's share, so that it can be
// unmounted where it is from. Call it when the machine has forgotten the app.
func unshare(shares []Share) error {
	var errs []error
	for _, s := range shares {
		err := unix.Unmount(s.Target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", s.Target, err))
			continue
		}
		if err := os.Remove(s.Target); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if len(errs) == 0 && len(shares) > 0 {
		if err := os.Remove(filepath.Dir(shares[0].Target)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// restrict sets what holds for all that is mounted, and what for its root alone.
func (s Share) restrict(tree int) error {
	all := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID, Propagation: unix.MS_SLAVE}
	if s.AllReadOnly {
		all.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &all); err != nil || !s.ReadOnly {
		return err
	}
	return unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
}

func (s Share) open() (int, error) {
	root, err := unix.Open(s.Source, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil || s.Sub == "" {
		return root, err
	}
	defer unix.Close(root)
	return unix.Openat2(root, s.Sub, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
}

// place makes what it is mounted on.
func (s Share) place(source int) error {
	var stat unix.Stat_t
	if err := unix.Fstat(source, &stat); err != nil {
		return err
	}
	if stat.Mode&unix.S_IFMT == unix.S_IFDIR {
		return os.MkdirAll(s.Target, 0o700)
	}
	if err := os.MkdirAll(filepath.Dir(s.Target), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(s.Target, os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// terminal makes a pair of which one end is the host's and the other passes bytes as they
// are: the machine's terminal is the one that counts.
func terminal() (slave, master *os.File, err error) {
	if master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		return nil, nil, err
	}
	fd := int(master.Fd())
	if err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err == nil {
		peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
		if errno != 0 {
			err = errno
		} else {
			slave = os.NewFile(peer, "terminal")
		}
	}
	if err == nil {
		_, err = term.MakeRaw(int(slave.Fd()))
	}
	if err != nil {
		if slave != nil {
			slave.Close()
		}
		master.Close()
		return nil, nil, fmt.Errorf("make a terminal: %w", err)
	}
	return slave, master, nil
}

// own makes a terminal ours, so that we hear of its size.
func own(slave *os.File) error {
	if _, err := unix.Setsid(); err != nil && !errors.Is(err, unix.EPERM) { // we lead one already
		return fmt.Errorf("begin a session: %w", err)
	}
	if err := unix.IoctlSetInt(int(slave.Fd()), unix.TIOCSCTTY, 0); err != nil {
		return fmt.Errorf("take the terminal: %w", err)
	}
	return nil
}
