package erofs

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"

	"golang.org/x/sys/unix"
)

var le = binary.LittleEndian

// layout is where everything of a tree goes. Inodes come first, root at their
// head since its number has 16 bits only; then the blocks of directories and
// targets that do not fit behind their inode.
type layout struct {
	nodes   []*Node // each once, in the order of their place
	parents map[*Node]*Node
	start   int64 // first block of metadata
	size    int64 // bytes of inodes
	end     int64 // first block behind the image
	devices int
	chunked bool
}

// firstInode leaves number 0 unused: it is no valid inode number to user space.
const firstInode = inodeSize

// plan gives every node of a tree its number and place.
func plan(root *Node, start int64, devices int) (*layout, error) {
	if root == nil || !root.IsDir() {
		return nil, errors.New("the root is not a directory")
	}
	l := &layout{parents: map[*Node]*Node{}, start: start, devices: devices, size: firstInode}
	if err := l.number(root); err != nil {
		return nil, err
	}
	l.end = start + Blocks(l.size)
	for _, n := range l.nodes {
		if size := n.outOfLine(); size > 0 {
			n.data = uint32(l.end)
			l.end += Blocks(int64(size))
		}
	}
	if l.end >= nullBlock {
		return nil, fmt.Errorf("larger than %d blocks", uint32(nullBlock))
	}
	return l, nil
}

// number walks the tree breadth first, so that the inodes of a directory lie
// together.
func (l *layout) number(root *Node) error {
	seen := map[*Node]bool{root: true}
	l.parents[root] = root
	root.links = 2
	queue := []*Node{root}
	for len(queue) > 0 {
		n := queue[0]
		queue = queue[1:]
		if err := l.place(n); err != nil {
			return err
		}
		if !n.IsDir() {
			continue
		}
		for _, name := range n.sorted {
			if name == "." || name == ".." {
				continue
			}
			child := n.Children[name]
			if err := validEntry(name, child); err != nil {
				return err
			}
			if seen[child] {
				if child.IsDir() {
					return fmt.Errorf("%q: a directory cannot have two names", name)
				}
				child.links++
				continue
			}
			seen[child] = true
			child.links = 1
			if child.IsDir() {
				child.links = 2
				n.links++
				l.parents[child] = n
			}
			queue = append(queue, child)
		}
	}
	return nil
}

func validEntry(name string, n *Node) error {
	switch {
	case name == "" || len(name) > MaxName:
		return fmt.Errorf("name of %d bytes: want 1 to %d", len(name), MaxName)
	case n == nil || n.fileType() == 0:
		return fmt.Errorf("%q: unknown type of file", name)
	}
	for i := range len(name) {
		if name[i] == '/' || name[i] == 0 {
			return fmt.Errorf("%q: not a file's name", name)
		}
	}
	return nil
}

// place gives a node its number. An inode and what is inline behind it stay in
// one block; attributes and chunk indexes may go on into the next.
func (l *layout) place(n *Node) error {
	var err error
	if n.nxattr, err = xattrSize(n.Xattrs); err != nil {
		return err
	}
	if err := l.placeTail(n); err != nil {
		return err
	}
	together := int64(inodeSize)
	if n.layout() == layoutInline {
		if together += int64(n.nxattr + n.tail); together > BlockSize {
			n.tail, together = 0, inodeSize
		}
	}
	pos := l.size
	if pos%BlockSize+together > BlockSize {
		pos = alignUp64(pos, BlockSize)
	}
	n.nid = uint64(pos) >> slotBits
	n.ino = uint32(len(l.nodes) + 1)
	l.nodes = append(l.nodes, n)
	head := int64(inodeSize + n.nxattr)
	if n.layout() == layoutChunk {
		head = alignUp64(head, indexSize)
		l.chunked = true
	}
	l.size = alignUp64(pos+head+int64(n.tail), 1<<slotBits)
	return nil
}

// placeTail decides what stands behind the inode.
func (l *layout) placeTail(n *Node) error {
	n.tail, n.bytes = 0, 0
	switch {
	case n.IsDir():
		n.sorted = n.names()
		n.bytes = direntsSize(n.sorted)
		n.tail = n.bytes
	case n.IsSymlink():
		if len(n.Target) == 0 || len(n.Target) > MaxTarget {
			return fmt.Errorf("symlink target of %d bytes: want 1 to %d", len(n.Target), MaxTarget)
		}
		n.bytes = len(n.Target)
		n.tail = n.bytes
	case n.IsRegular() && n.Size > 0 && n.Device > 0:
		if int(n.Device) > l.devices {
			return fmt.Errorf("data in device %d of %d", n.Device, l.devices)
		}
		if n.Size > 1<<maxChunk {
			return fmt.Errorf("file of %d bytes: at most %d are possible", n.Size, int64(1)<<maxChunk)
		}
		n.tail = indexSize
	}
	return nil
}

func alignUp64(n, to int64) int64 { return (n + to - 1) / to * to }

func (n *Node) layout() int {
	switch {
	case n.IsRegular() && n.Size > 0 && n.Device > 0:
		return layoutChunk
	case n.tail > 0:
		return layoutInline
	default:
		return layoutPlain
	}
}

