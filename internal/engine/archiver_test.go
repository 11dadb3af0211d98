package engine

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// entries reads an archive back: a line for each entry.
func entries(t *testing.T, data []byte) []string {
	t.Helper()
	var out []string
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := r.Next()
		if err == io.EOF {
			slices.Sort(out)
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, fmt.Sprintf("%c %s %o %s%q", h.Typeflag, h.Name, h.Mode, h.Linkname, content))
	}
}

func diffOf(ctx context.Context, t *testing.T, dir string) (*differ, []byte) {
	t.Helper()
	var out bytes.Buffer
	root, err := openDir(unix.AT_FDCWD, dir)
	if err != nil {
		t.Fatal(err)
	}
	d := &differ{archiver: newArchiver(ctx, &out)}
	d.below(root, "", 5)
	_ = d.tar.Close()
	return d, out.Bytes()
}

func TestDiff(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, step := range []func() error{
		func() error { return os.MkdirAll(filepath.Join(dir, "etc/app"), 0o750) },
		func() error { return os.WriteFile(filepath.Join(dir, "etc/app/conf"), []byte("a=b"), 0o640) },
		func() error { return os.Symlink("/etc/shadow", filepath.Join(dir, "link")) },
		func() error { return os.Symlink("/", filepath.Join(dir, "root")) },
		func() error { return unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	d, data := diffOf(t.Context(), t, dir)
	if d.err != nil {
		t.Fatal(d.err)
	}
	want := []string{`0 etc/app/conf 640 "a=b"`, `2 link 777 /etc/shadow""`, `2 root 777 /""`, `5 etc/ 750 ""`, `5 etc/app/ 750 ""`, `6 pipe 600 ""`}
	if got := entries(t, data); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

func TestDiffEnds(t *testing.T) {
	t.Parallel()
	deep := t.TempDir()
	if err := os.MkdirAll(filepath.Join(deep, strings.Repeat("d/", 7)), 0o700); err != nil {
		t.Fatal(err)
	}
	if d, _ := diffOf(t.Context(), t, deep); d.err == nil || !strings.Contains(d.err.Error(), "in each other") {
		t.Errorf("a tree too deep: %v", d.err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if d, _ := diffOf(ended, t, dir); !errors.Is(d.err, context.Canceled) {
		t.Errorf("after its end: %v", d.err)
	}
}

// TestDiffOfWhatChanges: files become others while they are copied. The archive stays
// one, and has nothing of what a link leads to.
func TestDiffOfWhatChanges(t *testing.T) {
	t.Parallel()
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	if err := errors.Join(os.WriteFile(a, bytes.Repeat([]byte("x"), 100_000), 0o600), os.Symlink(secret, b)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ctx.Err() == nil; i++ {
			_ = unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
			_ = os.Truncate(a, int64(i%100_000))
		}
	}()
	for range 300 {
		d, data := diffOf(t.Context(), t, dir)
		if d.err != nil {
			t.Fatal(d.err)
		}
		if len(entries(t, data)) > 2 || bytes.Contains(data, []byte("secret\"")) {
			t.Fatalf("the archive has %q", entries(t, data))
		}
	}
	cancel()
	<-done
}

// A file may claim any size and shrink: filling it up ends with the checkpoint.
func TestArchiverEndsWithItsTime(t *testing.T) {
	t.Parallel()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	a := newArchiver(ended, io.Discard)
	a.copy(&tar.Header{Name: "huge", Mode: 0o600, Size: 1 << 62, Format: tar.FormatPAX}, strings.NewReader(""))
	if !errors.Is(a.err, context.Canceled) {
		t.Errorf("error = %v", a.err)
	}
	d := &differ{archiver: a}
	a.err = nil
	for range 9 {
		d.gone(strings.Repeat("x", 4<<20))
	}
	if d.err == nil || len(d.deleted) > 8 {
		t.Errorf("%d long names are kept, %v", len(d.deleted), d.err)
	}
}

// A file that shrinks is filled up: what comes behind it in the archive must be found.
func TestArchiverOfAFileThatShrinks(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	a := newArchiver(t.Context(), &out)
	a.copy(&tar.Header{Name: "short", Mode: 0o600, Size: 10}, strings.NewReader("abc"))
	a.copy(&tar.Header{Name: "long", Mode: 0o600, Size: 3}, strings.NewReader("abcdef"))
	a.data("last", []byte("z"))
	if err := a.close(); err != nil {
		t.Fatal(err)
	}
	want := []string{`0 last 600 "z"`, `0 long 600 "abc"`, `0 short 600 "abc\x00\x00\x00\x00\x00\x00\x00"`}
	if got := entries(t, out.Bytes()); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}
