package machine

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestListen: who comes before the server runs is not refused, nobody but root may come,
// and a program that follows has the socket.
func TestListen(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), SocketFile)
	if err := os.WriteFile(path, []byte("of a start that failed"), 0o644); err != nil {
		t.Fatal(err)
	}
	fd, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	info, err := os.Stat(path)
	if err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("the socket is %v, %v", info, err)
	}
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC != 0 {
		t.Errorf("its flags are %x, %v", flags, err)
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
}

// TestServerIsNotThere: nothing listens for a server that cannot run.
func TestServerIsNotThere(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, PlanFile), []byte(`{"run":"`+dir+`"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	err := becomeServer(dir, []string{filepath.Join(dir, "virtiofsd")})
	if err == nil || !strings.Contains(err.Error(), "virtiofsd") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, SocketFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its socket: %v", err)
	}
}
