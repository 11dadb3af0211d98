package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"maps"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"gantry/internal/image/erofs"
	"gantry/internal/pod"
)

// Marks that a layer's image carries for its merge, as attributes that no archive
// can set: all of trusted.* is taken out of archives.
const (
	// markOpaque is overlayfs's own: what is below this directory does not count.
	markOpaque = "trusted.overlay.opaque"
	// markImplied is on a directory that the archive only speaks of in other
	// entries' names. It has the attributes of the one below it, if there is one.
	markImplied = "trusted.gantry.implied"
	// markLink is on an empty file: a hard link to this path in a lower layer.
	markLink = "trusted.gantry.link"
)

// What archives call deleted files.
const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh."
	whiteoutOpaque = ".wh..wh..opq"
)

const maxMtime = 1 << 40

// errRefused marks content that we understood and do not want: there is no need
// to look further for a reason.
var errRefused = fmt.Errorf("content refused: %w", pod.ErrInvalid)

// archive turns a tar stream into a tree. It is the only reader of the archive,
// so nothing that it checked can be read in another way later. Names are resolved
// in the tree itself: no path of the host is ever made from them.
type archive struct {
	out    *erofs.Writer
	limits limits
	root   *erofs.Node

	whiteouts map[*erofs.Node]map[string]bool
	opaque    map[*erofs.Node]bool
	entries   int
	bytes     int64 // of files
	steps     int   // along symlinks
	devices   int   // nodes below dev/ that were left out
	// implied are the attributes of all implied directories.
	implied map[string]string
}

// readArchive reads a layer's archive to its end, files' data into out, and
// returns its tree with overlayfs's whiteouts and our marks.
func readArchive(r io.Reader, out *erofs.Writer, l limits) (*archive, error) {
	a := &archive{
		out: out, limits: l, implied: map[string]string{markImplied: "y"},
		whiteouts: map[*erofs.Node]map[string]bool{}, opaque: map[*erofs.Node]bool{},
	}
	a.root = a.impliedDir()
	in := &countingReader{r: r, left: l.bytes, image: l.image}
	tr := tar.NewReader(in)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read archive: %w", err)
		}
		if err := a.entry(owned(h), tr); err != nil {
			return nil, fmt.Errorf("entry %s: %w", shown(h.Name), err)
		}
	}
	// The digest is that of the whole stream, padding included.
	if _, err := io.Copy(io.Discard, in); err != nil {
		return nil, fmt.Errorf("read archive: %w", err)
	}
	a.finish()
	return a, nil
}

func shown(name string) string {
	if len(name) > 200 {
		name = name[:200] + "…"
	}
	return strconv.Quote(name)
}

// countingReader ends a stream that is longer than it may be.
type countingReader struct {
	r     io.Reader
	left  int64
	image *budget
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if c.left -= int64(n); c.left < 0 {
		return 0, fmt.Errorf("archive is larger than this layer may be: %w", errRefused)
	}
	if over := c.image.grow(&c.image.archived, n); over != nil {
		return 0, over
	}
	return n, err
}

// owned copies the strings that a tree may keep: those of a PAX header are parts of
// the whole record, which may be a megabyte and would stay in memory with them.
func owned(h *tar.Header) *tar.Header {
	h.Name, h.Linkname = strings.Clone(h.Name), strings.Clone(h.Linkname)
	return h
}

func (a *archive) entry(h *tar.Header, data io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	parts, err := splitName(h.Name)
	if err != nil {
		return err
	}
	if err := a.count(); err != nil {
		return err
	}
	if len(parts) == 0 {
		if h.Typeflag != tar.TypeDir {
			return fmt.Errorf("the root must be a directory: %w", errRefused)
		}
		return a.setAttributes(a.root, h, unix.S_IFDIR)
	}
	last := parts[len(parts)-1]
	if strings.HasPrefix(last, whiteoutPrefix) {
		return a.whiteout(parts[:len(parts)-1], last)
	}
	if isDevice(h) && !isWhiteoutDevice(h) {
		if parts[0] == "dev" {
			a.devices++ // whoever runs the image mounts its own /dev
			return nil
		}
		return fmt.Errorf("device node outside of dev/: %w", errRefused)
	}
	dir, err := a.dir(parts[:len(parts)-1])
	if err != nil {
		return err
	}
	if isWhiteoutDevice(h) {
		return a.hide(dir, last)
	}
	return a.put(dir, last, h, data)
}

