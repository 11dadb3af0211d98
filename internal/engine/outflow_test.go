package engine

import (
	"bytes"
	"context"
	"os"
	"sync"
	"testing"
	"time"
)

// slowWriter takes what comes only when it is told to.
type slowWriter struct {
	mu    sync.Mutex
	buf   bytes.Buffer
	allow chan struct{}
}

func (w *slowWriter) Write(p []byte) (int, error) {
	<-w.allow
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.Write(p)
}

func (w *slowWriter) len() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.Len()
}

// TestDrainOfSlowReader: a daemon keeps the output open, and its reader is slower
// than we are patient. All that the process printed must arrive.
func TestDrainOfSlowReader(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close() // the daemon's end
	printed := bytes.Repeat([]byte("x"), 60<<10)
	if _, err := w.Write(printed); err != nil {
		t.Fatal(err)
	}
	slow := &slowWriter{allow: make(chan struct{})}
	s := &session{out: make(chan struct{})}
	go s.flow(r, slow).run()
	defer r.Close()
	drained := make(chan struct{})
	go func() { s.drain(t.Context(), time.Millisecond); close(drained) }()
	select {
	case <-drained:
		t.Fatal("did not wait for the reader")
	case <-time.After(100 * time.Millisecond):
	}
	close(slow.allow)
	<-drained
	if n := slow.len(); n != len(printed) {
		t.Errorf("%d bytes of %d arrived", n, len(printed))
	}
}

// TestDrainEnds: with the end of the output, with the request, with a daemon that
// prints nothing, and with one that does not stop.
func TestDrainEnds(t *testing.T) {
	t.Parallel()
	s := &session{out: make(chan struct{})}
	close(s.out)
	s.drain(t.Context(), time.Hour)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	(&session{out: make(chan struct{})}).drain(ctx, time.Hour)

	for _, chatty := range []bool{false, true} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		s := &session{out: make(chan struct{})}
		var out bytes.Buffer
		flowed := make(chan struct{})
		flow := s.flow(r, &out)
		go func() { flow.run(); close(flowed) }()
		stop := make(chan struct{})
		var daemon sync.WaitGroup
		daemon.Go(func() {
			for chatty {
				select {
				case <-stop:
					return
				default:
					_, _ = w.Write([]byte("again\n"))
				}
			}
		})
		s.drain(t.Context(), time.Millisecond)
		close(stop)
		daemon.Wait()
		w.Close()
		<-flowed
		r.Close()
	}
}
