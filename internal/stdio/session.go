package stdio

import (
	"errors"
	"fmt"
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

// early is a session with an app whose streams are not there yet.
type early struct {
	sink  *sink
	start chan *container // has room for the one that comes
}

// attach turns the connection into a session, and returns when that has ended.
func (s *Server) attach(conn *seqpacket, req request) error {
	k := &sink{want: [2]bool{req.Stdout, req.Stderr}, wake: make(chan struct{}, 1)}
	c, e, err := s.join(req, k)
	if err != nil {
		return err
	}
	if err = sendReply(conn, reply{}, nil); err == nil {
		go k.deliver(conn)
		if e != nil {
			c = e.await(conn)
		}
		if c != nil {
			s.listen(conn, c, k, req.Stdin)
		}
	}
	k.end() // hangs up
	if e != nil && c == nil {
		if c = s.forgetEarly(req.App, e); c == nil {
			return errTaken
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sinks = slices.DeleteFunc(c.sinks, func(o *sink) bool { return o == k })
	if req.Stdin && c.saved.Stdin && c.saved.StdinOnce && !c.saved.TTY {
		s.warn(c, s.endInput(c))
	}
	return errTaken
}

// join adds a session to an app, or to those that wait for its streams.
func (s *Server) join(req request, k *sink) (*container, *early, error) {
	s.mu.Lock()
	c := s.byApp[req.App]
	if c == nil && req.Wait {
		e := &early{k, make(chan *container, 1)}
		s.early[req.App] = append(s.early[req.App], e)
		s.mu.Unlock()
		return nil, e, nil
	}
	s.mu.Unlock()
	if c == nil {
		return nil, nil, fmt.Errorf("app %s has no streams: %w", req.App, pod.ErrNotFound)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, err := c.openInput(req.Stdin); err != nil {
		return nil, nil, err
	}
	c.sinks = append(c.sinks, k)
	s.sinkEnd(c)
	return c, nil, nil
}

// admit gives an app that is not in the tables yet the sessions that wait for it, so
// that they miss nothing of what it prints. s.mu is held.
func (s *Server) admit(c *container) {
	for _, e := range s.early[c.saved.App] {
		c.sinks = append(c.sinks, e.sink)
		e.start <- c
	}
	delete(s.early, c.saved.App)
}

// await waits for the app's streams; nil when the client has gone.
func (e *early) await(conn *seqpacket) *container {
	for {
		select {
		case c := <-e.start:
			return c
		case <-time.After(time.Second):
			if hungUp(conn) {
				return nil
			}
		}
	}
}

// forgetEarly ends the wait for an app, which may have come just now.
func (s *Server) forgetEarly(app pod.ID, e *early) *container {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.early[app] = slices.DeleteFunc(s.early[app], func(o *early) bool { return o == e })
	if len(s.early[app]) == 0 {
		delete(s.early, app)
	}
	select {
	case c := <-e.start:
		return c
	default:
		return nil
	}
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
func (s *Server) listen(conn *seqpacket, c *container, k *sink, stdin bool) {
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
		case kind == frameStdin && stdin:
			if input := c.awaitInput(conn); input != nil && !feed(conn, input, data) {
				return
			}
		case kind == frameClose && stdin && c.saved.StdinOnce && !c.saved.TTY:
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

// awaitInput gives what an app reads from, nil if it reads nothing. It waits for the
// app's end to be there: what is written to a pipe without a reader is lost.
func (c *container) awaitInput(conn *seqpacket) *os.File {
	for {
		c.mu.Lock()
		input, err := c.openInput(true)
		coming := c.saved.Stdin && !c.finished && !c.streams[stdout].armed
		changed := c.wait()
		c.mu.Unlock()
		if err != nil || !coming {
			return input
		}
		select {
		case <-changed:
		case <-time.After(time.Second):
		}
		if hungUp(conn) {
			return nil
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
