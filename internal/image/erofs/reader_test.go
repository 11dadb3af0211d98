package erofs

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestLoad(t *testing.T) {
	t.Parallel()
	root, data, order := sample()
	path := write(t, root, data, order, Options{UUID: [16]byte{7}})
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, super, err := Load(f, free)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(root, got, cmpopts.IgnoreUnexported(Node{}), cmpopts.EquateEmpty()); diff != "" {
		t.Error(diff)
	}
	if got.Children["hard"] != got.Children["etc"].Children["small"] {
		t.Error("a hard link became a copy")
	}
	if super.UUID != [16]byte{7} || super.Devices != 0 || super.Blocks == 0 {
		t.Errorf("super = %+v", super)
	}
}

// FuzzLoad damages an image and loads it: any answer but a panic or a hang will do.
func FuzzLoad(f *testing.F) {
	root := NewDir(0o755)
	dir := NewDir(0o700)
	dir.Xattrs = map[string]string{"user.x": "y"}
	dir.Children["link"] = &Node{Mode: 0o120777, Target: "../x"}
	root.Children["dir"], root.Children["f"] = dir, file(0o644)
	path := filepath.Join(f.TempDir(), "image")
	out, err := os.Create(path)
	if err != nil {
		f.Fatal(err)
	}
	w, err := NewWriter(out, Options{})
	if err != nil {
		f.Fatal(err)
	}
	if _, err := w.Finish(root); err != nil {
		f.Fatal(err)
	}
	image, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint16(superStart), []byte{1})
	f.Add(uint16(4096+64), []byte{255, 255})
	f.Add(uint16(4096+64+70), []byte{0, 0, 0})
	f.Fuzz(func(t *testing.T, at uint16, patch []byte) {
		damaged := bytes.Clone(image)
		if int(at) < len(damaged) {
			copy(damaged[at:], patch)
		}
		root, _, err := Load(bytes.NewReader(damaged), free)
		if err == nil && !root.IsDir() {
			t.Error("a root that is no directory")
		}
	})
}
