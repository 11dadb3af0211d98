package machine

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// modulesDir is one of a kernel that has all built in.
func modulesDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"modules.dep": "", "modules.builtin": "kernel/fs/overlayfs/overlay.ko\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestSweep: what was made of an agent that is gone goes when another is made, unless a
// machine may be reading it; and what was never finished.
func TestSweep(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	guest := filepath.Join(t.TempDir(), "guest")
	if err := os.WriteFile(guest, []byte("program"), 0o755); err != nil {
		t.Fatal(err)
	}
	long := time.Now().Add(-2 * unused)
	for name, at := range map[string]time.Time{"old": long, ".new-123": long, "lately": time.Now().Add(-unused / 2), ".new-456": time.Now()} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	b := Boot{Initramfs: filepath.Join(dir, "mine"), Guest: guest, Modules: modulesDir(t), Load: []string{"overlay"}}
	if err := b.ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"old": false, ".new-123": false, "lately": true, ".new-456": true, "mine": true} {
		if _, err := os.Stat(filepath.Join(dir, name)); (err == nil) != want {
			t.Errorf("%s: %v, want it there: %v", name, err, want)
		}
	}
	// Whoever boots with one says so.
	if err := os.Chtimes(b.Initramfs, long, long); err != nil {
		t.Fatal(err)
	}
	if err := b.ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(b.Initramfs)
	if err != nil || time.Since(info.ModTime()) > unused {
		t.Errorf("used now, it says %v, %v", info.ModTime(), err)
	}
}

// TestUnfinishedIsNone: a module that is not there leaves nothing behind.
func TestUnfinishedIsNone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := Boot{Initramfs: filepath.Join(dir, "mine"), Guest: "/bin/sh", Modules: modulesDir(t), Load: []string{"nothing"}}
	if err := b.ensure(t.Context()); err == nil {
		t.Error("it was made without a module")
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
