package engine

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"gantry/internal/pod"
)

// helperOf writes a program that stands for gantry-init.
func helperOf(t *testing.T, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "helper")
	syscall.ForkLock.RLock() // or another test's child has it open for writing, and it cannot be run
	defer syscall.ForkLock.RUnlock()
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestHostPathFromTheCache(t *testing.T) {
	t.Parallel()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir+"/real", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir + "/link"); err != nil {
		t.Fatal(err)
	}
	got, ok := cachedPath(hostPath{path: dir + "/link"})
	if !ok {
		t.Skip("this kernel or file system does not look up by its cache alone")
	}
	if want := dir + "/real"; got.real != want {
		t.Errorf("got %s, want %s", got.real, want)
	}
	if got, ok := cachedPath(hostPath{path: dir + "/none"}); ok {
		t.Errorf("a path that is not there: got %s", got.real)
	}
}

func TestHostPathOfTheHelper(t *testing.T) {
	t.Parallel()
	none := hostPath{path: "/none/of/these"}
	h := hostPaths{helper: helperOf(t, `echo '{"path": "L2ZvdW5k"}'`), limit: time.Minute}
	if got, err := h.find(t.Context(), none); got != (foundPath{real: "/found"}) || err != nil {
		t.Errorf("got %v, %v", got, err)
	}
	h = hostPaths{helper: helperOf(t, `[ "$1 $2 $3" = "host-path /none/of/these /userns" ] && echo '{"path": "L2ZvdW5k", "noIDMap": 22}'`), limit: time.Minute}
	if got, err := h.find(t.Context(), hostPath{path: "/none/of/these", userns: "/userns"}); got != (foundPath{"/found", syscall.EINVAL}) || err != nil {
		t.Errorf("got %v, %v", got, err)
	}
	h = hostPaths{helper: helperOf(t, `[ "$4" = make ] && echo '{"path": "L2ZvdW5k"}'`), limit: time.Minute}
	if got, err := h.find(t.Context(), hostPath{path: "/none/of/these", make: true}); got != (foundPath{real: "/found"}) || err != nil {
		t.Errorf("to be made: got %v, %v", got, err)
	}
	h = hostPaths{helper: helperOf(t, `echo '{"errno": 2}'`), limit: time.Minute}
	_, err := h.find(t.Context(), none)
	if !errors.Is(err, pod.ErrInvalid) || !errors.Is(err, syscall.ENOENT) {
		t.Errorf("got %v", err)
	}
	h = hostPaths{helper: helperOf(t, `echo broken >&2; exit 1`), limit: time.Minute}
	if _, err := h.find(t.Context(), none); err == nil || errors.Is(err, pod.ErrInvalid) {
		t.Errorf("got %v", err)
	}
}

func TestHostPathRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Mkdir(dir+"/\xff", 0o755); err != nil {
		t.Fatal(err)
	}
	for _, link := range []string{"loop", "odd"} {
		if err := os.Symlink(map[string]string{"loop": "loop", "odd": "\xff"}[link], dir+"/"+link); err != nil {
			t.Fatal(err)
		}
	}
	var h hostPaths
	for _, path := range []string{"", ".", "etc", dir + "/loop", dir + "/odd", dir + "/none"} {
		if got, err := h.find(t.Context(), hostPath{path: path}); !errors.Is(err, pod.ErrInvalid) {
			t.Errorf("%q is %q, %v", path, got.real, err)
		}
	}
}

// TestHostPathThatHangs: who asks is told in time, and one helper waits, not many.
func TestHostPathThatHangs(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	// The pipe is held open by a child, as a process that cannot die holds it.
	helper := helperOf(t, "echo x >>"+dir+"/asked; sleep 5 & trap '' TERM; wait")
	h := hostPaths{helper: helper, limit: 200 * time.Millisecond}
	for range 3 {
		_, err := h.find(t.Context(), hostPath{path: "/none/of/these"})
		if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, pod.ErrInvalid) {
			t.Errorf("got %v", err)
		}
	}
	if asked, err := os.ReadFile(dir + "/asked"); err != nil || len(asked) != 2 {
		t.Errorf("helpers: %q, %v", asked, err)
	}
}