// outOfLine is the size of what needs blocks of its own.
func (n *Node) outOfLine() int {
	if n.tail > 0 {
		return 0
	}
	return n.bytes
}

// write writes inodes and blocks.
func (l *layout) write(f *os.File) error {
	out := bufio.NewWriterSize(io.NewOffsetWriter(f, l.start*BlockSize), writeSize)
	var at int64
	var pad [BlockSize]byte
	fill := func(to int64) error {
		for at < to {
			n, err := out.Write(pad[:min(to-at, BlockSize)])
			if err != nil {
				return err
			}
			at += int64(n)
		}
		return nil
	}
	put := func(pos int64, data []byte) error {
		if err := fill(pos); err != nil {
			return err
		}
		n, err := out.Write(data)
		at += int64(n)
		return err
	}
	for _, n := range l.nodes {
		if err := put(int64(n.nid)<<slotBits, l.inode(n)); err != nil {
			return err
		}
	}
	for _, n := range l.nodes {
		if n.outOfLine() == 0 {
			continue
		}
		if err := put((int64(n.data)-l.start)*BlockSize, l.body(n)); err != nil {
			return err
		}
	}
	if err := fill((l.end - l.start) * BlockSize); err != nil {
		return err
	}
	return out.Flush()
}

// inode encodes an inode, its attributes and what is inline.
func (l *layout) inode(n *Node) []byte {
	b := make([]byte, inodeSize, inodeSize+n.nxattr+n.tail+indexSize)
	le.PutUint16(b[0:], uint16(1|n.layout()<<1))
	if n.nxattr > 0 {
		le.PutUint16(b[2:], uint16(1+(n.nxattr-xattrHeaderSize)/4))
	}
	le.PutUint16(b[4:], uint16(n.Mode))
	var tail []byte
	size, u := uint64(0), uint32(0)
	switch {
	case n.IsDir() || n.IsSymlink():
		size, u = uint64(n.bytes), n.data
		if n.tail > 0 {
			tail = l.body(n)
		}
	case n.layout() == layoutChunk:
		bits := chunkBits(n.Size)
		size, u = uint64(n.Size), uint32(chunkWithIndexes|bits)
		tail = make([]byte, indexSize)
		le.PutUint16(tail[2:], n.Device)
		le.PutUint32(tail[4:], n.Block)
	case n.IsRegular():
		size, u = uint64(n.Size), n.Block
		if n.Size == 0 {
			u = nullBlock
		}
	default:
		u = encodeDev(n.Rdev)
	}
	le.PutUint64(b[8:], size)
	le.PutUint32(b[16:], u)
	le.PutUint32(b[20:], n.ino)
	le.PutUint32(b[24:], n.UID)
	le.PutUint32(b[28:], n.GID)
	le.PutUint64(b[32:], uint64(n.Mtime))
	le.PutUint32(b[40:], n.Nsec)
	le.PutUint32(b[44:], n.links)
	b = appendXattrs(b, n.Xattrs)
	if n.tail == 0 {
		return b
	}
	if n.layout() == layoutChunk && len(b)%indexSize != 0 {
		b = append(b, 0, 0, 0, 0)
	}
	return append(b, tail...)
}

// body is the content of a directory or symlink.
func (l *layout) body(n *Node) []byte {
	if n.IsDir() {
		return l.dirents(n)
	}
	return []byte(n.Target)
}

// chunkBits makes one chunk of a file: its size, rounded up to a power of two
// blocks.
func chunkBits(size int64) int {
	bits := 0
	for int64(BlockSize)<<bits < size {
		bits++
	}
	return bits
}

// encodeDev encodes a device number as the kernel's new_encode_dev does.
func encodeDev(dev uint64) uint32 {
	major, minor := unix.Major(dev), unix.Minor(dev)
	return minor&0xff | major<<8 | (minor&^0xff)<<12
}

// super encodes the super block and the device table.
func (w *Writer) super(l *layout) []byte {
	b := make([]byte, w.data*BlockSize)
	s := b[superStart:]
	le.PutUint32(s[0:], superMagic)
	le.PutUint32(s[8:], compatMtime)
	s[12] = blockBits
	le.PutUint16(s[14:], uint16(l.nodes[0].nid))
	le.PutUint64(s[16:], uint64(len(l.nodes)))
	le.PutUint32(s[36:], uint32(l.end))
	le.PutUint32(s[40:], uint32(l.start))
	copy(s[48:64], w.opts.UUID[:])
	var incompat uint32
	if l.chunked {
		incompat |= incompatChunked
	}
	if len(w.opts.Devices) > 0 {
		incompat |= incompatDevices | incompatChunked
		le.PutUint16(s[86:], uint16(len(w.opts.Devices)))
		le.PutUint16(s[88:], (superStart+superSize)/deviceSize)
	}
	le.PutUint32(s[80:], incompat)
	// The devices behind this image, in one piece, are as good as apart.
	mapped := uint64(l.end)
	for i, d := range w.opts.Devices {
		slot := s[superSize+i*deviceSize:]
		copy(slot[:64], d.Tag)
		le.PutUint32(slot[64:], d.Blocks)
		if mapped < math.MaxUint32 {
			le.PutUint32(slot[68:], uint32(mapped))
		}
		mapped += uint64(d.Blocks)
	}
	return b
}
