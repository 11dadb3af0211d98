package erofs

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	reader "github.com/erofs/go-erofs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// write makes an image of a tree whose files hold the given data.
func write(t *testing.T, root *Node, files map[*Node][]byte, order []*Node, o Options) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.erofs")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w, err := NewWriter(f, o)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range order {
		data := files[n]
		n.Size = int64(len(data))
		if n.Block, err = w.Data(bytes.NewReader(data), n.Size); err != nil {
			t.Fatal(err)
		}
	}
	blocks, err := w.Finish(root)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if st.Size() != int64(blocks)*BlockSize {
		t.Errorf("size = %d, want %d blocks", st.Size(), blocks)
	}
	return path
}

func open(t *testing.T, path string, devices ...string) fs.FS {
	t.Helper()
	var extra []io.ReaderAt
	for _, d := range devices {
		f, err := os.Open(d)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		extra = append(extra, f)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	img, err := reader.Open(f, reader.WithExtraDevices(extra...))
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// listing prints a tree as read back.
func listing(t *testing.T, img fs.FS) string {
	t.Helper()
	var b strings.Builder
	err := fs.WalkDir(img, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*reader.Stat)
		fmt.Fprintf(&b, "%s %v %d:%d links=%d mtime=%d.%d", path, st.Mode, st.UID, st.GID, st.Nlink, st.Mtime, st.MtimeNs)
		if st.Rdev != 0 {
			fmt.Fprintf(&b, " rdev=%x", st.Rdev)
		}
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := img.(interface {
				ReadLink(string) (string, error)
			}).ReadLink(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " -> %.20s(%d)", target, len(target))
		case info.Mode().IsRegular():
			data, err := fs.ReadFile(img, path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %d bytes %x", len(data), sha256.Sum256(data))
		}
		if len(st.Xattrs) > 0 {
			fmt.Fprintf(&b, " %q", st.Xattrs)
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatalf("%v after:\n%s", err, b.String())
	}
	return b.String()
}

func file(perm uint32) *Node { return &Node{Mode: unix.S_IFREG | perm} }

func sample() (*Node, map[*Node][]byte, []*Node) {
	root := NewDir(0o755)
	small, big, empty, sparse := file(0o644), file(0o4755), file(0), file(0o600)
	small.Xattrs = map[string]string{"security.capability": "\x01\x00\x00\x02", "user.note": strings.Repeat("n", 300)}
	small.Mtime, small.Nsec = 1700000000, 123456789
	big.UID, big.GID = 100000, 4294967294
	etc := NewDir(0o750)
	etc.Xattrs = map[string]string{"trusted.overlay.opaque": "y"}
	etc.Children["small"], etc.Children["hard"] = small, small
	etc.Children["+before-dot"] = empty
	many := NewDir(0o1777)
	for i := range 700 {
		many.Children[fmt.Sprintf("entry-%03d-%s", i, strings.Repeat("x", i%200))] = &Node{Mode: unix.S_IFLNK | 0o777, Target: fmt.Sprint(i)}
	}
	root.Children = map[string]*Node{
		"etc": etc, "many": many, "big": big, "sparse": sparse, "hard": small,
		"fifo": {Mode: unix.S_IFIFO | 0o600}, "null": {Mode: unix.S_IFCHR | 0o666, Rdev: unix.Mkdev(1, 3)},
		"block": {Mode: unix.S_IFBLK | 0o660, Rdev: unix.Mkdev(259, 70000)}, "gone": {Mode: unix.S_IFCHR},
		"long": {Mode: unix.S_IFLNK | 0o777, Target: strings.Repeat("t", MaxTarget)},
	}
	data := map[*Node][]byte{
		small: []byte("hello\n"), empty: nil, big: bytes.Repeat([]byte("0123456789abcdef"), 3<<16),
		sparse: append(make([]byte, 5<<20), "end"...),
	}
	return root, data, []*Node{small, empty, big, sparse}
}

func TestWriteRead(t *testing.T) {
	t.Parallel()
	root, data, order := sample()
	path := write(t, root, data, order, Options{UUID: [16]byte{1, 2, 3}})
	got := listing(t, open(t, path))
	for _, want := range []string{
		". drwxr-xr-x 0:0 links=4",
		"etc drwxr-x--- 0:0 links=2 mtime=0.0 map[\"trusted.overlay.opaque\":\"y\"]",
		"etc/+before-dot ---------- 0:0 links=1",
		"etc/hard -rw-r--r-- 0:0 links=3 mtime=1700000000.123456789 6 bytes",
		`"security.capability":"\x01\x00\x00\x02"`,
		"big urwxr-xr-x 100000:4294967294",
		"many dtrwxrwxrwx",
		fmt.Sprintf("sparse -rw------- 0:0 links=1 mtime=0.0 %d bytes %x", 5<<20+3, sha256.Sum256(data[order[3]])),
		"long Lrwxrwxrwx 0:0 links=1 mtime=0.0 -> tttttttttttttttttttt(4095)",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in the listing", want)
		}
	}
	if n := strings.Count(got, "many/entry-"); n != 700 {
		t.Errorf("%d entries in many, want 700", n)
	}
	if t.Failed() {
		t.Log(got[:min(len(got), 4000)])
	}
}

func TestReproducible(t *testing.T) {
	t.Parallel()
	var first []byte
	for range 3 {
		root, data, order := sample()
		got, err := os.ReadFile(write(t, root, data, order, Options{}))
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = got
		}
		if !bytes.Equal(first, got) {
			t.Fatal("the same tree gave other bytes")
		}
	}
}

