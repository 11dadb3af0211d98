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

// lookupTries bounds how often a lookup is tried again: the kernel gives up one that
// goes upwards while anything on the machine is renamed or mounted.
const lookupTries = 1000

// lookup opens what p names, with the directory as the root.
func (r rootfs) lookup(p string, flags, resolve uint64) (int, error) {
	name := strings.TrimPrefix(path.Clean("/"+p), "/")
	if name == "" {
		name = "."
	}
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | resolve}
	for try := 0; ; try++ {
		fd, err := unix.Openat2(r.fd, name, &how)
		if try == lookupTries || !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

func (r rootfs) open(p string) (int, error) { return r.lookup(p, unix.O_PATH, 0) }

// directory opens one, and makes what of it is not there.
func (r rootfs) directory(p string) (int, error) {
	return r.openOrMake(p, func(dir int, name string) error { return unix.Mkdirat(dir, name, 0o755) })
}

// file opens one, and makes it if it is not there.
func (r rootfs) file(p string) (int, error) {
	return r.openOrMake(p, func(dir int, name string) error {
		fd, err := unix.Openat(dir, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
		if err == nil {
			err = unix.Close(fd)
		}
		return err
	})
}

// mostLinks bounds the symbolic links on the way to a path, as the kernel does.
const mostLinks = 40

// openOrMake opens p. What is not there is made, by make if it is p itself; links
// lead to where it is made. So an image's /etc/resolv.conf may be a link to a file that only
// a running system has.
func (r rootfs) openOrMake(p string, create func(dir int, name string) error) (int, error) {
	fd, err := r.open(p)
	if !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	at, links := "/", 0 // at has no link in it
	left := strings.Split(path.Clean("/" + p)[1:], "/")
	for len(left) > 0 {
		name := left[0]
		left = left[1:]
		if name == "" || name == "." {
			continue
		}
		if name == ".." {
			at = path.Dir(at)
			continue
		}
		make := create
		if len(left) > 0 {
			make = func(dir int, name string) error { return unix.Mkdirat(dir, name, 0o755) }
		}
		link, err := r.step(at, name, make)
		if err != nil {
			return -1, err
		}
		if link == "" {
			at = path.Join(at, name)
			continue
		}
		if links++; links > mostLinks {
			return -1, unix.ELOOP
		}
		if path.IsAbs(link) {
			at = "/"
		}
		left = append(strings.Split(link, "/"), left...)
	}
	return r.lookup(at, unix.O_PATH, unix.RESOLVE_NO_SYMLINKS)
}

// step makes sure that a directory has a name in it, and returns where that leads if it
// is a link.
func (r rootfs) step(dir, name string, make func(dir int, name string) error) (link string, err error) {
	fd, err := r.lookup(dir, unix.O_PATH|unix.O_DIRECTORY, unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	buffer := [unix.PathMax]byte{}
	n, err := unix.Readlinkat(fd, name, buffer[:])
	switch {
	case err == nil:
		return string(buffer[:n]), nil
	case errors.Is(err, unix.EINVAL): // it is there, and no link
		return "", nil
	case !errors.Is(err, unix.ENOENT):
		return "", err
	}
	if err := make(fd, name); err != nil && !errors.Is(err, unix.EEXIST) {
		return "", err
	}
	return "", nil
}

// parent opens the directory that p is to be in, and makes it if it is not there.
func (r rootfs) parent(p string) (fd int, name string, err error) {
	p = path.Clean("/" + p)
	fd, err = r.directory(path.Dir(p))
	return fd, path.Base(p), err
}

// regular opens a file for reading, but nothing that only looks like one: a device may
// act on it, and a pipe never ends.
func (r rootfs) regular(p string) (*os.File, error) {
	fd, err := r.open(p)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return nil, err
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, unix.EINVAL
	}
	return os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
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
	defer unix.Umask(unix.Umask(0))
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
	return unix.Fchownat(dir, name, int(d.UID), int(d.GID), unix.AT_SYMLINK_NOFOLLOW)
}

// existing opens what is at p, -1 if nothing is.
func (r rootfs) existing(p string) (int, error) {
	fd, err := r.open(p)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return -1, nil
	}
	return fd, err
}

// mask hides a file behind an empty one and a directory behind an empty one.
func (r rootfs) mask(p string) error {
	fd, err := r.existing(p)
	if err != nil || fd < 0 {
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
	fd, err := r.existing(p)
	if err != nil || fd < 0 {
		return err
	}
	defer unix.Close(fd)
	return r.show(fd, Mount{Target: p, Recursive: true, ReadOnly: true, AllReadOnly: true, Propagation: "rslave"})
}

// makeReadOnly closes what is mounted at dir to writing, not what is mounted in it.
func makeReadOnly(dir string) error {
	return unix.MountSetattr(unix.AT_FDCWD, dir, 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
}
