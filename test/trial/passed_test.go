package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestPassedIsRecalled(t *testing.T) {
	t.Parallel()
	tr := &trial{cache: cache(t.TempDir())}
	now := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	want := passed{Suite: "node", Commit: "abc", When: now, Seconds: 12.4, Passed: 3, Skipped: 1}
	if _, ok := tr.recall("key", now); ok {
		t.Fatal("recalled what was never recorded")
	}
	if err := tr.remember("key", want); err != nil {
		t.Fatal(err)
	}
	got, ok := tr.recall("key", now.Add(passedFor-time.Second))
	if !ok || got != want {
		t.Errorf("recalled %+v, %v", got, ok)
	}
	for _, when := range []time.Time{now.Add(passedFor), now.Add(-time.Second)} {
		if _, ok := tr.recall("key", when); ok {
			t.Errorf("a record of %s is believed at %s", now, when)
		}
	}
	if text := got.String(); !strings.Contains(text, "3 passed, 0 failed, 1 skipped in 12 s on 2026-11-26 12:00 UTC, commit abc") {
		t.Errorf("printed %q", text)
	}
	if err := os.WriteFile(tr.cache.path("passed", "torn"), []byte(`{"Suite": "node", "When"`), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, ok := tr.recall("torn", now); ok {
		t.Error("a torn record is believed")
	}
}

func TestSourceDigest(t *testing.T) {
	t.Parallel()
	repo := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(repo, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	sum := func() string {
		t.Helper()
		s, err := sourceDigest(t.Context(), repo)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if out, err := exec.Command("git", "init", "-q", repo).CombinedOutput(); err != nil {
		t.Fatalf("git init: %v: %s", err, out)
	}
	write(".gitignore", "/bin/\n")
	write("internal/a.go", "package a")
	first := sum()
	for _, name := range []string{"docs/a.md", "README.md", "bench/run.go", "changelog/unreleased/a.md", "bin/gantry"} {
		write(name, "x")
		if sum() != first {
			t.Errorf("%s reaches no VM, but counts", name)
		}
	}
	last := first
	change := func(what string, do func() error) {
		t.Helper()
		if err := do(); err != nil {
			t.Fatal(err)
		}
		if s := sum(); s == last {
			t.Errorf("%s does not count", what)
		} else {
			last = s
		}
	}
	change("a new file", func() error { write("test/node/testdata/a.md", "x"); return nil })
	change("a mode", func() error { return os.Chmod(filepath.Join(repo, "internal/a.go"), 0o755) })
	change("a name", func() error {
		return os.Rename(filepath.Join(repo, "internal/a.go"), filepath.Join(repo, "internal/b.go"))
	})
	change("a link", func() error { return os.Symlink("b.go", filepath.Join(repo, "internal/c.go")) })
}
