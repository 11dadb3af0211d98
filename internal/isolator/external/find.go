package external

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"gantry/internal/isolator/contract"
	"gantry/internal/pod"
)

// Find returns an isolator for every file in the directories, also for those that are not
// to be used: they say why. taken are names that are somebody else's.
func Find(dirs []string, c Config, taken map[string]string) ([]*External, error) {
	owner := map[string]string{}
	for name, by := range taken {
		owner[name] = by
	}
	var out []*External
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list isolators: %w", err)
		}
		bad := c.trusted(dir, fs.ModeDir)
		for _, e := range entries {
			x, err := New(filepath.Join(dir, e.Name()), c)
			if err != nil {
				return nil, err
			}
			name := e.Name()
			switch {
			case bad != nil:
				x.refuse = bad
			case !contract.ValidName(name):
				x.refuse = fmt.Errorf("%s: the name of an isolator has lower case letters, digits and hyphens: %w", x.path, pod.ErrInvalid)
			case owner[name] != "":
				x.refuse = fmt.Errorf("%s: the name is that of %s: %w", x.path, owner[name], pod.ErrExists)
			default:
				owner[name] = x.path
			}
			out = append(out, x)
		}
	}
	return out, nil
}

// identity tells a file from what may replace it.
type identity struct {
	device, inode uint64
	size          int64
	changed       syscall.Timespec
}

// verify refuses an executable that others than its owner could have written.
func (x *External) verify() (identity, error) {
	if x.refuse != nil {
		return identity{}, x.refuse
	}
	if err := x.cfg.trusted(x.path, 0); err != nil {
		return identity{}, err
	}
	var stat syscall.Stat_t
	if err := syscall.Stat(x.path, &stat); err != nil {
		return identity{}, fmt.Errorf("find isolator %s: %w", x.path, err)
	}
	return identity{uint64(stat.Dev), stat.Ino, stat.Size, stat.Ctim}, nil
}

// trusted wants a file, or a directory, that only its owner can write to.
func (c Config) trusted(path string, kind fs.FileMode) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is not there any more: %w", path, pod.ErrUnavailable)
	}
	if err != nil {
		return fmt.Errorf("find isolator: %w", err)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	switch mode := info.Mode(); {
	case mode.Type() != kind && kind == 0:
		return fmt.Errorf("%s is no regular file: %w", path, pod.ErrForbidden)
	case mode.Type() != kind:
		return fmt.Errorf("%s is no directory: %w", path, pod.ErrForbidden)
	case mode&0o111 == 0:
		return fmt.Errorf("%s is not executable: %w", path, pod.ErrForbidden)
	case c.AnyOwner:
	case !ok || stat.Uid != c.Owner:
		return fmt.Errorf("%s does not belong to user %d: %w", path, c.Owner, pod.ErrForbidden)
	case mode&0o022 != 0:
		return fmt.Errorf("%s can be written to by others (mode %04o): %w", path, mode.Perm(), pod.ErrForbidden)
	}
	return nil
}