// count counts an entry, or a directory that one implies.
func (a *archive) count() error {
	if a.entries++; a.entries > a.limits.entries {
		return fmt.Errorf("more than %d entries: %w", a.limits.entries, errRefused)
	}
	return a.limits.image.count()
}

// keep puts a node into the tree, and counts the memory that it takes.
func (a *archive) keep(dir *erofs.Node, name string, n *erofs.Node) error {
	if err := a.limits.image.take(erofs.NameCost(name) + n.Cost()); err != nil {
		return err
	}
	dir.Children[name] = n
	return nil
}

func isDevice(h *tar.Header) bool { return h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock }

func isWhiteoutDevice(h *tar.Header) bool {
	return h.Typeflag == tar.TypeChar && h.Devmajor == 0 && h.Devminor == 0
}

// put makes one entry. A later one of the same name wins; a directory keeps what
// is in it.
func (a *archive) put(dir *erofs.Node, name string, h *tar.Header, data io.Reader) error {
	switch h.Typeflag {
	case tar.TypeDir:
		n := dir.Children[name]
		if n == nil || !n.IsDir() {
			n = erofs.NewDir(0)
		}
		if err := a.setAttributes(n, h, unix.S_IFDIR); err != nil {
			return err
		}
		return a.keep(dir, name, n)
	case tar.TypeLink:
		n, err := a.link(h)
		if err != nil || n == nil {
			return err
		}
		return a.keep(dir, name, n)
	}
	n, err := a.file(h, data)
	if err != nil {
		return err
	}
	return a.keep(dir, name, n)
}

// file makes what is neither directory nor hard link.
func (a *archive) file(h *tar.Header, data io.Reader) (*erofs.Node, error) {
	n := &erofs.Node{}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		if err := a.setAttributes(n, h, unix.S_IFREG); err != nil {
			return nil, err
		}
		return n, a.content(n, h.Size, data)
	case tar.TypeSymlink:
		if h.Linkname == "" || len(h.Linkname) > erofs.MaxTarget {
			return nil, fmt.Errorf("symlink target of %d bytes: %w", len(h.Linkname), errRefused)
		}
		n.Target = h.Linkname
		return n, a.setAttributes(n, h, unix.S_IFLNK)
	case tar.TypeFifo:
		return n, a.setAttributes(n, h, unix.S_IFIFO)
	default:
		return nil, fmt.Errorf("entry of unknown type %q: %w", h.Typeflag, errRefused)
	}
}

// content copies a file's data. Its size is checked before a byte is read: a
// sparse file can claim any.
func (a *archive) content(n *erofs.Node, size int64, data io.Reader) error {
	if size < 0 || size > a.limits.bytes-a.bytes {
		return fmt.Errorf("file of %d bytes: this layer's files may be %d bytes in all: %w", size, a.limits.bytes, errRefused)
	}
	a.bytes += size
	n.Size = size
	var err error
	n.Block, err = a.out.Data(&growingReader{data, a.limits.image}, size)
	return err
}

// growingReader counts what comes out of an archive, holes of sparse files too.
type growingReader struct {
	r     io.Reader
	image *budget
}

func (g *growingReader) Read(p []byte) (int, error) {
	n, err := g.r.Read(p)
	if over := g.image.grow(&g.image.unpacked, n); over != nil {
		return 0, over
	}
	return n, err
}

// link finds the target of a hard link: a file of this layer, or by a mark one of
// a lower layer. It is nil for a device that was left out.
func (a *archive) link(h *tar.Header) (*erofs.Node, error) {
	parts, err := splitName(strings.TrimPrefix(h.Linkname, "/"))
	if err != nil {
		return nil, fmt.Errorf("hard link to %s: %w", shown(h.Linkname), err)
	}
	if len(parts) == 0 {
		return nil, fmt.Errorf("hard link to a directory: %w", errRefused)
	}
	target, err := lookup(a.root, parts, &a.steps)
	switch {
	case err != nil:
		return nil, fmt.Errorf("hard link to %s: %w", shown(h.Linkname), err)
	case target == nil && parts[0] == "dev" && a.devices > 0:
		return nil, nil
	case target == nil:
		return &erofs.Node{Mode: unix.S_IFREG, Xattrs: map[string]string{markLink: strings.Join(parts, "/")}}, nil
	case target.IsDir():
		return nil, fmt.Errorf("hard link to directory %s: %w", shown(h.Linkname), errRefused)
	default:
		return target, nil
	}
}

