package initproc

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// terminal makes a terminal of the rootfs' own /dev/pts, gives its master to who
// listens at socket and returns the app's ends of it. It is ours from then on.
func (r rootfs) terminal(p Process, socket string) ([]*os.File, error) {
	master, err := r.openDevice("/dev/ptmx")
	if err != nil {
		return nil, fmt.Errorf("open /dev/ptmx: %w", err)
	}
	defer master.Close()
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		return nil, fmt.Errorf("unlock it: %w", err)
	}
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		return nil, fmt.Errorf("ask for its number: %w", err)
	}
	slave, err := r.openDevice("/dev/pts/" + strconv.Itoa(number))
	if err != nil {
		return nil, fmt.Errorf("open it: %w", err)
	}
	if err := slave.Chown(int(p.UID), -1); err != nil && !errors.Is(err, unix.EPERM) {
		return nil, err
	}
	if err := takeTerminal(slave); err != nil {
		return nil, err
	}
	if err := sendTerminal(socket, master); err != nil {
		return nil, fmt.Errorf("hand it over: %w", err)
	}
	return []*os.File{slave, slave, slave}, nil
}

// openDevice opens a device for reading and writing.
func (r rootfs) openDevice(p string) (*os.File, error) {
	fd, err := unix.Openat2(r.fd, p[1:], &unix.OpenHow{
		Flags: unix.O_RDWR | unix.O_NOCTTY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), p), nil
}

// takeTerminal makes it that of our session, which is a new one if there has to be.
func takeTerminal(slave *os.File) error {
	if _, err := unix.Setsid(); err != nil && !errors.Is(err, unix.EPERM) { // we lead one already
		return fmt.Errorf("begin a session: %w", err)
	}
	if err := unix.IoctlSetInt(int(slave.Fd()), unix.TIOCSCTTY, 0); err != nil {
		return fmt.Errorf("take it: %w", err)
	}
	return nil
}

func sendTerminal(socket string, master *os.File) error {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return err
	}
	defer conn.Close()
	return sendFile(conn, "terminal", master)
}