func TestHoles(t *testing.T) {
	t.Parallel()
	root, zero := NewDir(0o755), file(0o644)
	root.Children["zero"] = zero
	path := write(t, root, map[*Node][]byte{zero: make([]byte, 64<<20)}, []*Node{zero}, Options{})
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	if used := st.Blocks * 512; used > 1<<20 {
		t.Errorf("64 MiB of zeros take %d bytes on disk", used)
	}
}

// TestDevices reads files of two images through a third that holds metadata only.
func TestDevices(t *testing.T) {
	t.Parallel()
	var paths []string
	var devices []Device
	merged := NewDir(0o755)
	want := map[string]string{}
	for i, size := range []int{10, 1 << 20} {
		root, f := NewDir(0o755), file(0o644)
		name := fmt.Sprintf("f%d", i)
		root.Children[name] = f
		data := bytes.Repeat([]byte{'a' + byte(i)}, size)
		path := write(t, root, map[*Node][]byte{f: data}, []*Node{f}, Options{})
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
		devices = append(devices, Device{Tag: name, Blocks: uint32(st.Size() / BlockSize)})
		merged.Children[name] = &Node{Mode: f.Mode, Size: f.Size, Block: f.Block, Device: uint16(i + 1), Xattrs: map[string]string{"user.a": strings.Repeat("x", i)}}
		want[name] = string(data)
	}
	path := write(t, merged, nil, nil, Options{Devices: devices})
	for name, img := range map[string]fs.FS{"apart": open(t, path, paths...)} {
		for f, data := range want {
			got, err := fs.ReadFile(img, f)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(data, string(got)); diff != "" {
				t.Errorf("%s: %s differs (%d bytes)", name, f, len(got))
			}
		}
	}
}

func TestRefuses(t *testing.T) {
	t.Parallel()
	dir := NewDir(0o755)
	for name, root := range map[string]*Node{
		"no directory":          file(0o644),
		"slash in a name":       {Mode: unix.S_IFDIR, Children: map[string]*Node{"a/b": file(0)}},
		"long name":             {Mode: unix.S_IFDIR, Children: map[string]*Node{strings.Repeat("n", 256): file(0)}},
		"no type":               {Mode: unix.S_IFDIR, Children: map[string]*Node{"a": {}}},
		"empty target":          {Mode: unix.S_IFDIR, Children: map[string]*Node{"a": {Mode: unix.S_IFLNK}}},
		"directory twice":       {Mode: unix.S_IFDIR, Children: map[string]*Node{"a": dir, "b": dir}},
		"device that is absent": {Mode: unix.S_IFDIR, Children: map[string]*Node{"a": {Mode: unix.S_IFREG, Size: 1, Device: 1}}},
		"attribute's name":      {Mode: unix.S_IFDIR, Xattrs: map[string]string{"weird.x": ""}},
		"attributes too large":  {Mode: unix.S_IFDIR, Xattrs: map[string]string{"user.x": strings.Repeat("x", MaxXattrs)}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, err := os.Create(filepath.Join(t.TempDir(), "image"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			w, err := NewWriter(f, Options{})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.Finish(root); err == nil {
				t.Error("no error")
			}
		})
	}
}
