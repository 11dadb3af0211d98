package guest

import (
	"bytes"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// TestDoor: who knows the key comes in, whatever others do at the same time. Nobody else is
// answered.
func TestDoor(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "socket")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	key := bytes.Repeat([]byte("k"), KeyBytes)
	d := behind(l, key)
	served := make(chan error, 1)
	go func() {
		for {
			conn, err := d.Accept()
			if err != nil {
				served <- err
				return
			}
			go func() {
				io.WriteString(conn, "welcome")
				conn.Close()
			}()
		}
	}()
	var silent []*net.UnixConn // they keep nobody waiting
	for range 2 * mostStrangers {
		silent = append(silent, dialUnix(t, path))
	}
	knows := func(said []byte) string {
		t.Helper()
		conn := dialUnix(t, path)
		if _, err := conn.Write(said); err != nil {
			t.Fatal(err)
		}
		if err := conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		got, _ := io.ReadAll(conn) // nothing, if it is closed before all was read
		return string(got)
	}
	for name, said := range map[string][]byte{
		"nothing": nil, "part of it": key[1:], "another": bytes.Repeat([]byte("x"), KeyBytes), "a request": append([]byte("Info"), key...),
	} {
		if got := knows(said); got != "" {
			t.Errorf("%s is answered by %q", name, got)
		}
	}
	if got := knows(append(key, "and more"...)); got != "welcome" {
		t.Errorf("the key is answered by %q", got)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	select {
	case <-served:
	case <-time.After(10 * time.Second):
		t.Error("it is not closed")
	}
	for _, conn := range silent[mostStrangers:] {
		conn.Close()
	}
}

// TestDoorWithoutKey: a machine that was given none lets nobody in.
func TestDoorWithoutKey(t *testing.T) {
	t.Parallel()
	ours, theirs := net.Pipe()
	d := &door{known: make(chan net.Conn), closed: make(chan struct{})}
	go d.ask(theirs)
	if _, err := ours.Write(make([]byte, KeyBytes)); err != nil {
		t.Fatal(err)
	}
	if _, err := ours.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("read: %v", err)
	}
}
