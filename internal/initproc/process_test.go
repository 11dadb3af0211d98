package initproc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

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

func TestLives(t *testing.T) {
	t.Parallel()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if !lives(ownThread()) {
		t.Error("this thread does not run")
	}
	self := strconv.Itoa(os.Getpid())
	first := "/proc/" + self + "/task/" + self
	thread := first
	for thread == first { // it does not end
		gone := make(chan string, 1)
		go func() {
			runtime.LockOSThread() // and never unlocked: it ends with the goroutine
			gone <- ownThread()
		}()
		thread = <-gone
	}
	deadline := time.Now().Add(10 * time.Second)
	for lives(thread) {
		if time.Now().After(deadline) {
			t.Fatal("a thread that has ended runs")
		}
		runtime.Gosched()
	}
}

func TestMountOptions(t *testing.T) {
	t.Parallel()
	flags, data := mountOptions([]string{"nosuid", "mode=755", "ro", "newinstance", "gid=5", "noexec"})
	if flags != unix.MS_NOSUID|unix.MS_RDONLY|unix.MS_NOEXEC || data != "mode=755,newinstance,gid=5" {
		t.Errorf("%#x %q", flags, data)
	}
}

// TestRootfsKeepsInside: links lead to where they would if the directory were the root,
// and what they lead to is made there.
func TestRootfsKeepsInside(t *testing.T) {
	t.Parallel()
	dir, outside := t.TempDir(), t.TempDir()
	r, err := openRootfs(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	for name, to := range map[string]string{
		"up": "../../../..", "abs": outside, "loop": "loop", "magic": fmt.Sprintf("/proc/%d/root", os.Getpid()), "run": "var/../made/../run2/x",
	} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ path, made string }{
		{"/", "/"},
		{"", "/"},
		{"/a/b/..", "/a"},
		{"/up/c/d", "/c/d"},
		{"/abs/made", outside + "/made"},
		{"/x/../y/z", "/y/z"},
		{"/run", "/run2/x"},
		{"/magic", fmt.Sprintf("/proc/%d/root", os.Getpid())},
	} {
		fd, err := r.directory(c.path)
		if err != nil {
			t.Errorf("%s: %v", c.path, err)
			continue
		}
		got, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
		if want := filepath.Join(dir, c.made); err != nil || got != want {
			t.Errorf("%s is at %s, %v; want %s", c.path, got, err, want)
		}
		unix.Close(fd)
	}
	fd, err := r.file("/up/etc/f")
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	if info, err := os.Lstat(filepath.Join(dir, "etc/f")); err != nil || !info.Mode().IsRegular() {
		t.Errorf("a file below a link upwards: %v, %v", info, err)
	}
	if _, err := r.directory("/loop/a"); !errors.Is(err, unix.ELOOP) {
		t.Errorf("a link to itself: %v", err)
	}
	if _, err := r.directory("/etc/f/below"); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("below a file: %v", err)
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) != 0 {
		t.Errorf("outside there is %v, %v", entries, err)
	}
}

// TestMagicLinks: what looks like a path in /proc is another process's root.
func TestMagicLinks(t *testing.T) {
	t.Parallel()
	r, err := openRootfs("/")
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	if fd, err := r.open("/proc/self/root/etc"); err == nil {
		unix.Close(fd)
		t.Error("a link of /proc was followed")
	}
}

func TestHome(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r, err := openRootfs(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	if got := r.homeOf(0); got != "/" {
		t.Errorf("without /etc/passwd: %q", got)
	}
	if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	passwd := filepath.Join(dir, "etc/passwd")
	if err := os.WriteFile(passwd, []byte("bad\nroot:x:0:0:root:/root:/bin/sh\nshort:x:7:7:short:/short\nodd:x:8:8::relative:\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for uid, want := range map[uint32]string{0: "/root", 7: "/short", 8: "/", 9: "/"} {
		if got := r.homeOf(uid); got != want {
			t.Errorf("home of %d is %q, want %q", uid, got, want)
		}
	}
	if err := errors.Join(os.Remove(passwd), unix.Mkfifo(passwd, 0o644)); err != nil {
		t.Fatal(err)
	}
	if got := r.homeOf(0); got != "/" {
		t.Errorf("with a pipe in its place: %q", got)
	}
}
