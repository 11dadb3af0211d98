package erofs

import "sort"

// blocksOf splits a directory's sorted names into blocks: entries and names of a
// block must fit into it.
func blocksOf(names []string) [][]string {
	var out [][]string
	first, used := 0, 0
	for i, name := range names {
		need := direntSize + len(name)
		if used+need > BlockSize {
			out = append(out, names[first:i])
			first, used = i, 0
		}
		used += need
	}
	return append(out, names[first:])
}

// direntsSize is the size of a directory with these names.
func direntsSize(names []string) int {
	blocks := blocksOf(names)
	size := (len(blocks) - 1) * BlockSize
	for _, name := range blocks[len(blocks)-1] {
		size += direntSize + len(name)
	}
	return size
}

// dirents encodes a directory. Every block but the last is filled up with zeros.
func (l *layout) dirents(dir *Node) []byte {
	blocks := blocksOf(dir.sorted)
	var out []byte
	for i, names := range blocks {
		out = l.direntBlock(out, dir, names)
		if i < len(blocks)-1 {
			out = append(out, make([]byte, (i+1)*BlockSize-len(out))...)
		}
	}
	return out
}

func (l *layout) direntBlock(out []byte, dir *Node, names []string) []byte {
	nameAt := len(names) * direntSize
	for _, name := range names {
		child := l.child(dir, name)
		out = le.AppendUint64(out, child.nid)
		out = le.AppendUint16(out, uint16(nameAt))
		out = append(out, child.fileType(), 0)
		nameAt += len(name)
	}
	for _, name := range names {
		out = append(out, name...)
	}
	return out
}

func (l *layout) child(dir *Node, name string) *Node {
	switch name {
	case ".":
		return dir
	case "..":
		return l.parents[dir]
	default:
		return dir.Children[name]
	}
}

// appendXattrs encodes attributes in the order of their names. They were checked
// when their size was computed.
func appendXattrs(b []byte, xattrs map[string]string) []byte {
	if len(xattrs) == 0 {
		return b
	}
	names := make([]string, 0, len(xattrs))
	for name := range xattrs {
		names = append(names, name)
	}
	sort.Strings(names)
	b = append(b, make([]byte, xattrHeaderSize)...)
	for _, name := range names {
		index, rest, err := splitXattr(name)
		if err != nil {
			continue
		}
		value := xattrs[name]
		b = append(b, byte(len(rest)), index)
		b = le.AppendUint16(b, uint16(len(value)))
		b = append(b, rest...)
		b = append(b, value...)
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
	}
	return b
}
