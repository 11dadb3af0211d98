package initproc

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Mount is what an app that we run ourselves sees at Target beside its image.
type Mount struct {
	Target string `json:"target"` // in the rootfs
	// Type is a kernel file system's, with its Options. "" shows the host's Source.
	Type      string `json:"type,omitempty"`
	Source    string `json:"source,omitempty"`
	Recursive bool   `json:"recursive,omitempty"`
	// Sub is a part of Source, an image's tree.
	Sub         string   `json:"sub,omitempty"`
	ReadOnly    bool     `json:"readOnly,omitempty"`
	AllReadOnly bool     `json:"allReadOnly,omitempty"`
	Propagation string   `json:"propagation,omitempty"` // rprivate, rslave or rshared
	Options     []string `json:"options,omitempty"`
}

// Device is a node to make in the rootfs.
type Device struct {
	Path  string `json:"path"`
	Mode  uint32 `json:"mode"` // with its type
	Major uint32 `json:"major"`
	Minor uint32 `json:"minor"`
	UID   uint32 `json:"uid,omitempty"`
	GID   uint32 `json:"gid,omitempty"`
}

// Link is a symbolic link to make in the rootfs, unless there is something.
type Link struct {
	Path string `json:"path"`
	To   string `json:"to"`
}

// rootfs is an app's root directory while it is being furnished. What an image has in
// it may be anything: every path is looked up with the directory as the root.
type rootfs struct{ fd int }

func openRootfs(dir string) (rootfs, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	return rootfs{fd}, err
}

func (r rootfs) close() { unix.Close(r.fd) }

func (r rootfs) furnish(s Self) error {
	for _, m := range s.Mounts {
		if err := r.mount(m); err != nil {
			return fmt.Errorf("mount %s: %w", m.Target, err)
		}
	}
	for _, l := range s.Links {
		if err := r.link(l); err != nil {
			return fmt.Errorf("link %s: %w", l.Path, err)
		}
	}
	for _, d := range s.Devices {
		if err := r.device(d); err != nil {
			return fmt.Errorf("device %s: %w", d.Path, err)
		}
	}
	for _, p := range s.Masked {
		if err := r.mask(p); err != nil {
			return fmt.Errorf("mask %s: %w", p, err)
		}
	}
	for _, p := range s.ReadOnly {
		if err := r.readOnly(p); err != nil {
			return fmt.Errorf("make %s read-only: %w", p, err)
		}
	}
	return nil
}

func (r rootfs) open(p string) (int, error) {
	return unix.Openat2(r.fd, strings.TrimPrefix(p, "/"), &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
}

// parent opens the directory that p is to be in, and makes it if it is not there.
func (r rootfs) parent(p string) (fd int, name string, err error) {
	dir := path.Dir(path.Clean("/" + p))
	if dir == "/" {
		fd, err = unix.Dup(r.fd)
	} else {
		fd, err = r.directory(dir)
	}
	return fd, path.Base(p), err
}

// directory opens one, and makes what of it is not there.
func (r rootfs) directory(p string) (int, error) {
	fd, err := r.open(p)
	if !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	dir, name, err := r.parent(p)
	if err != nil {
		return -1, err
	}
	defer unix.Close(dir)
	if err := unix.Mkdirat(dir, name, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, err
	}
	return r.open(p)
}

// file opens one, and makes it if it is not there.
func (r rootfs) file(p string) (int, error) {
	fd, err := r.open(p)
	if !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	dir, name, err := r.parent(p)
	if err != nil {
		return -1, err
	}
	defer unix.Close(dir)
	made, err := unix.Openat(dir, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, err
	}
	if err == nil {
		unix.Close(made)
	}
	return r.open(p)
}

// place opens, and makes, what a mount of what is open as fd goes on.
func (r rootfs) place(p string, fd int) (int, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return -1, err
	}
	if stat.Mode&unix.S_IFMT == unix.S_IFDIR {
		return r.directory(p)
	}
	return r.file(p)
}

func (r rootfs) mount(m Mount) error {
	if m.Type == "" {
		return r.bind(m)
	}
	target, err := r.directory(m.Target)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	flags, data := mountOptions(m.Options)
	return unix.Mount(m.Source, fmt.Sprintf("/proc/self/fd/%d", target), m.Type, flags, data)
}

