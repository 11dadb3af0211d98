package image

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"gantry/internal/image/erofs"
	"gantry/internal/pod"
)

// merge puts a layer on top of a tree, as the image specification has it: files
// replace, directories join, whiteouts take away. Files of the layer then point
// into that device.
type merge struct {
	root   *erofs.Node
	device uint16
	links  map[*erofs.Node]*erofs.Node // by the layer's node: file of a lower layer
	steps  int                         // along symlinks
}

// addLayer merges layer into root and takes it over.
func addLayer(root, layer *erofs.Node, device uint16) error {
	m := merge{root: root, device: device, links: map[*erofs.Node]*erofs.Node{}}
	if err := m.findLinks(layer, ""); err != nil {
		return err
	}
	if layer.Xattrs[markOpaque] != "" {
		clear(root.Children)
	}
	if layer.Xattrs[markImplied] == "" {
		takeAttributes(root, layer)
	}
	m.dir(root, layer, nil)
	return nil
}

// findLinks looks up the targets of hard links to lower layers, before anything
// of this layer hides them.
func (m *merge) findLinks(dir *erofs.Node, path string) error {
	for name, n := range dir.Children {
		if n.IsDir() {
			if err := m.findLinks(n, path+"/"+name); err != nil {
				return err
			}
			continue
		}
		to, ok := n.Xattrs[markLink]
		if !ok {
			continue
		}
		target, err := lookup(m.root, strings.Split(to, "/"), &m.steps)
		if err != nil || target == nil || target.IsDir() {
			return fmt.Errorf("hard link %s: no file %s in this layer or below: %w", shown(path+"/"+name), shown(to), pod.ErrInvalid)
		}
		m.links[n] = target
	}
	return nil
}

// dir merges one directory, which stands at path.
func (m *merge) dir(below, above *erofs.Node, path []string) {
	for _, name := range slices.Sorted(maps.Keys(above.Children)) {
		n := above.Children[name]
		switch {
		case n.IsWhiteout():
			delete(below.Children, name)
		case n.IsDir():
			m.subdir(below, name, n, path)
		case m.links[n] != nil:
			below.Children[name] = m.links[n]
		default:
			m.adoptFile(n)
			below.Children[name] = n
		}
	}
}

func (m *merge) subdir(below *erofs.Node, name string, n *erofs.Node, path []string) {
	path = append(path[:len(path):len(path)], name)
	implied, opaque := n.Xattrs[markImplied] != "", n.Xattrs[markOpaque] != ""
	old := below.Children[name]
	if old != nil && old.IsSymlink() && implied {
		// Entries below a name that is a symlink further down: they are meant for
		// the directory which the name leads to.
		w := walker{root: m.root, steps: &m.steps}
		if target, err := w.walk(path, true); err == nil && target != nil && target.IsDir() {
			m.dir(target, n, w.path)
			return
		}
	}
	if old == nil || !old.IsDir() {
		m.adopt(n)
		below.Children[name] = n
		return
	}
	if !implied {
		takeAttributes(old, n)
	}
	if opaque {
		clear(old.Children)
	}
	m.dir(old, n, path)
}

// adopt makes a directory of the layer one of the tree, where nothing is below it.
func (m *merge) adopt(dir *erofs.Node) {
	dir.Xattrs = withoutMarks(dir.Xattrs)
	for name, n := range dir.Children {
		switch {
		case n.IsWhiteout():
			delete(dir.Children, name)
		case n.IsDir():
			m.adopt(n)
		case m.links[n] != nil:
			dir.Children[name] = m.links[n]
		default:
			m.adoptFile(n)
		}
	}
}

func (m *merge) adoptFile(n *erofs.Node) {
	if n.IsRegular() && n.Size > 0 {
		n.Device = m.device
	}
	n.Xattrs = withoutMarks(n.Xattrs)
}

func takeAttributes(to, from *erofs.Node) {
	to.Mode, to.UID, to.GID = from.Mode, from.UID, from.GID
	to.Mtime, to.Nsec = from.Mtime, from.Nsec
	to.Xattrs = withoutMarks(from.Xattrs)
}

// withoutMarks leaves out what only the merge needed. Most nodes have nothing.
func withoutMarks(xattrs map[string]string) map[string]string {
	if xattrs[markOpaque] == "" && xattrs[markImplied] == "" && xattrs[markLink] == "" {
		return xattrs
	}
	out := maps.Clone(xattrs)
	for _, name := range []string{markOpaque, markImplied, markLink} {
		delete(out, name)
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

// newRoot is the tree that layers are put on.
func newRoot() *erofs.Node { return erofs.NewDir(0o755) }
