// Package erofs writes EROFS images, the read-only file system of the Linux
// kernel that Gantry stores layers in.
//
// It writes the plain part of the format that every kernel since 5.16 reads: no
// compression, 64-byte inodes, file data in whole blocks. An image either holds
// its files' data itself (a layer), or points into the data of other images (the
// merge of layers), which are then its devices. The same tree and data always
// give the same bytes: there is no clock, no random number and no order of a map
// in them.
//
// The on-disk structures are those of the kernel's fs/erofs/erofs_fs.h.
package erofs

import (
	"fmt"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// BlockSize is the size of a block; data and devices are multiples of it.
const BlockSize = 1 << blockBits

const (
	blockBits  = 12
	superStart = 1024
	superSize  = 128
	superMagic = 0xE0F5E1E2
	deviceSize = 128
	slotBits   = 5 // inodes are addressed in units of 32 bytes
	inodeSize  = 64
	direntSize = 12
	indexSize  = 8
	nullBlock  = 1<<32 - 1
	maxChunk   = 31 + blockBits
	// MaxName and MaxTarget are the longest names and symlink targets of Linux.
	MaxName   = 255
	MaxTarget = unix.PathMax - 1
	// MaxXattrs bounds the bytes of all extended attributes of one inode.
	MaxXattrs = 64 << 10
)

const (
	compatMtime       = 0x2
	incompatChunked   = 0x4
	incompatDevices   = 0x8
	layoutPlain       = 0
	layoutInline      = 2
	layoutChunk       = 4
	chunkWithIndexes  = 0x20
	xattrHeaderSize   = 12
	xattrEntryMinSize = 4
)

// Node is an inode: a file, directory, symlink or special file. A node that
// stands in several places is a hard link.
type Node struct {
	Mode     uint32 // as in stat(2): type and permissions
	UID, GID uint32
	Mtime    int64
	Nsec     uint32
	Rdev     uint64            // devices, as unix.Mkdev makes it
	Target   string            // symlinks
	Xattrs   map[string]string // full names
	Size     int64             // regular files

	// Device and Block say where a regular file's data begins: in this image if
	// Device is 0, else in the image's Device-th device.
	Device uint16
	Block  uint32

	Children map[string]*Node // directories

	nid    uint64
	ino    uint32
	links  uint32
	sorted []string // names of a directory
	bytes  int      // of a directory's entries or of a target
	data   uint32   // first block of those, if they are not inline
	tail   int      // bytes inline, after the inode and its attributes
	nxattr int      // bytes of attributes
}

// NewDir returns an empty directory.
func NewDir(perm uint32) *Node {
	return &Node{Mode: unix.S_IFDIR | perm, Children: map[string]*Node{}}
}

// IsDir tells whether the node is a directory.
func (n *Node) IsDir() bool { return n.Mode&unix.S_IFMT == unix.S_IFDIR }

// IsRegular tells whether the node is a regular file.
func (n *Node) IsRegular() bool { return n.Mode&unix.S_IFMT == unix.S_IFREG }

// IsSymlink tells whether the node is a symbolic link.
func (n *Node) IsSymlink() bool { return n.Mode&unix.S_IFMT == unix.S_IFLNK }

// IsWhiteout tells whether the node is overlayfs's mark of a deleted file.
func (n *Node) IsWhiteout() bool { return n.Mode&unix.S_IFMT == unix.S_IFCHR && n.Rdev == 0 }

// What a tree takes in memory while an image is written or loaded, its highest
// amount: measured by TestCost, which fails if they are too low.
const (
	nodeCost  = 250
	nameCost  = 90
	dirCost   = 330
	xattrCost = 350
	pairCost  = 48
)

// Cost estimates the memory that a node takes.
func (n *Node) Cost() int64 {
	cost := nodeCost + len(n.Target)
	if n.IsDir() {
		cost += dirCost
	}
	if len(n.Xattrs) > 0 {
		cost += xattrCost
	}
	for name, value := range n.Xattrs {
		cost += pairCost + len(name) + len(value)
	}
	return int64(cost)
}

// NameCost estimates the memory that a name in a directory takes.
func NameCost(name string) int64 { return int64(nameCost + len(name)) }

// fileType is the type as a directory entry has it.
func (n *Node) fileType() byte {
	switch n.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return 1
	case unix.S_IFDIR:
		return 2
	case unix.S_IFCHR:
		return 3
	case unix.S_IFBLK:
		return 4
	case unix.S_IFIFO:
		return 5
	case unix.S_IFSOCK:
		return 6
	case unix.S_IFLNK:
		return 7
	default:
		return 0
	}
}

// names returns the names of a directory, sorted by their bytes, with "." and
// "..": the kernel searches them by halves.
func (n *Node) names() []string {
	names := make([]string, 0, len(n.Children)+2)
	names = append(names, ".", "..")
	for name := range n.Children {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

// xattrPrefixes are the name spaces that EROFS stores as one number.
var xattrPrefixes = []struct {
	prefix string
	index  byte
	whole  bool // the prefix is the name
}{
	{"user.", 1, false},
	{"system.posix_acl_access", 2, true},
	{"system.posix_acl_default", 3, true},
	{"trusted.", 4, false},
	{"security.", 6, false},
}

// splitXattr splits a full name into its name space and the rest.
func splitXattr(name string) (index byte, rest string, err error) {
	for _, p := range xattrPrefixes {
		if p.whole && name == p.prefix {
			return p.index, "", nil
		}
		if rest, ok := strings.CutPrefix(name, p.prefix); ok && !p.whole && rest != "" {
			if len(rest) > MaxName {
				break
			}
			return p.index, rest, nil
		}
	}
	return 0, "", fmt.Errorf("extended attribute %q: not in a name space that EROFS has", name)
}

// xattrSize is the size of a node's attributes on disk, 0 without any.
func xattrSize(xattrs map[string]string) (int, error) {
	if len(xattrs) == 0 {
		return 0, nil
	}
	size := xattrHeaderSize
	for name, value := range xattrs {
		_, rest, err := splitXattr(name)
		if err != nil {
			return 0, err
		}
		size += alignUp(xattrEntryMinSize+len(rest)+len(value), 4)
	}
	if size > MaxXattrs {
		return 0, fmt.Errorf("extended attributes: %d bytes, at most %d are possible", size, MaxXattrs)
	}
	return size, nil
}

func alignUp(n, to int) int { return (n + to - 1) / to * to }

// Blocks is how many blocks n bytes take.
func Blocks(n int64) int64 { return (n + BlockSize - 1) / BlockSize }
