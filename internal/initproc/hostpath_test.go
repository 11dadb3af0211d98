package initproc

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestHostPathIsMade: a directory is made where there is nothing, and nowhere else.
func TestHostPathIsMade(t *testing.T) {
	t.Parallel()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Symlink("none", filepath.Join(dir, "dangling")), os.WriteFile(filepath.Join(dir, "file"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]HostPath{
		"deep/down": {Path: []byte(dir + "/deep/down")}, "file": {Path: []byte(dir + "/file")},
		"dangling": {Errno: syscall.ENOENT}, "file/below": {Errno: syscall.ENOTDIR},
	} {
		var out bytes.Buffer
		if err := hostPath(filepath.Join(dir, name), "", true, &out); err != nil {
			t.Fatal(err)
		}
		var got HostPath
		if err := json.Unmarshal(out.Bytes(), &got); err != nil || !bytes.Equal(got.Path, want.Path) || got.Errno != want.Errno {
			t.Errorf("%s: %s, %v", name, out.String(), err)
		}
	}
	if info, err := os.Stat(filepath.Join(dir, "deep/down")); err != nil || !info.IsDir() {
		t.Errorf("the directory: %v, %v", info, err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what a link leads to is made: %v", err)
	}
}

func TestHostPath(t *testing.T) {
	t.Parallel()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{"good": ".", "loop": "loop", "dangling": "none", "odd": "\xff"} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "\xff"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]HostPath{
		"good": {Path: []byte(dir)}, "odd": {Path: []byte(dir + "/\xff")},
		"loop": {Errno: syscall.ELOOP}, "dangling": {Errno: syscall.ENOENT},
	} {
		var out bytes.Buffer
		if err := hostPath(filepath.Join(dir, name), "", false, &out); err != nil {
			t.Fatal(err)
		}
		var got HostPath
		if err := json.Unmarshal(out.Bytes(), &got); err != nil || !bytes.Equal(got.Path, want.Path) || got.Errno != want.Errno {
			t.Errorf("%s: %s, %v", name, out.String(), err)
		}
	}
}
