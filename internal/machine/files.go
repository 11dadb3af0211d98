package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"gantry/internal/initproc"
)

// ServeFiles prepares a pod's machine and becomes the server of its files: a program and
// its arguments, without those that say where to listen. It returns only if that cannot
// be. systemd is told when the socket is there, so the machine may come at once: what it
// says is heard when the server runs.
func ServeFiles(ctx context.Context, podDir string, command []string) error {
	if err := prepare(ctx, podDir); err != nil {
		return err
	}
	err := becomeServer(podDir, command)
	return fmt.Errorf("%s: %w", StageFiles, err)
}

func becomeServer(podDir string, command []string) error {
	var plan Plan
	if err := readJSON(filepath.Join(podDir, PlanFile), &plan); err != nil {
		return fmt.Errorf("read plan: %w", err)
	}
	if err := runnable(command[0]); err != nil {
		return err
	}
	fd, err := listen(filepath.Join(plan.Run, SocketFile))
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	if err := initproc.Ready(); err != nil {
		return err
	}
	// Whoever takes over the server has nothing to say to systemd.
	env := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "NOTIFY_SOCKET=") })
	return syscall.Exec(command[0], append(command, "--fd="+strconv.Itoa(fd)), env)
}

// listen makes a socket that is root's alone, whose descriptor stays open for the program
// that follows.
func listen(path string) (fd int, err error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return -1, err
	}
	fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return -1, err
	}
	// The file that comes to be has the mode that the socket has before.
	if err = unix.Fchmod(fd, 0o600); err == nil {
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	}
	if err == nil {
		err = unix.Listen(fd, 1) // the emulator
	}
	if err != nil {
		return -1, errors.Join(fmt.Errorf("%s: %w", path, err), unix.Close(fd))
	}
	return fd, nil
}
