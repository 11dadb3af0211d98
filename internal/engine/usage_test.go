package engine

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"gantry/internal/pod"
)

// TestUsage: what was quick to find is found anew, what took long is remembered
// for as long as all apps' looks together allow.
func TestUsage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var u usage
	ask := func(id pod.ID) uint64 {
		t.Helper()
		_, inodes := u.of(t.Context(), id, dir)
		return inodes
	}
	if got := ask("a"); got != 1 {
		t.Errorf("an empty directory has %d inodes", got)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	put := func(id pod.ID, found, asked, took time.Duration) {
		u.known[id] = used{inodes: 77, found: time.Now().Add(-found), asked: time.Now().Add(-asked), took: took}
	}
	put("a", time.Minute, 0, 2*time.Second)
	if got := ask("a"); got != 2 {
		t.Errorf("a look of 2 s, a minute ago: %d inodes", got)
	}
	put("a", time.Minute, 0, 4*time.Second)
	if got := ask("a"); got != 77 {
		t.Errorf("a look of 4 s, a minute ago: %d inodes, want what was remembered", got)
	}
	put("a", time.Minute, 0, 2*time.Second)
	put("b", time.Second, 0, 0)
	if got := ask("a"); got != 77 {
		t.Errorf("a look of 2 s, a minute ago, of one of two: %d inodes, want what was remembered", got)
	}
	put("b", time.Hour, 11*time.Minute, time.Hour)
	ask("c")
	if _, ok := u.known["b"]; ok || len(u.known) != 2 {
		t.Errorf("remembered are %v", u.known)
	}
}

// TestUsageOfASlowLook: nobody waits for it, and it is not begun a second time.
func TestUsageOfASlowLook(t *testing.T) {
	t.Parallel()
	slow := make(chan struct{})
	u := usage{
		known: map[pod.ID]used{"a": {inodes: 77, found: time.Now().Add(-time.Hour), took: time.Second}},
		looks: map[pod.ID]chan struct{}{"a": slow, "b": slow},
	}
	if _, inodes := u.of(t.Context(), "a", t.TempDir()); inodes != 77 {
		t.Errorf("while a look is under way: %d inodes, want those of the last one", inodes)
	}
	if _, inodes := u.of(t.Context(), "b", t.TempDir()); inodes != 0 {
		t.Errorf("before the first look has ended: %d inodes", inodes)
	}
	u.looks = nil
	if _, inodes := u.of(t.Context(), "a", t.TempDir()); inodes != 1 {
		t.Errorf("after that: %d inodes, want those that are there", inodes)
	}
}

// TestDiskUseStaysInside: what an app links to is not its own.
func TestDiskUseStaysInside(t *testing.T) {
	t.Parallel()
	outside, dir := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "big"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"absolute": outside, "up": "../../../../../../../" + outside, "self": "."} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if bytes, inodes := diskUse(t.Context(), dir); bytes >= 1<<20 || inodes != 4 {
		t.Errorf("%d bytes in %d files", bytes, inodes)
	}
}
