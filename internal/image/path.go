package image

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	reader "github.com/erofs/go-erofs"
	"golang.org/x/sys/unix"

	"gantry/internal/image/erofs"
	"gantry/internal/pod"
)

const (
	maxPath = unix.PathMax - 1
	// maxHops bounds symlinks followed in one path, as the kernel does.
	maxHops = 40
	// maxDepth bounds directories in each other: a path cannot name more.
	maxDepth = maxPath / 2
	// maxSteps bounds what following the symlinks of one layer may cost.
	maxSteps = 8 << 20
	// maxLookups bounds the same for one path of an image that is not in memory.
	maxLookups = 1 << 16
)

// splitName checks an entry's name and splits it. The root is no part at all.
func splitName(name string) ([]string, error) {
	switch {
	case strings.HasPrefix(name, "/"):
		return nil, fmt.Errorf("absolute path: %w", errRefused)
	case len(name) > maxPath:
		return nil, fmt.Errorf("path of %d bytes: %w", len(name), errRefused)
	case strings.IndexByte(name, 0) >= 0:
		return nil, fmt.Errorf("path with a NUL byte: %w", errRefused)
	}
	var parts []string
	for part := range strings.SplitSeq(name, "/") {
		switch {
		case part == "" || part == ".":
		case part == "..":
			return nil, fmt.Errorf("path with ..: %w", errRefused)
		case len(part) > erofs.MaxName:
			return nil, fmt.Errorf("name of %d bytes: %w", len(part), errRefused)
		default:
			parts = append(parts, part)
		}
	}
	return parts, nil
}

func (a *archive) impliedDir() *erofs.Node {
	n := erofs.NewDir(0o755)
	n.Xattrs = a.implied
	return n
}

// dir finds the directory that an entry goes to, in the tree of the layer, and
// makes what is missing of it. Symlinks are followed as a process whose root this
// layer is would follow them.
func (a *archive) dir(parts []string) (*erofs.Node, error) {
	w := walker{root: a.root, steps: &a.steps, missing: func(parent *erofs.Node, name string) (*erofs.Node, error) {
		if err := a.count(); err != nil {
			return nil, err
		}
		n := a.impliedDir()
		return n, a.keep(parent, name, n)
	}}
	n, err := w.walk(parts, true)
	if err == nil && !n.IsDir() {
		return nil, fmt.Errorf("parent is not a directory: %w", errRefused)
	}
	return n, err
}

// lookup finds a node in a tree; nil if there is none. Symlinks on the way are
// followed, the last one is not. Steps counts for all lookups of a layer.
func lookup(root *erofs.Node, parts []string, steps *int) (*erofs.Node, error) {
	w := walker{root: root, steps: steps}
	return w.walk(parts, false)
}

// walker resolves a path in a tree. It cannot leave the tree: ".." of the root is
// the root, and an absolute target begins there.
type walker struct {
	root *erofs.Node
	// missing is asked for a directory that is not there; without it, the answer
	// is nil.
	missing func(parent *erofs.Node, name string) (*erofs.Node, error)
	steps   *int
	path    []string // of the node that was found
}

func (w *walker) walk(parts []string, follow bool) (*erofs.Node, error) {
	stack := []*erofs.Node{w.root}
	hops := 0
	for len(parts) > 0 {
		name := parts[0]
		parts = parts[1:]
		here := stack[len(stack)-1]
		switch name {
		case "", ".":
			continue
		case "..":
			stack = stack[:max(1, len(stack)-1)]
			w.path = w.path[:len(stack)-1]
			continue
		}
		if !here.IsDir() {
			return nil, fmt.Errorf("parent is not a directory: %w", errRefused)
		}
		child := here.Children[name]
		if child == nil {
			if w.missing == nil || len(name) > erofs.MaxName {
				return nil, nil
			}
			var err error
			if child, err = w.missing(here, name); err != nil {
				return nil, err
			}
		}
		if !child.IsSymlink() || len(parts) == 0 && !follow {
			stack, w.path = append(stack, child), append(w.path, name)
			if len(stack) > maxDepth {
				return nil, fmt.Errorf("more than %d directories in each other: %w", maxDepth, errRefused)
			}
			continue
		}
		if hops++; hops > maxHops {
			return nil, fmt.Errorf("%w: %w", unix.ELOOP, errRefused)
		}
		if strings.HasPrefix(child.Target, "/") {
			stack, w.path = stack[:1], w.path[:0]
		}
		parts = append(strings.Split(child.Target, "/"), parts...)
		if *w.steps += len(parts); *w.steps > maxSteps {
			return nil, fmt.Errorf("symlinks lead too far: %w", errRefused)
		}
	}
	return stack[len(stack)-1], nil
}

// HasPath tells whether an image has a path, found as a process whose root the image
// is would find it. It reads the inodes on the way only: a tree may be large.
func (s *Store) HasPath(id, name string) (bool, error) {
	img, err := s.Image(id)
	if err != nil {
		return false, err
	}
	open, err := s.openImage(img)
	if err != nil {
		return false, err
	}
	defer open.close()
	links, ok := open.tree.(fs.ReadLinkFS)
	if !ok {
		return false, fmt.Errorf("read links of image %s: %w", id, pod.ErrInternal)
	}
	has, err := hasPath(links, strings.Split(name, "/"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, reader.ErrNotDirectory) {
		return false, nil
	}
	return has, err
}

// hasPath follows links by itself: the path that they lead to is not what is left
// when it is cleaned.
func hasPath(tree fs.ReadLinkFS, parts []string) (bool, error) {
	here, steps := "/", 0
	for hops := 0; len(parts) > 0; {
		next := path.Join(here, parts[0])
		parts = parts[1:]
		if steps += 1 + strings.Count(next, "/"); steps > maxLookups {
			return false, fmt.Errorf("symlinks lead too far: %w", errRefused)
		}
		info, err := tree.Lstat(next)
		if err != nil {
			return false, err
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			here = next
			if len(parts) > 0 && !info.IsDir() {
				return false, nil
			}
			continue
		}
		if hops++; hops > maxHops {
			return false, nil
		}
		target, err := tree.ReadLink(next)
		if err != nil {
			return false, err
		}
		if path.IsAbs(target) {
			here = "/"
		}
		parts = append(strings.Split(target, "/"), parts...)
	}
	return true, nil
}
