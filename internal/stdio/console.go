package stdio

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/pod"
)

// console waits for the master of an app's terminal. Its listening socket is in
// systemd's store, so that a connection made while the server is away waits.
type console struct {
	l *listener

	mu    sync.Mutex
	taken bool // a connection has been accepted, and is being dealt with
}

func (c *console) close() { c.l.close() }

// accept takes a connection, in such a way that coming sees it at any moment.
func (c *console) accept() (fd int, err error) {
	werr := c.l.raw.Read(func(lfd uintptr) bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		fd, err = acceptFD(lfd)
		c.taken = err == nil
		return err != unix.EAGAIN
	})
	return fd, errors.Join(werr, err)
}

// coming tells whether a terminal is on its way.
func (c *console) coming() (yes bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.l.raw.Control(func(lfd uintptr) {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(lfd), Events: unix.POLLIN}}, 0)
		yes = n > 0 && err == nil
	})
	return yes || c.taken
}

func (c *console) refused() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.taken = false
}

// openConsole makes sure that a terminal can be handed over. c.mu is held.
func (s *Server) openConsole(c *container) error {
	if c.console != nil {
		return nil
	}
	path := s.consolePath(c)
	fd, err := Listen(path, unix.SOCK_STREAM)
	if err != nil {
		return err
	}
	if err := s.store.Add(c.key+nameListener, fd); err != nil {
		return errors.Join(err, os.Remove(path), unix.Close(fd))
	}
	return s.awaitTerminal(c, fd)
}

func (s *Server) awaitTerminal(c *container, fd int) error {
	l, err := newListener(fd)
	if err != nil {
		return err
	}
	c.console = &console{l: l}
	go s.receiveConsole(c, c.console)
	return nil
}

// receiveConsole waits for a connection that brings a terminal.
func (s *Server) receiveConsole(c *container, con *console) {
	for {
		fd, err := con.accept()
		if err != nil {
			return // closed
		}
		s.fp.hit("console-accepted")
		master, err := receiveTerminal(fd)
		if err == nil {
			err = s.adopt(c, con, master)
		}
		if err == nil {
			return
		}
		con.refused()
		s.log.Error("receive a terminal", "app", c.saved.App, "error", err)
	}
}

const terminalTimeout = 10 * time.Second

// receiveTerminal takes the descriptor that an OCI runtime sends.
func receiveTerminal(conn int) (int, error) {
	c, err := newSeqpacket(conn) // a stream, of which one message is read
	if err != nil {
		return -1, err
	}
	defer c.close()
	if err := c.f.SetReadDeadline(time.Now().Add(terminalTimeout)); err != nil {
		return -1, err
	}
	var buf [4096]byte
	_, fds, err := c.recv(buf[:])
	if err != nil {
		return -1, err
	}
	if len(fds) != 1 {
		closeAll(fds)
		return -1, fmt.Errorf("%d descriptors came, want 1", len(fds))
	}
	if !isTerminal(fds[0]) {
		closeAll(fds)
		return -1, errors.New("what came is no terminal")
	}
	return fds[0], unix.SetNonblock(fds[0], true)
}

func isTerminal(fd int) bool {
	_, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	return err == nil
}

// adopt makes a terminal the app's stdout, once it is safe.
func (s *Server) adopt(c *container, con *console, master int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.finished || c.console != con {
		unix.Close(master)
		return nil
	}
	st := &c.streams[stdout]
	if st.src >= 0 {
		// A terminal from a start that was tried before.
		s.poller.del(st)
		unix.Close(st.src)
		st.src, st.armed, st.eof = -1, false, false
		if c.input != nil {
			c.input.Close()
			c.input = nil
		}
		if err := s.store.Remove(c.key + nameTerminal); err != nil {
			return err
		}
	}
	if err := s.store.Add(c.key+nameTerminal, master); err != nil {
		unix.Close(master)
		return err
	}
	s.fp.hit("console-stored")
	st.src = master
	if err := s.arm(st); err != nil {
		return err
	}
	if c.size != (Size{}) { // a session came before the terminal
		if err := c.resize(c.size); err != nil {
			s.log.Warn("set the size of a terminal", "app", c.saved.App, "error", err)
		}
	}
	s.closeConsole(c)
	c.signal()
	return nil
}

func (s *Server) closeConsole(c *container) {
	c.console.close()
	c.console = nil
	if err := errors.Join(s.store.Remove(c.key+nameListener), os.Remove(s.consolePath(c))); err != nil {
		s.log.Warn("close a console socket", "app", c.saved.App, "error", err)
	}
}

// awaitConsole waits until the app's terminal has arrived.
func (s *Server) awaitConsole(ctx context.Context, app pod.ID, timeout time.Duration) error {
	c, err := s.find(app)
	if err != nil {
		return err
	}
	late := time.After(timeout)
	for {
		c.mu.Lock()
		done, gone, changed := c.console == nil && c.streams[stdout].src >= 0, c.finished, c.wait()
		c.mu.Unlock()
		switch {
		case gone || !c.saved.TTY:
			return fmt.Errorf("app %s has no terminal: %w", app, pod.ErrState)
		case done:
			return nil
		}
		select {
		case <-changed:
		case <-late:
			return fmt.Errorf("the terminal of app %s was not handed over: %w", app, pod.ErrUnavailable)
		case <-ctx.Done():
			return errTaken // no answer: the next server is asked again
		}
	}
}

func (s *Server) resize(app pod.ID, size Size) error {
	c, err := s.find(app)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.resize(size)
}

func (c *container) resize(size Size) error {
	c.size = size
	if !c.saved.TTY || c.streams[stdout].src < 0 {
		return fmt.Errorf("app %s has no terminal: %w", c.saved.App, pod.ErrState)
	}
	ws := unix.Winsize{Row: size.Height, Col: size.Width}
	return os.NewSyscallError("TIOCSWINSZ", unix.IoctlSetWinsize(c.streams[stdout].src, unix.TIOCSWINSZ, &ws))
}
