package disk

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestReserve(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path, reserve := filepath.Join(dir, "exit.json"), filepath.Join(dir, "exit.reserve")
	if err := Reserve(reserve, 4096, 0o600); err != nil {
		t.Fatal(err)
	}
	var s unix.Stat_t
	if err := unix.Stat(reserve, &s); err != nil || s.Size != 4096 || s.Blocks*512 < 4096 {
		t.Errorf("the reserve has %d bytes in %d blocks, %v", s.Size, s.Blocks, err)
	}
	want := []byte(`{"code": 7}`)
	if err := spend(path, reserve, want, 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o644 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if _, err := os.Lstat(reserve); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the reserve is still there: %v", err)
	}
}

// TestReserveIsNoWayAround: other errors than a full disk stay errors.
func TestReserveIsNoWayAround(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path, reserve := filepath.Join(dir, "exit.json"), filepath.Join(dir, "exit.reserve")
	if err := errors.Join(Reserve(reserve, 4096, 0o600), os.Mkdir(path, 0o755)); err != nil {
		t.Fatal(err)
	}
	if err := WriteReserved(path, reserve, []byte("{}"), 0o644); err == nil {
		t.Error("a directory was replaced")
	}
	if _, err := os.Lstat(reserve); err != nil {
		t.Errorf("the reserve was spent: %v", err)
	}
}