// mountOptions takes flags and what is the file system's own apart.
func mountOptions(options []string) (flags uintptr, data string) {
	known := map[string]uintptr{
		"ro": unix.MS_RDONLY, "nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC,
		"relatime": unix.MS_RELATIME, "strictatime": unix.MS_STRICTATIME, "rw": 0,
	}
	var rest []string
	for _, o := range options {
		if flag, ok := known[o]; ok {
			flags |= flag
		} else {
			rest = append(rest, o)
		}
	}
	return flags, strings.Join(rest, ",")
}

func (r rootfs) bind(m Mount) error {
	source, err := openSub(Tree{Source: m.Source, Sub: m.Sub})
	if err != nil {
		return fmt.Errorf("open %s: %w", path.Join(m.Source, m.Sub), err)
	}
	defer unix.Close(source)
	return r.show(source, m)
}

// show mounts what is open as source.
func (r rootfs) show(source int, m Mount) error {
	target, err := r.place(m.Target, source)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	clone := uint(unix.AT_EMPTY_PATH | unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if m.Recursive {
		clone |= unix.AT_RECURSIVE
	}
	tree, err := unix.OpenTree(source, "", clone)
	if err != nil {
		return fmt.Errorf("clone: %w", err)
	}
	defer unix.Close(tree)
	for _, c := range m.attributes() {
		if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|c.flags, &c.attr); err != nil {
			return fmt.Errorf("set attributes: %w", err)
		}
	}
	if err := unix.MoveMount(tree, "", target, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("move: %w", err)
	}
	return nil
}

type attributeChange struct {
	attr  unix.MountAttr
	flags uint
}

// attributes are what a bind mount gets, the first for all that is below it too.
func (m Mount) attributes() []attributeChange {
	all, one := attributeChange{flags: unix.AT_RECURSIVE}, attributeChange{}
	switch m.Propagation {
	case "rshared":
		all.attr.Propagation = unix.MS_SHARED
	case "rslave":
		all.attr.Propagation = unix.MS_SLAVE
	default:
		all.attr.Propagation = unix.MS_PRIVATE
	}
	if m.AllReadOnly {
		all.attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if m.ReadOnly {
		one.attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	for _, o := range m.Options {
		switch o {
		case "nosuid":
			one.attr.Attr_set |= unix.MOUNT_ATTR_NOSUID
		case "nodev":
			one.attr.Attr_set |= unix.MOUNT_ATTR_NODEV
		case "noexec":
			one.attr.Attr_set |= unix.MOUNT_ATTR_NOEXEC
		}
	}
	return []attributeChange{all, one}
}

func (r rootfs) link(l Link) error {
	dir, name, err := r.parent(l.Path)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	if err := unix.Symlinkat(l.To, dir, name); !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// device makes a node. One that is there and is the same will do: with the host's
// /dev it is the host's own.
func (r rootfs) device(d Device) error {
	dir, name, err := r.parent(d.Path)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	number := unix.Mkdev(d.Major, d.Minor)
	err = unix.Mknodat(dir, name, d.Mode, int(number))
	if errors.Is(err, unix.EEXIST) {
		var have unix.Stat_t
		if err := unix.Fstatat(dir, name, &have, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		if have.Mode&unix.S_IFMT != d.Mode&unix.S_IFMT || have.Rdev != number {
			return errors.New("something else is there")
		}
		return nil
	}
	if err != nil {
		return err
	}
	if err := unix.Fchownat(dir, name, int(d.UID), int(d.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	return unix.Fchmodat(dir, name, d.Mode&0o7777, 0) // the umask took some of it
}

// mask hides a file behind an empty one and a directory behind an empty one.
func (r rootfs) mask(p string) error {
	fd, err := r.open(p)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return err
	}
	target := fmt.Sprintf("/proc/self/fd/%d", fd)
	if stat.Mode&unix.S_IFMT == unix.S_IFDIR {
		return unix.Mount("tmpfs", target, "tmpfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=555,size=0,nr_inodes=1")
	}
	return unix.Mount(os.DevNull, target, "", unix.MS_BIND, "")
}

// readOnly mounts what is at p, with all below, on itself.
func (r rootfs) readOnly(p string) error {
	fd, err := r.open(p)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return r.show(fd, Mount{Target: p, Recursive: true, ReadOnly: true, AllReadOnly: true, Propagation: "rslave"})
}

// makeReadOnly closes what is mounted at dir to writing, not what is mounted in it.
func makeReadOnly(dir string) error {
	return unix.MountSetattr(unix.AT_FDCWD, dir, 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
}
