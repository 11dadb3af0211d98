package node

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestDelegatedCgroup(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	own, dir := filepath.Join(root, "self"), filepath.Join(root, "system.slice", "x.service")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if got := delegatedCgroup(own, root); got != "" {
		t.Errorf("without a cgroup: %q", got)
	}
	if err := os.WriteFile(own, []byte("1:name=systemd:/y\n0::/system.slice/x.service\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := delegatedCgroup(own, root); got != "" {
		t.Errorf("one that is systemd's: %q", got)
	}
	for mark, want := range map[string]string{"0": "", "1": dir} {
		if err := unix.Setxattr(dir, "user.delegate", []byte(mark), 0); err != nil {
			t.Skipf("no attributes here: %v", err)
		}
		if got := delegatedCgroup(own, root); got != want {
			t.Errorf("marked %q: %q, want %q", mark, got, want)
		}
	}
}
