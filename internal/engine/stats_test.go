package engine

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDiskUseOfATreeTooDeep: an app nests directories until no path is long enough
// for them, and what it wrote beside them is counted still.
func TestDiskUseOfATreeTooDeep(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "z"), make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	name := strings.Repeat("d", 250)
	at, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	for range 20 {
		if err == nil {
			err = unix.Mkdirat(at, name, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
		below, openErr := unix.Openat(at, name, unix.O_PATH|unix.O_CLOEXEC, 0)
		unix.Close(at)
		at, err = below, openErr
	}
	defer unix.Close(at)
	bytes, inodes := diskUse(t.Context(), dir)
	if bytes < 1<<20 || inodes < 17 {
		t.Errorf("%d bytes in %d files", bytes, inodes)
	}
}
