package engine

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// archiver writes a tar archive. After the first error it does nothing more; close
// returns it.
type archiver struct {
	ctx context.Context
	tar *tar.Writer
	err error
}

func newArchiver(ctx context.Context, w io.Writer) *archiver {
	return &archiver{ctx: ctx, tar: tar.NewWriter(w)}
}

func (a *archiver) close() error {
	return errors.Join(a.err, a.tar.Close())
}

func (a *archiver) data(name string, data []byte) {
	if a.err == nil {
		a.err = a.tar.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(data)), ModTime: time.Now()})
	}
	if a.err == nil {
		_, a.err = a.tar.Write(data)
	}
}

// file adds a file of ours.
func (a *archiver) file(name, from string) {
	if a.err != nil {
		return
	}
	f, err := os.Open(from)
	if err != nil {
		a.err = err
		return
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		a.err = err
		return
	}
	a.copy(&tar.Header{Name: name, Mode: 0o600, Size: st.Size(), ModTime: st.ModTime()}, f)
}

// tree adds a directory of files of ours.
func (a *archiver) tree(name, from string) {
	entries, err := os.ReadDir(from)
	if a.err == nil {
		a.err = err
	}
	if a.err == nil {
		a.err = a.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o700, ModTime: time.Now()})
	}
	for _, e := range entries {
		if e.Type().IsRegular() {
			a.file(path.Join(name, e.Name()), filepath.Join(from, e.Name()))
		}
	}
}

// copy writes as much as the header says: who changes a file meanwhile spoils that
// file alone.
func (a *archiver) copy(h *tar.Header, r io.Reader) {
	if a.err = a.tar.WriteHeader(h); a.err != nil {
		return
	}
	n, err := io.Copy(a.tar, io.LimitReader(&untilDone{a.ctx, r}, h.Size))
	if err == nil && n < h.Size {
		_, err = io.CopyN(a.tar, &untilDone{a.ctx, zeros{}}, h.Size-n)
	}
	a.err = err
}

type untilDone struct {
	ctx context.Context
	r   io.Reader
}

func (u *untilDone) Read(p []byte) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	return u.r.Read(p)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// diff archives what an app changed of its file system, into a file of the checkpoint's,
// and lists what it deleted. The app runs on and may be hostile: what it makes of its
// files meanwhile may be missing or torn, and leads nowhere else.
func (c *checkpoint) diff(ctx context.Context) (archive string, deleted []string, err error) {
	archive = filepath.Join(c.dir, "rootfs-diff.tar")
	out, err := os.OpenFile(archive, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", nil, err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	root, err := openDir(unix.AT_FDCWD, c.e.upper(c.app))
	if err != nil {
		return "", nil, err
	}
	sparse := &sparseWriter{f: out}
	d := &differ{archiver: newArchiver(ctx, sparse), deleted: []string{}}
	d.below(root, "", usageDepth)
	return archive, d.deleted, errors.Join(d.close(), sparse.end())
}

// differ archives the directory that an overlay writes to.
type differ struct {
	*archiver
	deleted []string
	named   int // bytes of deleted
}

// maxDeleted bounds the names of what an app deleted: they are in memory.
const maxDeleted = 32 << 20

func (d *differ) gone(name string) {
	if d.named += len(name); d.named > maxDeleted {
		d.err = fmt.Errorf("more than %d bytes of names of deleted files", maxDeleted)
		return
	}
	d.deleted = append(d.deleted, name)
}

// opaque marks a directory of which nothing below counts.
const opaque = "trusted.overlay.opaque"

// below closes dir.
func (d *differ) below(dir *os.File, at string, depth int) {
	defer dir.Close()
	for d.err == nil {
		names, err := dir.Readdirnames(usageNames)
		for _, name := range names {
			d.entry(int(dir.Fd()), name, path.Join(at, name), depth)
		}
		if err != nil {
			if err != io.EOF {
				d.err = err
			}
			return
		}
	}
}

func (d *differ) entry(dir int, name, at string, depth int) {
	var st unix.Stat_t
	if d.err != nil || unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return // it went meanwhile
	}
	h := &tar.Header{
		Name: at, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Sec, st.Mtim.Nsec), Format: tar.FormatPAX,
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		d.dir(dir, name, h, depth)
	case unix.S_IFREG:
		d.regular(dir, name, h)
	case unix.S_IFLNK:
		buf := make([]byte, unix.PathMax)
		if n, err := unix.Readlinkat(dir, name, buf); err == nil {
			h.Typeflag, h.Linkname = tar.TypeSymlink, string(buf[:n])
			d.header(h)
		}
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
		d.header(h)
	case unix.S_IFCHR:
		if st.Rdev == 0 {
			d.gone(at)
		}
	}
}

func (d *differ) header(h *tar.Header) {
	if d.err == nil {
		d.err = d.tar.WriteHeader(h)
	}
}

func (d *differ) dir(parent int, name string, h *tar.Header, depth int) {
	sub, err := openDir(parent, name)
	if err != nil {
		return
	}
	if depth == 0 {
		sub.Close()
		d.err = fmt.Errorf("%s: more than %d directories in each other", h.Name, usageDepth)
		return
	}
	var value [1]byte
	if n, err := unix.Fgetxattr(int(sub.Fd()), opaque, value[:]); err == nil && n == 1 && value[0] == 'y' {
		d.gone(h.Name)
	}
	at := h.Name
	h.Typeflag, h.Name = tar.TypeDir, at+"/"
	d.header(h)
	d.below(sub, at, depth-1)
}

func (d *differ) regular(parent int, name string, h *tar.Header) {
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return // it is something else by now
	}
	h.Typeflag, h.Size = tar.TypeReg, st.Size()
	h.PAXRecords = capabilityOf(fd)
	if d.err == nil {
		d.copy(h, f)
	}
}

// capabilityOf is the one attribute of a program without which it would do less.
func capabilityOf(fd int) map[string]string {
	var buf [64]byte
	n, err := unix.Fgetxattr(fd, "security.capability", buf[:])
	if err != nil || n <= 0 {
		return nil
	}
	return map[string]string{"SCHILY.xattr.security.capability": string(buf[:n])}
}
