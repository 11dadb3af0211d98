package disk

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestWriteFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "record.json")
	for _, want := range []string{"one", "the second, longer"} {
		if err := WriteFile(path, []byte(want), 0o640); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Fatalf("got %q, %v; want %q", got, err, want)
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("mode is %v, %v; want 0640 whatever the umask", info.Mode(), err)
	}
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) != 1 {
		t.Errorf("temporary files are left: %v, %v", left, err)
	}
}

func TestWriteFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	for _, text := range []string{"first", "the second, longer"} {
		if err := WriteFiles(File{a, []byte(text + " a"), 0o600}, File{b, []byte(text + " b"), 0o644}); err != nil {
			t.Fatal(err)
		}
		for path, mode := range map[string]os.FileMode{a: 0o600, b: 0o644} {
			got, err := os.ReadFile(path)
			info, statErr := os.Stat(path)
			if want := text + " " + filepath.Base(path); err != nil || statErr != nil || string(got) != want || info.Mode().Perm() != mode {
				t.Errorf("%s: %q, %v, %v; want %q", path, got, err, info, want)
			}
		}
	}
	// A file that cannot take its place leaves nothing half done.
	if err := os.Mkdir(filepath.Join(dir, "c"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := WriteFiles(File{filepath.Join(dir, "c"), nil, 0o600}, File{b, []byte("new"), 0o600}); err == nil {
		t.Error("a directory was replaced by a file")
	}
	if got, _ := os.ReadFile(b); string(got) == "new" {
		t.Error("a file was written though the one in front of it was not")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 3 {
		t.Errorf("temporary files are left: %v, %v", left, err)
	}
}

func TestWriteAllNew(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "sub", "b")
	if err := os.Mkdir(filepath.Dir(b), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := WriteAllNew(File{a, []byte("1"), 0o640}, File{b, []byte("2"), 0o600}); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{a: "1", b: "2"} {
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", path, got, err)
		}
	}
	if err := WriteAllNew(File{a, []byte("3"), 0o640}); !errors.Is(err, os.ErrExist) {
		t.Errorf("a file that is there: %v", err)
	}
}

func TestMoveRefusesToReplace(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	for _, p := range []string{a, b} {
		if err := os.Mkdir(p, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := Move(a, b); !errors.Is(err, os.ErrExist) {
		t.Errorf("move onto an existing directory: %v", err)
	}
	if err := os.Remove(b); err != nil {
		t.Fatal(err)
	}
	if err := Move(a, b); err != nil || Exists(a) || !Exists(b) {
		t.Errorf("move: %v", err)
	}
}

func TestLock(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first, err := TryLock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := TryLock(dir); !errors.Is(err, ErrLocked) {
		t.Errorf("second lock: %v, want ErrLocked", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
	defer cancel()
	if _, err := AcquireLock(ctx, dir); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting with a deadline: %v", err)
	}
	got := make(chan error, 1)
	go func() {
		_, err := AcquireLock(t.Context(), dir)
		got <- err
	}()
	if err := first.Unlock(); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Errorf("after unlock: %v", err)
	}
}

// TestWriteOnce: what is there stays, whole, and nothing is left beside it.
func TestWriteOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "exit.json")
	for _, text := range []string{"first", "second"} {
		if err := WriteOnce(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "first" {
		t.Errorf("there is %q, %v", got, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left are %v, %v", left, err)
	}
	if err := WriteOnce(filepath.Join(dir, "none/x"), nil, 0o644); err == nil {
		t.Error("written into a directory that is not there")
	}
}