// whiteout notes a deletion.
func (a *archive) whiteout(parent []string, name string) error {
	if name != whiteoutOpaque && strings.HasPrefix(name, whiteoutMeta) {
		return nil // other notes of aufs, which mean nothing here
	}
	dir, err := a.dir(parent)
	if err != nil {
		return err
	}
	if name == whiteoutOpaque {
		a.opaque[dir] = true
		return a.limits.image.take(a.costOfMark())
	}
	hidden := strings.TrimPrefix(name, whiteoutPrefix)
	if hidden == "" || hidden == "." || hidden == ".." {
		return fmt.Errorf("whiteout of nothing: %w", errRefused)
	}
	return a.hide(dir, hidden)
}

func (a *archive) hide(dir *erofs.Node, name string) error {
	cost := erofs.NameCost(name) + a.costOfMark()
	if a.whiteouts[dir] == nil {
		cost += erofs.NewDir(0).Cost()
		a.whiteouts[dir] = map[string]bool{}
	}
	a.whiteouts[dir][name] = true
	return a.limits.image.take(cost)
}

// costOfMark is what a node costs at most that is no more than a mark.
func (a *archive) costOfMark() int64 { return (&erofs.Node{Xattrs: a.implied}).Cost() }

// finish puts whiteouts into the tree. They speak of lower layers only, wherever
// in the archive they stand: what this layer has under the same name stays.
func (a *archive) finish() {
	for dir, names := range a.whiteouts {
		for name := range names {
			switch n := dir.Children[name]; {
			case n == nil:
				dir.Children[name] = &erofs.Node{Mode: unix.S_IFCHR}
			case n.IsDir():
				a.opaque[n] = true
			}
		}
	}
	for dir := range a.opaque {
		mark(dir, markOpaque, "y")
	}
}

func mark(n *erofs.Node, name, value string) {
	n.Xattrs = maps.Clone(n.Xattrs)
	if n.Xattrs == nil {
		n.Xattrs = map[string]string{}
	}
	n.Xattrs[name] = value
}

// setAttributes takes over owner, mode, time and attributes of an entry.
func (a *archive) setAttributes(n *erofs.Node, h *tar.Header, format uint32) error {
	if h.Uid < 0 || h.Gid < 0 || h.Uid >= 1<<32-1 || h.Gid >= 1<<32-1 {
		return fmt.Errorf("owner %d:%d: %w", h.Uid, h.Gid, errRefused)
	}
	n.Mode = format | uint32(h.Mode)&0o7777
	n.UID, n.GID = uint32(h.Uid), uint32(h.Gid)
	n.Mtime, n.Nsec = h.ModTime.Unix(), uint32(h.ModTime.Nanosecond())
	if n.Mtime < 0 || n.Mtime > maxMtime {
		n.Mtime, n.Nsec = 0, 0
	}
	return a.setXattrs(n, h)
}

func (a *archive) setXattrs(n *erofs.Node, h *tar.Header) error {
	n.Xattrs = nil
	size := 0
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, "SCHILY.xattr.")
		if !ok || !keepXattr(name) {
			continue
		}
		if len(name) > erofs.MaxName || strings.IndexByte(name, 0) >= 0 {
			return fmt.Errorf("extended attribute %s: %w", shown(name), errRefused)
		}
		if size += len(name) + len(value) + 16; size > erofs.MaxXattrs {
			return fmt.Errorf("extended attributes of more than %d bytes: %w", erofs.MaxXattrs, errRefused)
		}
		if n.Xattrs == nil {
			n.Xattrs = map[string]string{}
		}
		n.Xattrs[strings.Clone(name)] = strings.Clone(value)
	}
	return nil
}

// keepXattr says which attributes an image may bring. trusted.* and user.overlay.*
// speak to overlayfs, and labels of the builder's SELinux mean nothing here.
func keepXattr(name string) bool {
	switch {
	case name == "security.selinux" || strings.HasPrefix(name, "user.overlay."):
		return false
	case name == "system.posix_acl_access" || name == "system.posix_acl_default":
		return true
	default:
		return len(name) > len("security.") && strings.HasPrefix(name, "security.") ||
			len(name) > len("user.") && strings.HasPrefix(name, "user.")
	}
}
