package initramfs

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"

	"gantry/internal/pod"
)

// vmlinux is a kernel of one segment and its notes, the kind of the second of which is
// given.
func vmlinux(t testing.TB, kind uint32) []byte {
	t.Helper()
	var notes bytes.Buffer
	for _, n := range []struct {
		kind       uint32
		name, desc string
	}{{3, "GNU\x00", "build"}, {kind, "Xen\x00", "entr"}} {
		for _, v := range []uint32{uint32(len(n.name)), uint32(len(n.desc)), n.kind} {
			if err := binary.Write(&notes, binary.LittleEndian, v); err != nil {
				t.Fatal(err)
			}
		}
		notes.WriteString(n.name + n.desc)
		notes.Write(make([]byte, -len(n.desc)&3))
	}
	const headers, code = 64 + 2*56, 4096
	out := bytes.NewBuffer(nil)
	h := elf.Header64{
		Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 2, Shentsize: 64,
	}
	copy(h.Ident[:], elf.ELFMAG+"\x02\x01\x01")
	for _, part := range []any{
		h,
		elf.Prog64{Type: uint32(elf.PT_LOAD), Off: headers, Filesz: code, Memsz: code},
		elf.Prog64{Type: uint32(elf.PT_NOTE), Off: headers + code, Filesz: uint64(notes.Len()), Align: noteAlign},
	} {
		if err := binary.Write(out, binary.LittleEndian, part); err != nil {
			t.Fatal(err)
		}
	}
	out.Write(bytes.Repeat([]byte("code"), code/4))
	out.Write(notes.Bytes())
	return out.Bytes()
}

// bzImage packs a kernel as x86 boots it: after the code that unpacks it, with its length
// at the end.
func bzImage(packed []byte, length int) []byte {
	return bzImageOf(binary.LittleEndian.AppendUint32(packed, uint32(length)))
}

func bzImageOf(packed []byte) []byte {
	const setup, before = 2, 32
	out := make([]byte, (setup+1)*512+before)
	out[0x1f1] = setup
	copy(out[0x202:], "HdrS\x0f\x02")
	binary.LittleEndian.PutUint32(out[0x248:], before)
	binary.LittleEndian.PutUint32(out[0x24c:], uint32(len(packed)))
	return append(append(out, packed...), "more code"...)
}

func pack(t testing.TB, data []byte, open func(io.Writer) (io.WriteCloser, error)) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := open(&b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zst(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) }

func gz(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil }

func writeKernel(t testing.TB, data []byte) []byte {
	t.Helper()
	dir := t.TempDir()
	from, to := filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "kernel")
	if err := os.WriteFile(from, data, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	why, err := WriteKernel(f, from)
	if err != nil {
		t.Fatal(err)
	}
	out, err := os.ReadFile(to)
	if err != nil {
		t.Fatal(err)
	}
	if plain := !bytes.Equal(out, data); plain != (why == nil) {
		t.Errorf("it says %v, and unpacked is %v", why, plain)
	}
	return out
}

// TestWriteKernel: a kernel is unpacked if it starts so, and else stays what it is.
func TestWriteKernel(t *testing.T) {
	t.Parallel()
	const pvh, other = 18, 17
	plain := vmlinux(t, pvh)
	packed := pack(t, plain, zst)
	damaged := bytes.Clone(packed)
	damaged[len(damaged)-1] ^= 1 // its checksum
	for name, c := range map[string]struct {
		kernel   []byte
		unpacked bool
	}{
		"zstd":         {bzImage(packed, len(plain)), true},
		"gzip":         {bzImageOf(pack(t, plain, gz)), true},
		"no entry":     {bzImage(pack(t, vmlinux(t, other), zst), len(plain)), false},
		"not whole":    {bzImage(pack(t, plain[:len(plain)-1], zst), len(plain)-1), false},
		"too long":     {bzImage(packed, len(plain)-1), false},
		"too short":    {bzImage(packed, len(plain)+1), false},
		"damaged":      {bzImage(damaged, len(plain)), false},
		"broken":       {bzImage(append([]byte("\x28\xb5\x2f\xfd"), "nothing of the kind"...), 100), false},
		"another form": {bzImage([]byte("\x02!L\x18lz4"), 100), false},
		"no ELF":       {bzImage(pack(t, bytes.Repeat([]byte("no"), 1000), zst), 2000), false},
		"unpacked":     {plain, false},
		"short":        {[]byte("MZ"), false},
		"cut off":      {bzImage(packed, len(plain))[:1600], false},
		"empty":        {nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			want := c.kernel
			if c.unpacked {
				want = plain
			}
			if got := writeKernel(t, c.kernel); !bytes.Equal(got, want) {
				t.Errorf("wrote %d bytes, want %d", len(got), len(want))
			}
		})
	}
}

func TestWriteKernelIsMissing(t *testing.T) {
	t.Parallel()
	if _, err := WriteKernel(nil, filepath.Join(t.TempDir(), "none")); !errors.Is(err, pod.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}

// TestWriteKernelIsNotWritten: a file that takes nothing is no fault of the kernel's.
func TestWriteKernelIsNotWritten(t *testing.T) {
	t.Parallel()
	const pvh = 18
	from := filepath.Join(t.TempDir(), "vmlinuz")
	plain := vmlinux(t, pvh)
	if err := os.WriteFile(from, bzImage(pack(t, plain, zst), len(plain)), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(from) // to read only
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if why, err := WriteKernel(f, from); err == nil {
		t.Errorf("it was written: %v", why)
	}
}

// FuzzWriteKernel: whatever a file says of itself, it is written whole, or what is in it.
func FuzzWriteKernel(f *testing.F) {
	const pvh = 18
	plain := vmlinux(f, pvh)
	f.Add(bzImage(pack(f, plain, zst), len(plain)))
	f.Add(bzImageOf(pack(f, plain, gz)))
	f.Add(plain)
	f.Fuzz(func(t *testing.T, data []byte) {
		got := writeKernel(t, data)
		if !bytes.Equal(got, data) && !bytes.HasPrefix(got, []byte(elf.ELFMAG)) {
			t.Errorf("%d bytes became %d others", len(data), len(got))
		}
	})
}
