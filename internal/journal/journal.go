// Package journal writes to systemd's journal and reads from it. Writing speaks
// the journal's own datagram protocol; reading runs journalctl, which knows every
// format the files ever had.
package journal

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Socket is where journald listens.
const Socket = "/run/systemd/journal/socket"

// Field is one field of an entry. Names are of A-Z, 0-9 and _, and do not begin
// with _, which the journal keeps for what it vouches for.
type Field struct{ Name, Value string }

// AppendField adds a field to an entry in the journal's native format.
func AppendField[T string | []byte](entry []byte, name string, value T) []byte {
	entry = append(entry, name...)
	if bytes.IndexByte([]byte(value), '\n') < 0 {
		entry = append(entry, '=')
		entry = append(entry, value...)
		return append(entry, '\n')
	}
	entry = append(entry, '\n')
	entry = binary.LittleEndian.AppendUint64(entry, uint64(len(value)))
	entry = append(entry, value...)
	return append(entry, '\n')
}

// socket sends entries, several with one system call.
type socket struct {
	fd   int
	msgs []mmsghdr
	iovs []unix.Iovec
}

// mmsghdr is the kernel's struct mmsghdr.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

// batchSize is how many entries go with one system call.
const batchSize = 64

func openSocket(path string) (*socket, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("connect %s: %w", path, err)
	}
	// Room for what journald has not got to: it takes one entry at a time.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1<<20)
	return &socket{fd: fd, msgs: make([]mmsghdr, batchSize), iovs: make([]unix.Iovec, batchSize)}, nil
}

func (s *socket) close() error { return unix.Close(s.fd) }
