package stdio

import (
	"errors"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/pod"
)

// sinkLimit bounds how far a session may be behind. One that is further behind
// is ended: a log never waits for those who watch it.
const sinkLimit = 4 << 20

// sink is the output side of a session: what waits to be sent.
type sink struct {
	want [2]bool
	wake chan struct{} // has room for one

	mu     sync.Mutex
	frames [][]byte
	size   int
	ended  bool
	reason string // why it ended, if not with the app
}

func (k *sink) push(stream uint8, data []byte) {
	if !k.want[stream] {
		return
	}
	kind := byte(frameStdout)
	if stream == stderr {
		kind = frameStderr
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.ended {
		return
	}
	if k.size+len(data) > sinkLimit {
		k.frames, k.size, k.ended = nil, 0, true
		k.reason = "this session fell behind what the app prints and was ended; the log has all of it"
		k.signal()
		return
	}
	for part := range slices.Chunk(data, maxFrame-1) {
		k.frames = append(k.frames, append([]byte{kind}, part...))
	}
	k.size += len(data)
	k.signal()
}

func (k *sink) end() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ended = true
	k.signal()
}

func (k *sink) signal() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// take waits for frames; none means the end.
func (k *sink) take() (frames [][]byte, reason string) {
	for {
		k.mu.Lock()
		frames, k.frames, k.size = k.frames, nil, 0
		ended, reason := k.ended, k.reason
		k.mu.Unlock()
		if len(frames) > 0 || ended {
			return frames, reason
		}
		<-k.wake
	}
}

// endTimeout bounds the wait for a client that does not even take the last frame.
const endTimeout = 2 * time.Second

// deliver sends frames until the session ends, and hangs up.
func (k *sink) deliver(conn *seqpacket) {
	defer conn.close()
	for {
		frames, reason := k.take()
		for _, f := range frames {
			if conn.send(f) != nil {
				return
			}
		}
		if len(frames) == 0 {
			_ = conn.f.SetWriteDeadline(time.Now().Add(endTimeout))
			_ = conn.send(append([]byte{frameEnd}, reason...))
			return
		}
	}
}

// sinkEnd ends all sessions of an app whose outputs have ended. c.mu is held.
func (s *Server) sinkEnd(c *container) {
	if c.finished || c.ended() && !(c.saved.TTY && c.streams[stdout].src < 0) {
		for _, k := range c.sinks {
			k.end()
		}
	}
}

// attach turns the connection into a session, and returns when that has ended.
func (s *Server) attach(conn *seqpacket, req request) error {
	c, err := s.find(req.App)
	if err != nil {
		return err
	}
	k := &sink{want: [2]bool{req.Stdout, req.Stderr}, wake: make(chan struct{}, 1)}
	c.mu.Lock()
	input, err := c.openInput(req.Stdin)
	if err == nil {
		c.sinks = append(c.sinks, k)
		s.sinkEnd(c)
	}
	c.mu.Unlock()
	if err != nil {
		return err
	}
	err = sendReply(conn, reply{}, nil)
	if err == nil {
		go k.deliver(conn)
		s.listen(conn, c, k, input)
	}
	k.end() // hangs up
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sinks = slices.DeleteFunc(c.sinks, func(o *sink) bool { return o == k })
	if input != nil && c.saved.StdinOnce && !c.saved.TTY {
		s.warn(c, s.endInput(c))
	}
	return errTaken
}

func (s *Server) warn(c *container, err error) {
	if err != nil {
		s.log.Warn("close an app's stdin", "app", c.saved.App, "error", err)
	}
}

// openInput gives what a session's input goes to; nil if the app reads nothing.
// All sessions share it. c.mu is held.
func (c *container) openInput(want bool) (*os.File, error) {
	fd := c.stdin
	if c.saved.TTY && c.saved.Stdin {
		fd = c.streams[stdout].src
	}
	if !want || fd < 0 || c.input != nil {
		if !want {
			return nil, nil
		}
		return c.input, nil
	}
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("dup", err)
	}
	if err := unix.SetNonblock(dup, true); err != nil {
		unix.Close(dup)
		return nil, err
	}
	c.input = os.NewFile(uintptr(dup), "stdin")
	return c.input, nil
}

// endInput closes the app's stdin for good. c.mu is held.
func (s *Server) endInput(c *container) error {
	if c.stdin < 0 {
		return nil
	}
	c.rec.setFlag(flagStdinClosed)
	s.fp.hit("stdin-marked")
	err := s.store.Remove(c.key + nameStdin)
	if c.input != nil {
		err = errors.Join(err, c.input.Close())
		c.input = nil
	}
	unix.Close(c.stdin)
	c.stdin = -1
	return err
}

// listen deals with what the client sends, until it leaves or the session ends.
func (s *Server) listen(conn *seqpacket, c *container, k *sink, input *os.File) {
	buf := make([]byte, maxFrame)
	for {
		n, fds, err := conn.recv(buf)
		closeAll(fds)
		if err != nil {
			return
		}
		kind, data, size, err := parseClientFrame(buf[:n])
		switch {
		case err != nil:
			s.log.Warn("a session sends nonsense", "app", c.saved.App, "error", err)
			return
		case kind == frameStdin && input != nil:
			if !feed(conn, input, data) {
				return
			}
		case kind == frameClose && input != nil && c.saved.StdinOnce && !c.saved.TTY:
			c.mu.Lock()
			s.warn(c, s.endInput(c))
			c.mu.Unlock()
		case kind == frameResize:
			c.mu.Lock()
			_ = c.resize(size) // without a terminal there is no size
			c.mu.Unlock()
		}
	}
}

// feed writes to an app's stdin for as long as the client is there. An app that
// has closed its stdin does not end the session.
func feed(conn *seqpacket, input *os.File, data []byte) bool {
	for len(data) > 0 {
		_ = input.SetWriteDeadline(time.Now().Add(time.Second))
		n, err := input.Write(data)
		data = data[n:]
		switch {
		case err == nil:
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return true
		case hungUp(conn):
			return false
		}
	}
	return true
}

// hungUp tells whether the client is gone, while nobody reads from it.
func hungUp(conn *seqpacket) (gone bool) {
	var b [1]byte
	err := conn.raw.Control(func(fd uintptr) {
		n, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		gone = n == 0 && err == nil || err != nil && err != unix.EAGAIN && err != unix.EINTR
	})
	return gone || err != nil
}

func (s *Server) closeStdin(app pod.ID) error {
	c, err := s.find(app)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return s.endInput(c)
}
