package initproc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// mountRootfs mounts the overlay of an app in our own mount namespace, where
// nobody else sees it and from where it goes away by itself.
func mountRootfs(r Rootfs) error {
	if r.Target == "" {
		return nil
	}
	if err := os.MkdirAll(r.Target, 0o700); err != nil {
		return err
	}
	lower := r.Lower
	if r.UserNS != "" {
		var err error
		if lower, err = mapLower(r); err != nil {
			return err
		}
		if err := os.Chown(r.Upper, r.UID, r.GID); err != nil {
			return err
		}
	}
	return mountOverlay(r, lower)
}

// leaveHost gives the calling thread, and what it starts, a mount namespace that
// stays in the host's peer groups: a unit's private one would not, and what a
// bidirectional volume's app mounts must show on the host. Only the mount that
// target lies on stops sending, so that the host never sees the rootfs.
func leaveHost(target string) error {
	goruntime.LockOSThread() // for good: no other goroutine may get this thread
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := os.MkdirAll(target, 0o700); err != nil {
		return err
	}
	for dir := target; ; dir = filepath.Dir(dir) {
		err := unix.Mount("", dir, "", unix.MS_SLAVE, "")
		if !errors.Is(err, unix.EINVAL) || dir == "/" { // EINVAL: not a mount point
			return err
		}
	}
}

func mountOverlay(r Rootfs, lower []string) error {
	options := "lowerdir=" + strings.Join(lower, ":")
	flags := uintptr(0)
	if r.Upper != "" {
		options += ",upperdir=" + r.Upper + ",workdir=" + r.Work
	} else {
		flags = unix.MS_RDONLY
	}
	if r.NoDev {
		flags |= unix.MS_NODEV
	}
	if r.Label != "" { // in quotes: its level may have a comma
		options += `,context="` + r.Label + `"`
	}
	if err := unix.Mount("gantry", r.Target, "overlay", flags, options); err != nil {
		return fmt.Errorf("overlay on %s: %w", r.Target, err)
	}
	return nil
}

// mapLower clones the lower trees with their owners mapped for a user namespace.
// On kernel 6.12 overlay takes no detached mounts, so they get a place first.
func mapLower(r Rootfs) ([]string, error) {
	out := make([]string, len(r.Lower))
	for i, source := range r.Lower {
		out[i] = filepath.Join(filepath.Dir(r.Target), "lower", fmt.Sprint(i))
		if err := mountTree(Tree{Source: source, Target: out[i], UserNS: r.UserNS}); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Trees is where the targets of trees lie: on a tmpfs of our own namespace, so
// that nothing of them stays.
const Trees = RunRoot + "/trees"

func mountTrees(trees []Tree) error {
	if len(trees) == 0 {
		return nil
	}
	if err := os.MkdirAll(Trees, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("gantry", Trees, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=700,size=1m"); err != nil {
		return fmt.Errorf("tmpfs on %s: %w", Trees, err)
	}
	for _, t := range trees {
		if err := mountTree(t); err != nil {
			return err
		}
	}
	return nil
}

// mountTree clones a read-only tree, or what is at a path in it, onto a target,
// mapped if asked for.
func mountTree(t Tree) error {
	from, err := openSub(t)
	if err != nil {
		return fmt.Errorf("open %s in %s: %w", t.Sub, t.Source, err)
	}
	defer unix.Close(from)
	if err := makeTarget(from, t.Target); err != nil {
		return err
	}
	fd, err := unix.OpenTree(from, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("clone %s: %w", t.Source, err)
	}
	defer unix.Close(fd)
	if t.UserNS != "" {
		if err := mapOwners(fd, t.UserNS); err != nil {
			return fmt.Errorf("map the owners of %s: %w", t.Source, err)
		}
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, t.Target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount %s on %s: %w", t.Source, t.Target, err)
	}
	return nil
}

// openSub follows the symbolic links of an image as if the tree were the root.
func openSub(t Tree) (int, error) {
	root, err := unix.Open(t.Source, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil || t.Sub == "" {
		return root, err
	}
	defer unix.Close(root)
	return unix.Openat2(root, t.Sub, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
}

// makeTarget makes a mount point of the same kind as what is open as fd.
func makeTarget(fd int, target string) error {
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return err
	}
	if stat.Mode&unix.S_IFMT == unix.S_IFDIR {
		return os.MkdirAll(target, 0o700)
	}
	return os.WriteFile(target, nil, 0o600)
}

func mapOwners(tree int, userNS string) error {
	ns, err := os.Open(userNS)
	if err != nil {
		return err
	}
	defer ns.Close()
	return unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{
		Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd()),
	})
}
