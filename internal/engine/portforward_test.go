package engine

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// pipes are a server's end of a connection and the one that is relayed.
func pipes(t *testing.T) (server, conn net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if conn, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close(); conn.Close() })
	return server, conn
}

// said is what a caller says, who then is silent.
func said(text string) *io.PipeReader {
	r, w := io.Pipe()
	go func() {
		_, _ = io.WriteString(w, text)
		w.Close()
	}()
	return r
}

// TestRelayOfASilentServer: one that does not care that the caller is gone is left after a
// while, and one that answers is listened to for as long as it does.
func TestRelayOfASilentServer(t *testing.T) {
	t.Parallel()
	server, conn := pipes(t)
	var out strings.Builder
	ended := make(chan error, 1)
	const patience = 2 * time.Second
	go func() {
		ended <- relay(t.Context(), conn, readWrite{said("question"), &out}, patience)
	}()
	if asked, err := io.ReadAll(server); err != nil || string(asked) != "question" {
		t.Fatalf("asked %q, %v", asked, err)
	}
	began := time.Now()
	for range 4 { // longer than it may be silent
		<-time.After(patience / 2)
		if _, err := io.WriteString(server, "."); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-ended; err != nil || out.String() != "...." || time.Since(began) < 2*patience {
		t.Errorf("after %s: %q, %v", time.Since(began), out.String(), err)
	}
}

// TestRelayEnds with the pod's side, or the session.
func TestRelayEnds(t *testing.T) {
	t.Parallel()
	server, conn := pipes(t)
	never, _ := io.Pipe()
	var out strings.Builder
	if _, err := io.WriteString(server, "bye"); err != nil {
		t.Fatal(err)
	}
	server.Close()
	if err := relay(t.Context(), conn, readWrite{never, &out}, time.Hour); err != nil || out.String() != "bye" {
		t.Errorf("%q, %v", out.String(), err)
	}
	_, conn = pipes(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := relay(ctx, conn, readWrite{never, &out}, time.Hour); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
