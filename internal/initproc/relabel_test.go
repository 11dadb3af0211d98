package initproc

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRelabelWalk: everything below a volume is reached, and nothing that a link of it
// leads to. Only root may set labels: what is tried is told by the error.
func TestRelabelWalk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	volume := filepath.Join(dir, "volume")
	err := errors.Join(
		os.MkdirAll(filepath.Join(volume, "a/b"), 0o755), os.WriteFile(filepath.Join(volume, "a/b/file"), nil, 0o644),
		os.Mkdir(filepath.Join(dir, "outside"), 0o755), os.WriteFile(filepath.Join(dir, "outside/secret"), nil, 0o644),
		os.Symlink(filepath.Join(dir, "outside"), filepath.Join(volume, "a/link")),
	)
	if err != nil {
		t.Fatal(err)
	}
	var reached []string
	r := labelWalk{label: "label", set: func(path, _ string, link bool) error {
		if !link { // the volume itself
			return nil
		}
		real, err := filepath.EvalSymlinks(filepath.Dir(path))
		reached = append(reached, strings.TrimPrefix(filepath.Join(real, filepath.Base(path)), volume))
		return err
	}}
	if err := r.tree(volume); err != nil {
		t.Fatal(err)
	}
	slices.Sort(reached)
	if got := strings.Join(reached, " "); got != "/a /a/b /a/b/file /a/link" {
		t.Errorf("reached %q", got)
	}
	r.set = func(_, _ string, link bool) error {
		if link {
			return unix.EPERM
		}
		return nil
	}
	if err := r.tree(volume); err != nil || r.kept != 4 || !errors.Is(r.why, unix.EPERM) {
		t.Errorf("labels that cannot be set: %v, %d kept: %v", err, r.kept, r.why)
	}
	r = labelWalk{set: func(string, string, bool) error { return unix.ENOTSUP }}
	if err := r.tree(volume); err != nil || r.kept != 0 {
		t.Errorf("a file system without labels: %v, %d kept", err, r.kept)
	}
	r.set = func(string, string, bool) error { return unix.EACCES }
	if err := r.tree(volume); !errors.Is(err, unix.EACCES) {
		t.Errorf("a volume whose label cannot be set: %v", err)
	}
	if err := r.tree(filepath.Join(volume, "a/link/secret")); !errors.Is(err, unix.ELOOP) {
		t.Errorf("a link on the way: %v", err)
	}
	if err := r.tree(filepath.Join(dir, "none")); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a volume that is not there: %v", err)
	}
}
