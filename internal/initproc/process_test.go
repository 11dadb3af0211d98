package initproc

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestFindProgram(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"tool": 0o755, "text": 0o644} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!"), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	find := func(name string) (string, error) {
		return (&becoming{Process: Process{Args: []string{name}, Env: []string{"PATH=/none", "PATH=/no/such/dir:" + dir}}}).find()
	}
	if got, err := find("tool"); err != nil || got != filepath.Join(dir, "tool") {
		t.Errorf("tool: %q, %v", got, err)
	}
	if got, err := find(dir + "/tool"); err != nil || got != dir+"/tool" {
		t.Errorf("by its path: %q, %v", got, err)
	}
	for name, want := range map[string]string{
		"missing": "not found in $PATH", "text": "permission denied", "sub": "is a directory", dir + "/missing": "no such file",
	} {
		if _, err := find(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: want an error with %q, got %v", name, want, err)
		}
	}
}

func TestMountOptions(t *testing.T) {
	t.Parallel()
	flags, data := mountOptions([]string{"nosuid", "mode=755", "ro", "newinstance", "gid=5", "noexec"})
	if flags != unix.MS_NOSUID|unix.MS_RDONLY|unix.MS_NOEXEC || data != "mode=755,newinstance,gid=5" {
		t.Errorf("%#x %q", flags, data)
	}
}

func TestRootfsKeepsInside(t *testing.T) {
	t.Parallel()
	dir, outside := t.TempDir(), t.TempDir()
	r, err := openRootfs(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	for name, to := range map[string]string{"up": "../../../..", "abs": outside, "loop": "loop", "magic": "/proc/self/root"} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range []string{"/up/a/b", "/abs/made", "/x/../y/z"} {
		fd, err := r.directory(p)
		if err != nil {
			t.Logf("%s: %v", p, err) // an error is as good
			continue
		}
		unix.Close(fd)
	}
	if fd, err := r.file("/up/f"); err != nil {
		t.Error(err)
	} else {
		unix.Close(fd)
	}
	if _, err := os.Stat(filepath.Join(dir, "f")); err != nil {
		t.Errorf("a link upwards leads to the root: %v", err)
	}
	if _, err := r.directory("/loop/a"); err == nil {
		t.Error("a link to itself leads somewhere")
	}
	entries, err := os.ReadDir(outside)
	if err != nil || len(entries) != 0 {
		t.Errorf("outside there is %v, %v", entries, err)
	}
}
