package stdio

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Store is systemd's file descriptor store of this service: what is in it comes
// back after a kill. A nil Store keeps nothing.
type Store struct{ fd int }

// barrierTimeout bounds the wait for PID 1, which stands still for a second now
// and then while it reloads hundreds of units.
const barrierTimeout = 60 * time.Second

// OpenStore connects to the socket that NOTIFY_SOCKET names; "" gives no store.
func OpenStore(addr string) (*Store, error) {
	if addr == "" {
		return nil, nil
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	// The system's manager listens on a path that begins with / or @.
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: addr}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("connect %s: %w", addr, err)
	}
	return &Store{fd: fd}, nil
}

// Notify sends a state such as READY=1.
func (s *Store) Notify(state string) error {
	if s == nil {
		return nil
	}
	return s.send(state)
}

// Add returns when systemd holds the descriptors under the name, and all that was
// put before.
func (s *Store) Add(name string, fds ...int) error {
	if err := s.put(name, fds...); err != nil || s == nil {
		return err
	}
	if err := s.barrier(); err != nil {
		return fmt.Errorf("store descriptors %s: %w", name, err)
	}
	return nil
}

// AddEach is Add for files of several names, with one wait for all.
func (s *Store) AddEach(files ...File) error {
	if len(files) == 0 || s == nil {
		return nil
	}
	for _, f := range files[:len(files)-1] {
		if err := s.put(f.Name, f.FD); err != nil {
			return err
		}
	}
	last := files[len(files)-1]
	return s.Add(last.Name, last.FD)
}

// put sends descriptors. They arrive in one datagram: all of them or none.
// FDPOLL=0 keeps systemd from dropping a pipe when its writers are gone, and with
// it what they wrote last.
func (s *Store) put(name string, fds ...int) error {
	if s == nil {
		return nil
	}
	if err := s.send("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, fds...); err != nil {
		return fmt.Errorf("store descriptors %s: %w", name, err)
	}
	return nil
}

// Remove drops all descriptors of the name.
func (s *Store) Remove(name string) error {
	if s == nil {
		return nil
	}
	if err := s.send("FDSTOREREMOVE=1\nFDNAME=" + name); err != nil {
		return fmt.Errorf("drop descriptors %s: %w", name, err)
	}
	return nil
}

func (s *Store) send(state string, fds ...int) error {
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	for {
		err := unix.Sendmsg(s.fd, []byte(state), oob, nil, unix.MSG_NOSIGNAL)
		if err != unix.EINTR {
			return os.NewSyscallError("sendmsg", err)
		}
	}
}

// barrier waits until systemd has handled all that was sent before: it closes the
// pipe that comes with the message when it gets there.
func (s *Store) barrier() error {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return os.NewSyscallError("pipe", err)
	}
	defer unix.Close(p[0])
	err := s.send("BARRIER=1", p[1])
	unix.Close(p[1])
	if err != nil {
		return err
	}
	deadline := time.Now().Add(barrierTimeout)
	for {
		left := time.Until(deadline).Milliseconds()
		if left <= 0 {
			return errors.New("systemd does not answer")
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(p[0])}}, int(left))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return os.NewSyscallError("poll", err)
		case n > 0:
			return nil
		}
	}
}

// File is a descriptor that systemd handed over, and its name.
type File struct {
	Name string
	FD   int
}

// listenStart is the first descriptor systemd hands over.
const listenStart = 3

// ListenFiles reads what systemd handed over from LISTEN_PID, LISTEN_FDS and
// LISTEN_FDNAMES.
func ListenFiles(pid, fds, names string) ([]File, error) {
	if pid != strconv.Itoa(os.Getpid()) {
		return nil, nil
	}
	n, err := strconv.Atoi(fds)
	if err != nil || n < 0 {
		return nil, fmt.Errorf("LISTEN_FDS=%q: want a number", fds)
	}
	list := strings.Split(names, ":")
	files := make([]File, n)
	for i := range files {
		files[i].FD = listenStart + i
		if i < len(list) {
			files[i].Name = list[i]
		}
	}
	return files, nil
}
