package erofs

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// errCorrupt is what Load answers to anything a Writer would not have written.
var errCorrupt = errors.New("not an image of this program, or a damaged one")

// maxMeta bounds the metadata that Load takes into memory, whoever asks.
const maxMeta = 1 << 30

// Super is what Load tells of an image besides its tree.
type Super struct {
	UUID    [16]byte
	Blocks  uint32
	Devices int
	Inodes  int // of the tree
}

// loader reads an image's metadata, in one piece, back into nodes.
type loader struct {
	meta    []byte
	start   int64 // first block of metadata
	blocks  int64
	devices int
	nodes   map[uint64]*Node
	left    int // inodes that may still come: a tree has no more than were written
	take    func(bytes int64) error

	// Many inodes have the same attributes as the one before. They share them.
	rawXattrs []byte
	xattrs    map[string]string
}

// Load reads the tree of an image that a Writer wrote. It trusts nothing: a
// damaged image gives an error, not a panic or a loop.
//
// take is asked before memory is taken, with an estimate of how much; what is given
// back when Load returns, it gets as less than nothing. The tree's part stays taken.
// Attributes may be shared between nodes: change a copy of them.
func Load(r io.ReaderAt, take func(bytes int64) error) (*Node, Super, error) {
	var sb [superSize]byte
	if _, err := r.ReadAt(sb[:], superStart); err != nil {
		return nil, Super{}, fmt.Errorf("read image: super block: %w", err)
	}
	info := Super{UUID: [16]byte(sb[48:64]), Blocks: le.Uint32(sb[36:]), Devices: int(le.Uint16(sb[86:]))}
	l := &loader{
		start: int64(le.Uint32(sb[40:])), blocks: int64(info.Blocks),
		devices: info.Devices, nodes: map[uint64]*Node{}, take: take,
	}
	size := (l.blocks - l.start) * BlockSize
	if le.Uint32(sb[0:]) != superMagic || sb[12] != blockBits || size <= 0 || size > maxMeta {
		return nil, Super{}, fmt.Errorf("read image: super block: %w", errCorrupt)
	}
	if inodes := le.Uint64(sb[16:]); inodes <= uint64(size/inodeSize) {
		l.left, info.Inodes = int(inodes), int(inodes)
	}
	if err := take(size); err != nil {
		return nil, Super{}, fmt.Errorf("read image: metadata: %w", err)
	}
	defer take(-size)
	if err := l.read(r, size); err != nil {
		return nil, Super{}, fmt.Errorf("read image: metadata: %w", err)
	}
	root, err := l.tree(uint64(le.Uint16(sb[14:])))
	if err != nil {
		return nil, Super{}, fmt.Errorf("read image: %w", err)
	}
	return root, info, nil
}

