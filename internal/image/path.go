package image

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"gantry/internal/image/erofs"
)

const (
	// maxHops bounds symlinks followed in one path, as the kernel does.
	maxHops = 40
	// maxDepth bounds directories in each other: a path cannot name more.
	maxDepth = maxPath / 2
	// maxSteps bounds what following the symlinks of one layer may cost.
	maxSteps = 8 << 20
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

func impliedDir() *erofs.Node {
	n := erofs.NewDir(0o755)
	n.Xattrs = map[string]string{markImplied: "y"}
	return n
}

// dir finds the directory that an entry goes to, in the tree of the layer, and
// makes what is missing of it. Symlinks are followed as a process whose root this
// layer is would follow them.
func (a *archive) dir(parts []string) (*erofs.Node, error) {
	w := walker{root: a.root, steps: &a.steps, missing: func(parent *erofs.Node, name string) (*erofs.Node, error) {
		if err := a.count(len(name)); err != nil {
			return nil, err
		}
		n := impliedDir()
		parent.Children[name] = n
		return n, nil
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
// is would find it.
func (s *Store) HasPath(id, path string) (bool, error) {
	f, err := os.Open(filepath.Join(s.imageDir(hexOf(id)), mergedFile))
	if err != nil {
		return false, err
	}
	root, _, err := erofs.Load(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return false, err
	}
	steps := 0
	w := walker{root: root, steps: &steps}
	n, err := w.walk(strings.Split(path, "/"), true)
	if errors.Is(err, errRefused) {
		return false, nil // no process would find it, either
	}
	return n != nil, err
}
