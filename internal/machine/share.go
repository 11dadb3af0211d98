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
	// Private keeps out what is mounted below it on the host later.
	Private bool `json:"private,omitempty"`
	// Recursive takes what is mounted below along, and AllReadOnly makes that read-only too.
	Recursive   bool `json:"recursive,omitempty"`
	AllReadOnly bool `json:"allReadOnly,omitempty"`
}

// mount makes it visible. It is none the second time. What is in the pod's share the machine
// may have put there: no link in it is followed.
func (s Share) mount() error {
	source, err := s.open()
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer unix.Close(source)
	target, err := s.place(source)
	if err != nil {
		return fmt.Errorf("make what it is mounted on: %w", err)
	}
	defer unix.Close(target)
	if mounted, err := isMountAt(target, "", unix.AT_EMPTY_PATH); mounted || err != nil {
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
	if err := unix.MoveMount(tree, "", target, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	return nil
}

// names are the pod's share, and the names of an app and of the part below it.
func (s Share) names() (root, app, part string) {
	dir := filepath.Dir(s.Target)
	return filepath.Dir(dir), filepath.Base(dir), filepath.Base(s.Target)
}

// at opens the target, which nothing on the way to it may be a link to.
func (s Share) at() (int, error) {
	root, app, part := s.names()
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(dir)
	return unix.Openat2(dir, filepath.Join(app, part), &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
}

// unshare takes what an app saw of the host out of the pod's share, so that it can be
// unmounted where it is from. Call it when the app has ended.
func unshare(shares []Share) error {
	var errs []error
	for _, s := range shares {
		errs = append(errs, s.unmount())
	}
	if err := errors.Join(errs...); err != nil || len(shares) == 0 {
		return err
	}
	path, app, _ := shares[0].names()
	return removeIn(path, app)
}

func (s Share) unmount() error {
	target, err := s.at()
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find %s: %w", s.Target, err)
	}
	mounted, err := isMountAt(target, "", unix.AT_EMPTY_PATH)
	if err == nil && mounted {
		err = unix.Unmount(fmt.Sprintf("/proc/self/fd/%d", target), unix.MNT_DETACH)
	}
	unix.Close(target)
	if err != nil {
		return fmt.Errorf("unmount %s: %w", s.Target, err)
	}
	root, app, part := s.names()
	return removeIn(root, filepath.Join(app, part))
}

// removeIn removes something below a directory, and nothing of what links there lead to.
func removeIn(dir, name string) error {
	root, err := os.OpenRoot(dir)
	if err == nil {
		err = errors.Join(root.Remove(name), root.Close())
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// restrict sets what holds for all that is mounted, and what for its root alone.
func (s Share) restrict(tree int) error {
	all := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID, Propagation: unix.MS_SLAVE}
	if s.Private {
		all.Propagation = unix.MS_PRIVATE
	}
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

// place makes what it is mounted on, and opens it.
func (s Share) place(source int) (int, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(source, &stat); err != nil {
		return -1, err
	}
	path, app, part := s.names()
	root, err := os.OpenRoot(path)
	if err != nil {
		return -1, err
	}
	defer root.Close()
	if stat.Mode&unix.S_IFMT == unix.S_IFDIR {
		err = root.MkdirAll(filepath.Join(app, part), 0o700)
	} else if err = root.MkdirAll(app, 0o700); err == nil {
		var f *os.File
		if f, err = root.OpenFile(filepath.Join(app, part), os.O_CREATE|unix.O_NONBLOCK, 0o600); err == nil {
			err = f.Close()
		}
	}
	if err != nil {
		return -1, err
	}
	return s.at()
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
