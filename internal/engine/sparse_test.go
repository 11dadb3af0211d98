package engine

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSparseWriter: what is read back is what was written, and zeros take no room.
func TestSparseWriter(t *testing.T) {
	t.Parallel()
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := &sparseWriter{f: f}
	var want bytes.Buffer
	for _, piece := range [][]byte{[]byte("head"), make([]byte, 8<<20), []byte("middle"), make([]byte, 100), []byte("x"), make([]byte, 4<<20)} {
		want.Write(piece)
		if n, err := w.Write(piece); n != len(piece) || err != nil {
			t.Fatalf("%d bytes of %d, %v", n, len(piece), err)
		}
	}
	if err := w.end(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(f.Name())
	if err != nil || !bytes.Equal(got, want.Bytes()) {
		t.Errorf("%d bytes are read back of %d, %v", len(got), want.Len(), err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Blocks*512 > 1<<20 {
		t.Errorf("12 MiB of zeros take %d bytes, %v", st.Blocks*512, err)
	}
}
