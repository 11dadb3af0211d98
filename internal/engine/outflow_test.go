package engine

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
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
	for name, pipe := range map[string]func(*testing.T) (r, w *os.File){"pipe": pipeEnds, "terminal": terminalEnds} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, w := pipe(t)
			defer w.Close() // the daemon's end
			printed := fillUp(t, w)
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
			if n := slow.len(); n != printed || n < 8<<10 {
				t.Errorf("%d bytes of %d arrived", n, printed)
			}
		})
	}
}

func pipeEnds(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	return r, w
}

// terminalEnds are a terminal's master and its other end, which changes nothing of
// what is printed.
func terminalEnds(t *testing.T) (r, w *os.File) {
	t.Helper()
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(master, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	w, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), unix.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(master), "master"), w
}

// fillUp writes until nothing more fits, as a process does that nobody reads from.
func fillUp(t *testing.T, w *os.File) (n int) {
	t.Helper()
	fd := int(w.Fd())
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	if termios, err := unix.IoctlGetTermios(fd, unix.TCGETS); err == nil {
		termios.Oflag &^= unix.OPOST
		if err := unix.IoctlSetTermios(fd, unix.TCSETS, termios); err != nil {
			t.Fatal(err)
		}
	}
	for {
		m, err := unix.Write(fd, bytes.Repeat([]byte("x"), 1024))
		if err != nil || m <= 0 {
			return n
		}
		n += m
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
