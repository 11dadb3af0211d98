package machine

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gantry/internal/pod"
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
	kernel := filepath.Join(t.TempDir(), "vmlinuz")
	for _, path := range []string{guest, kernel} {
		if err := os.WriteFile(path, []byte("program"), 0o755); err != nil {
			t.Fatal(err)
		}
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
	b := Boot{Kernel: filepath.Join(dir, "kernel"), From: kernel, Initramfs: filepath.Join(dir, "mine"), Guest: guest, Modules: modulesDir(t), Load: []string{"overlay"}}
	if err := b.ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"old": false, ".new-123": false, "lately": true, ".new-456": false, "mine": true, "kernel": true} {
		if _, err := os.Stat(filepath.Join(dir, name)); (err == nil) != want {
			t.Errorf("%s: %v, want it there: %v", name, err, want)
		}
	}
	// Whoever boots with one says so.
	for _, path := range []string{b.Initramfs, b.Kernel} {
		if err := os.Chtimes(path, long, long); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{b.Initramfs, b.Kernel} {
		info, err := os.Stat(path)
		if err != nil || time.Since(info.ModTime()) > unused {
			t.Errorf("used now, %s says %v, %v", path, info.ModTime(), err)
		}
	}
}

// TestOldKernelStays: another agent has no other kernel made, however long nobody booted it.
func TestOldKernelStays(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	kernel := filepath.Join(dir, "kernel")
	if err := os.WriteFile(kernel, []byte("made before"), 0o600); err != nil {
		t.Fatal(err)
	}
	long := time.Now().Add(-2 * unused)
	if err := os.Chtimes(kernel, long, long); err != nil {
		t.Fatal(err)
	}
	b := Boot{Kernel: kernel, From: "/nowhere", Initramfs: filepath.Join(dir, "new"), Guest: "/bin/sh", Modules: modulesDir(t), Load: []string{"overlay"}}
	if err := b.ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(kernel); err != nil || string(got) != "made before" {
		t.Errorf("the kernel: %q, %v", got, err)
	}
}

// TestFurnish: a program makes what machines boot, once, and what it says goes on.
func TestFurnish(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	program := filepath.Join(dir, "guest")
	b := Boot{Kernel: filepath.Join(dir, "kernel"), Initramfs: filepath.Join(dir, "initramfs"), Guest: program}
	script := "#!/bin/sh\necho \"$1\" >>" + dir + "/calls\ncat >" + dir + "/input\n"
	if err := os.WriteFile(program, []byte(script+"echo no room >&2; exit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Furnish(t.Context()); !errors.Is(err, pod.ErrUnavailable) || !strings.Contains(err.Error(), "no room") {
		t.Errorf("it failed: %v", err)
	}
	if err := os.WriteFile(program, []byte(script+"echo packed >&2; touch "+b.Kernel+" "+b.Initramfs+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"packed", ""} {
		if said, err := b.Furnish(t.Context()); err != nil || said != want {
			t.Errorf("it says %q, %v, want %q", said, err, want)
		}
	}
	if got, err := os.ReadFile(filepath.Join(dir, "calls")); err != nil || string(got) != "compose\ncompose\n" {
		t.Errorf("calls: %q, %v", got, err)
	}
	in, err := os.Open(filepath.Join(dir, "input"))
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	// All is there: to make it again changes nothing.
	if err := Compose(t.Context(), in); err != nil {
		t.Errorf("with its input: %v", err)
	}
	if err := Compose(t.Context(), strings.NewReader("no JSON")); err == nil {
		t.Error("anything is taken")
	}
}

// TestUnfinishedIsNone: a kernel or a module that is not there leaves nothing behind.
func TestUnfinishedIsNone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := Boot{Kernel: filepath.Join(dir, "kernel"), From: "/nowhere", Initramfs: filepath.Join(dir, "mine"), Guest: "/bin/sh", Modules: modulesDir(t), Load: []string{"nothing"}}
	if err := b.ensure(t.Context()); err == nil {
		t.Error("it was made without a kernel")
	}
	kernel := filepath.Join(t.TempDir(), "vmlinuz")
	if err := os.WriteFile(kernel, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	b.From = kernel
	if err := b.ensure(t.Context()); err == nil {
		t.Error("it was made without a module")
	}
	if err := os.Remove(b.Kernel); err != nil { // which is whole
		t.Error(err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
