package initproc

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

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
		if err := hostPath(filepath.Join(dir, name), "", &out); err != nil {
			t.Fatal(err)
		}
		var got HostPath
		if err := json.Unmarshal(out.Bytes(), &got); err != nil || !bytes.Equal(got.Path, want.Path) || got.Errno != want.Errno {
			t.Errorf("%s: %s, %v", name, out.String(), err)
		}
	}
}
