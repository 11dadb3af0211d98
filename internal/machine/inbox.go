package machine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// inbox is between an app's input and its machine, so that a kill neither loses nor doubles
// any of it. What is under way is in a pipe that systemd keeps: bytes are moved into it by
// one call, and out of it by one call when the machine has them. Where they belong is written
// down before; what the machine has of them it leaves out.
type inbox struct {
	from *os.File // the app's input
	hold *os.File // both ends of a pipe
	at   *os.File // the offset of what is in it
	copy [2]int   // a pipe to look at that through
}

// inboxSize is how much is under way at once; a pipe has room for it in any pieces.
const inboxSize = 16 << 10

// holdPipe makes the pipe.
func holdPipe() (*os.File, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, fmt.Errorf("make a pipe: %w", err)
	}
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	return os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", p[0]), os.O_RDWR, 0)
}

func newInbox(from, hold *os.File, file string) (*inbox, error) {
	at, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	b := &inbox{from: from, hold: hold, at: at}
	if err := unix.Pipe2(b.copy[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, errors.Join(fmt.Errorf("make a pipe: %w", err), at.Close())
	}
	return b, nil
}

// next returns what is to be said to the app, and its offset: what a killed process has left,
// or what comes after known, which the machine has. At the end of the input it is io.EOF.
func (b *inbox) next(known uint64) (data []byte, offset uint64, err error) {
	var place [8]byte
	fd := int(b.hold.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
	if err != nil {
		return nil, 0, fmt.Errorf("look at the input: %w", err)
	}
	if n > 0 {
		if _, err := b.at.ReadAt(place[:], 0); err != nil {
			return nil, 0, fmt.Errorf("read where the input is: %w", err)
		}
	} else {
		binary.LittleEndian.PutUint64(place[:], known)
		if _, err := b.at.WriteAt(place[:], 0); err != nil {
			return nil, 0, fmt.Errorf("write where the input is: %w", err)
		}
		if n, err = move(int(b.from.Fd()), fd); err != nil {
			return nil, 0, err
		}
	}
	data, err = b.look(n)
	return data, binary.LittleEndian.Uint64(place[:]), err
}

// move moves some bytes, and waits until there are some.
func move(from, to int) (int, error) {
	for {
		n, err := unix.Splice(from, nil, to, nil, inboxSize, 0)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			if _, err := unix.Poll([]unix.PollFd{{Fd: int32(from), Events: unix.POLLIN}}, -1); err != nil && !errors.Is(err, unix.EINTR) {
				return 0, err
			}
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		default:
			return int(n), nil
		}
	}
}

// look copies what is held.
func (b *inbox) look(n int) ([]byte, error) {
	if _, err := unix.Tee(int(b.hold.Fd()), b.copy[1], n, 0); err != nil {
		return nil, fmt.Errorf("copy the input: %w", err)
	}
	data := make([]byte, n)
	for got := 0; got < n; {
		m, err := unix.Read(b.copy[0], data[got:])
		if err != nil && !errors.Is(err, unix.EINTR) || m == 0 {
			return nil, fmt.Errorf("read %d of %d bytes of the input: %w", got, n, err)
		}
		got += max(m, 0)
	}
	return data, nil
}

// done lets go of what is held.
func (b *inbox) done(n int) error {
	if m, err := unix.Read(int(b.hold.Fd()), make([]byte, n)); err != nil || m != n {
		return fmt.Errorf("take %d bytes of input: %d, %w", n, m, err)
	}
	return nil
}
