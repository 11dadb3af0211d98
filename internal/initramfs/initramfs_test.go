package initramfs

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cavaliergopher/cpio"
	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"gantry/internal/pod"
)

// kernel has modules in each form that distributions ship, one of which needs two others.
func kernel(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	pack := func(name string, open func(io.Writer) io.WriteCloser) {
		t.Helper()
		var b bytes.Buffer
		w := open(&b)
		if _, err := io.WriteString(w, "code of "+name); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(w.Close(), os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755), os.WriteFile(filepath.Join(dir, name), b.Bytes(), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	pack("kernel/net/plain-one.ko", func(w io.Writer) io.WriteCloser { return nopCloser{w} })
	pack("kernel/net/zipped.ko.gz", func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) })
	pack("kernel/fs/fancy.ko.xz", func(w io.Writer) io.WriteCloser {
		x, err := xz.NewWriter(w)
		if err != nil {
			t.Fatal(err)
		}
		return x
	})
	pack("kernel/fs/fast.ko.zst", func(w io.Writer) io.WriteCloser {
		z, err := zstd.NewWriter(w)
		if err != nil {
			t.Fatal(err)
		}
		return z
	})
	write(t, dir, "modules.dep", `kernel/net/plain-one.ko:
kernel/net/zipped.ko.gz: kernel/net/plain-one.ko
kernel/fs/fancy.ko.xz: kernel/net/zipped.ko.gz kernel/net/plain-one.ko
kernel/fs/fast.ko.zst:
`)
	write(t, dir, "modules.builtin", "kernel/fs/always.ko\n")
	write(t, dir, "program", "\x7fELF")
	return dir
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestWrite(t *testing.T) {
	t.Parallel()
	dir := kernel(t)
	spec := Spec{Init: dir + "/program", Modules: dir, Load: []string{"fancy", "always", "fast", "plain_one"}}
	var first, second bytes.Buffer
	if err := errors.Join(Write(&first, spec), Write(&second, spec)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("the same input gave other bytes")
	}
	var got []string
	for r := cpio.NewReader(&first); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, h.Mode.String()+" "+h.Name+" "+string(data))
	}
	want := []string{
		"040755 dev ", "040755 proc ", "040755 sys ", "040755 run ",
		"040755 lib ", "040755 lib/modules ",
		"0100644 lib/modules/plain-one.ko code of kernel/net/plain-one.ko",
		"0100644 lib/modules/zipped.ko code of kernel/net/zipped.ko.gz",
		"0100644 lib/modules/fancy.ko code of kernel/fs/fancy.ko.xz",
		"0100644 lib/modules/fast.ko code of kernel/fs/fast.ko.zst",
		"0100644 modules /lib/modules/plain-one.ko\n/lib/modules/zipped.ko\n/lib/modules/fancy.ko\n/lib/modules/fast.ko\n",
		"0100755 init \x7fELF",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestWriteRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(t *testing.T, dir string, s *Spec)
		kind   error
		want   string
	}{
		"missing modules": {func(_ *testing.T, _ string, s *Spec) { s.Load = []string{"none", "fancy", "other"} }, pod.ErrUnsupported, "no module none, other"},
		"no kernel":       {func(_ *testing.T, _ string, s *Spec) { s.Modules = "/no/such" }, pod.ErrUnavailable, "is the kernel's package installed?"},
		"no program":      {func(_ *testing.T, _ string, s *Spec) { s.Init = "/no/such" }, pod.ErrUnavailable, "is Gantry installed whole?"},
		"circle": {func(t *testing.T, dir string, _ *Spec) {
			write(t, dir, "modules.dep", "kernel/fs/fancy.ko.xz: b.ko\nb.ko: kernel/fs/fancy.ko.xz\n")
		}, nil, "needs itself"},
		"outside": {func(t *testing.T, dir string, _ *Spec) { write(t, dir, "modules.dep", "../fancy.ko:\n") }, nil, "not below"},
		"garbage": {func(t *testing.T, dir string, _ *Spec) { write(t, dir, "modules.dep", "fancy\n") }, nil, `line "fancy\n"`},
		"broken":  {func(t *testing.T, dir string, _ *Spec) { write(t, dir, "kernel/fs/fancy.ko.xz", "no xz") }, nil, "module kernel/fs/fancy.ko.xz"},
		"strange": {func(t *testing.T, dir string, _ *Spec) {
			write(t, dir, "modules.dep", "fancy.ko.lz4:\n")
			write(t, dir, "fancy.ko.lz4", "")
		}, pod.ErrUnsupported, ".lz4"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := kernel(t)
			s := Spec{Init: dir + "/program", Modules: dir, Load: []string{"fancy"}}
			c.change(t, dir, &s)
			err := Write(io.Discard, s)
			if err == nil || !strings.Contains(err.Error(), c.want) || c.kind != nil && !errors.Is(err, c.kind) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}
