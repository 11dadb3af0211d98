package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// ownTerminal gives the command a new terminal, for a runtime that makes another one for
// the process and copies between the two.
func (r *execRun) ownTerminal(ctx context.Context, cmd *exec.Cmd) (*session, error) {
	master, slave, err := openTerminal()
	if err != nil {
		return nil, fmt.Errorf("make a terminal: %w", err)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr.Setctty = true // a new size is told to whom it controls
	s := &session{out: make(chan struct{}), theirs: []*os.File{slave}, ours: []io.Closer{master}}
	s.before = func() {
		go func() {
			defer close(s.out)
			r.use(ctx, master, s)
		}()
	}
	return s, nil
}

func openTerminal() (master, slave *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	master = os.NewFile(uintptr(fd), "terminal")
	err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	n, err2 := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err := errors.Join(err, err2); err != nil {
		return nil, nil, errors.Join(err, master.Close())
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, errors.Join(err, master.Close())
	}
	return master, slave, nil
}
