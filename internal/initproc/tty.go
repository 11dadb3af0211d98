package initproc

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// terminal makes a terminal of the rootfs' own /dev/pts, gives its master to who
// listens at socket and returns the app's ends of it. It is ours from then on.
func (r rootfs) terminal(p Process, socket string) ([]*os.File, error) {
	fd, err := r.lookup("/dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/pts/ptmx: %w", err)
	}
	master := os.NewFile(uintptr(fd), "ptmx")
	defer master.Close()
	var where unix.Statfs_t
	if err := unix.Fstatfs(fd, &where); err != nil || where.Type != unix.DEVPTS_SUPER_MAGIC {
		return nil, errors.Join(errors.New("/dev/pts/ptmx is not the kernel's"), err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, fmt.Errorf("unlock it: %w", err)
	}
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return nil, fmt.Errorf("open the other end: %w", errno)
	}
	slave := os.NewFile(peer, "terminal")
	if err := slave.Chown(int(p.UID), -1); err != nil {
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
