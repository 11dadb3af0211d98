package network

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// sink collects what a plugin writes, up to a bound. It does not wait for the end
// of the file: a daemon that the plugin left behind may hold the pipe for ever.
// What a process wrote before it ended is in the pipe when its end is seen.
type sink struct {
	r    *os.File
	max  int
	tail bool // keep the end, not the beginning
	done chan struct{}

	// Owned by the reader until done is closed.
	buf  []byte
	over bool
}

// newSink returns a sink and the end to write to.
func newSink(max int, tail bool) (*sink, *os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	s := &sink{r: r, max: max, tail: tail, done: make(chan struct{})}
	go s.read()
	return s, w, nil
}

func (s *sink) read() {
	defer close(s.done)
	b := make([]byte, 32<<10)
	for {
		n, err := s.r.Read(b)
		s.add(b[:n])
		if errors.Is(err, os.ErrDeadlineExceeded) {
			s.drain(b)
			return
		}
		if err != nil {
			return
		}
	}
}

// drain takes what is in the pipe now. It is bounded, since somebody may go on
// writing.
func (s *sink) drain(b []byte) {
	conn, err := s.r.SyscallConn()
	if err != nil {
		return
	}
	_ = conn.Control(func(fd uintptr) {
		for range 64 {
			n, err := unix.Read(int(fd), b)
			if n <= 0 || err != nil {
				return
			}
			s.add(b[:n])
		}
	})
}

func (s *sink) add(b []byte) {
	s.buf = append(s.buf, b...)
	if len(s.buf) <= s.max {
		return
	}
	s.over = true
	if s.tail {
		s.buf = append(s.buf[:0], s.buf[len(s.buf)-s.max:]...)
	} else {
		s.buf = s.buf[:s.max]
	}
}

// finish returns what was written until now, and whether more was written than
// is kept.
func (s *sink) finish() ([]byte, bool) {
	_ = s.r.SetReadDeadline(past)
	<-s.done
	return s.buf, s.over
}

func (s *sink) close() {
	_ = s.r.SetReadDeadline(past)
	<-s.done
	s.r.Close()
}
