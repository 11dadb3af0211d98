package guest

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"syscall"
)

// usage counts what is below a directory: bytes on disk, and inodes. What goes meanwhile
// does not count.
func usage(ctx context.Context, dir string) (bytes, inodes uint64, err error) {
	seen := map[uint64]bool{} // hard links
	err = filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		if stat, ok := info.Sys().(*syscall.Stat_t); ok && !seen[stat.Ino] {
			seen[stat.Ino] = true
			bytes += uint64(stat.Blocks) * 512
			inodes++
		}
		return nil
	})
	return bytes, inodes, err
}