// read takes the metadata into memory. The last byte is looked for first: a damaged
// super block can claim any size.
func (l *loader) read(r io.ReaderAt, size int64) error {
	at := l.start * BlockSize
	var last [1]byte
	if n, err := r.ReadAt(last[:], at+size-1); n == 0 {
		return unexpected(err)
	}
	l.meta = make([]byte, size)
	_, err := io.ReadFull(io.NewSectionReader(r, at, size), l.meta)
	return unexpected(err)
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (l *loader) slice(at, n int64) ([]byte, error) {
	if at < 0 || n < 0 || at > int64(len(l.meta)) || n > int64(len(l.meta))-at {
		return nil, errCorrupt
	}
	return l.meta[at : at+n], nil
}

type pending struct {
	dir  *Node
	data []byte
}

func (l *loader) tree(nid uint64) (*Node, error) {
	root, data, err := l.node(nid)
	if err != nil {
		return nil, err
	}
	if !root.IsDir() {
		return nil, fmt.Errorf("root: %w", errCorrupt)
	}
	queue := []pending{{root, data}}
	for len(queue) > 0 {
		p := queue[0]
		queue = queue[1:]
		err := eachDirent(p.data, func(name string, nid uint64) error {
			if err := l.take(NameCost(name)); err != nil {
				return err
			}
			if old := l.nodes[nid]; old != nil {
				if old.IsDir() {
					return errCorrupt
				}
				p.dir.Children[name] = old
				return nil
			}
			child, data, err := l.node(nid)
			if err != nil {
				return err
			}
			p.dir.Children[name] = child
			if child.IsDir() {
				queue = append(queue, pending{child, data})
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return root, nil
}

// node decodes an inode; for a directory it also returns its entries.
func (l *loader) node(nid uint64) (*Node, []byte, error) {
	if l.left--; l.left < 0 || nid > maxMeta>>slotBits {
		return nil, nil, errCorrupt
	}
	at := int64(nid) << slotBits
	b, err := l.slice(at, inodeSize)
	if err != nil {
		return nil, nil, err
	}
	format, icount := le.Uint16(b[0:]), int64(le.Uint16(b[2:]))
	n := &Node{
		Mode: uint32(le.Uint16(b[4:])), UID: le.Uint32(b[24:]), GID: le.Uint32(b[28:]),
		Mtime: int64(le.Uint64(b[32:])), Nsec: le.Uint32(b[40:]),
	}
	if format&1 == 0 || n.fileType() == 0 {
		return nil, nil, errCorrupt
	}
	at += inodeSize
	if icount > 0 {
		n.nxattr = int(xattrHeaderSize + 4*(icount-1))
		xattrs, err := l.slice(at, int64(n.nxattr))
		if err != nil {
			return nil, nil, err
		}
		if n.Xattrs, err = l.parse(xattrs); err != nil {
			return nil, nil, err
		}
		at += int64(n.nxattr)
	}
	l.nodes[nid] = n
	data, err := l.content(n, int(format>>1&7), int64(le.Uint64(b[8:])), le.Uint32(b[16:]), at)
	if err != nil {
		return nil, nil, err
	}
	return n, data, l.take(n.Cost())
}

// parse decodes attributes, unless they are those of the inode before.
func (l *loader) parse(raw []byte) (map[string]string, error) {
	if l.xattrs != nil && bytes.Equal(raw, l.rawXattrs) {
		return l.xattrs, nil
	}
	xattrs, err := parseXattrs(raw)
	l.rawXattrs, l.xattrs = raw, xattrs
	return xattrs, err
}

// content reads what an inode has besides its attributes: a target, a device
// number, the place of data, or the entries of a directory.
func (l *loader) content(n *Node, layout int, size int64, u uint32, tail int64) ([]byte, error) {
	switch {
	case n.IsRegular():
		n.Size = size
		return nil, l.place(n, layout, u, tail)
	case !n.IsDir() && !n.IsSymlink():
		n.Rdev = unix.Mkdev(u>>8&0xfff, u&0xff|u>>12&0xfff00)
		return nil, nil
	}
	if layout == layoutPlain {
		tail = (int64(u) - l.start) * BlockSize
	} else if layout != layoutInline {
		return nil, errCorrupt
	}
	data, err := l.slice(tail, size)
	if err != nil {
		return nil, err
	}
	if n.IsSymlink() {
		n.Target = string(data)
		return nil, nil
	}
	n.Children = map[string]*Node{}
	return data, nil
}

func (l *loader) place(n *Node, layout int, u uint32, tail int64) error {
	switch {
	case n.Size < 0:
		return errCorrupt
	case n.Size == 0:
		n.Block = nullBlock
		return nil
	case layout == layoutPlain:
		n.Block = u
		if int64(u)+Blocks(n.Size) > l.blocks {
			return errCorrupt
		}
		return nil
	case layout == layoutChunk && u&^0x1f == chunkWithIndexes && int64(BlockSize)<<(u&0x1f) >= n.Size:
		index, err := l.slice(alignUp64(tail, indexSize), indexSize)
		if err != nil {
			return err
		}
		n.Device, n.Block = le.Uint16(index[2:]), le.Uint32(index[4:])
		if n.Device == 0 || int(n.Device) > l.devices {
			return errCorrupt
		}
		return nil
	default:
		return errCorrupt
	}
}

// eachDirent calls f for every entry but "." and "..".
func eachDirent(data []byte, f func(name string, nid uint64) error) error {
	for len(data) > 0 {
		block := data[:min(len(data), BlockSize)]
		data = data[len(block):]
		if len(block) < direntSize {
			return errCorrupt
		}
		names := int(le.Uint16(block[8:]))
		if names%direntSize != 0 || names == 0 || names > len(block) {
			return errCorrupt
		}
		for at := 0; at < names; at += direntSize {
			from, to := int(le.Uint16(block[at+8:])), len(block)
			if at+direntSize < names {
				to = int(le.Uint16(block[at+direntSize+8:]))
			}
			if from < names || from > to || to > len(block) {
				return errCorrupt
			}
			name := trimZeros(block[from:to])
			if name == "." || name == ".." {
				continue
			}
			if err := validEntry(name, &Node{Mode: unix.S_IFREG}); err != nil {
				return errCorrupt
			}
			if err := f(name, le.Uint64(block[at:])); err != nil {
				return err
			}
		}
	}
	return nil
}

func trimZeros(b []byte) string {
	for len(b) > 0 && b[len(b)-1] == 0 {
		b = b[:len(b)-1]
	}
	return string(b)
}

func parseXattrs(b []byte) (map[string]string, error) {
	out := map[string]string{}
	for b = b[xattrHeaderSize:]; len(b) >= xattrEntryMinSize; {
		nameLen, index, valueLen := int(b[0]), b[1], int(le.Uint16(b[2:]))
		size := xattrEntryMinSize + nameLen + valueLen
		if size > len(b) {
			return nil, errCorrupt
		}
		prefix := ""
		for _, p := range xattrPrefixes {
			if p.index == index {
				prefix = p.prefix
			}
		}
		if prefix == "" {
			return nil, errCorrupt
		}
		out[prefix+string(b[4:4+nameLen])] = string(b[4+nameLen : size])
		b = b[min(alignUp(size, 4), len(b)):]
	}
	return out, nil
}
