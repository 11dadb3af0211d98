package guest

import (
	"context"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/vsock"
)

// TestForward: a connection goes on to a port of the loopback, each side may end what it
// says by itself, and what cannot be reached is said.
func TestForward(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "socket"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- Forward(ctx, l) }()
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		conn, err := echo.Accept()
		if err != nil {
			return
		}
		said, _ := io.ReadAll(conn) // until the other side has said all
		_, _ = io.WriteString(conn, "heard "+string(said))
		conn.Close()
	}()
	port := uint16(echo.Addr().(*net.TCPAddr).Port)
	conn := dialUnix(t, l.Addr().String())
	if err := AskForward(conn, port); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "hello"); err != nil {
		t.Fatal(err)
	}
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(conn); err != nil || string(got) != "heard hello" {
		t.Errorf("%q, %v", got, err)
	}
	echo.Close()
	if err := AskForward(dialUnix(t, l.Addr().String()), port); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("a port that nobody listens on: %v", err)
	}
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func dialUnix(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestFromHost(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		from net.Addr
		want bool
	}{
		{&vsock.Addr{ContextID: vsock.Host, Port: 1023}, true},
		{&vsock.Addr{ContextID: vsock.Local, Port: 1023}, false},
		{&vsock.Addr{ContextID: 4711, Port: 1023}, false},
		{&net.UnixAddr{Name: "x"}, false},
	} {
		if got := fromHost(c.from); got != c.want {
			t.Errorf("%v: %t", c.from, got)
		}
	}
}
