package initproc

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// How long the OCI runtime may take. The bounds are ours, so that an error names
// the runtime and not only a unit whose time was over; systemd's bounds for a
// start (110 s) and an end (30 s a command) are above them.
const (
	createTime = 100 * time.Second
	startTime  = 60 * time.Second
	deleteTime = 10 * time.Second
)

// atMost is a bound of ours, or the operator's if that is less.
func (s Start) atMost(limit time.Duration) time.Duration {
	if s.RuntimeMS > 0 {
		return min(limit, time.Duration(s.RuntimeMS)*time.Millisecond)
	}
	return limit
}

// ociRuntime is the OCI runtime's command line up to the subcommand, and the file
// for its messages ("" for none).
type ociRuntime struct {
	command []string
	log     string
}

func runtimeOf(s Start) ociRuntime {
	return ociRuntime{s.Runtime, filepath.Join(s.Bundle, "runtime.log")}
}

// Forget makes the OCI runtime forget an app's container of which no process is
// left. command is its command line up to the subcommand.
func Forget(command []string, app string) error {
	return ociRuntime{command: command}.run(deleteTime, nil, "delete", "--force", app)
}

// run runs the OCI runtime, for at most limit. NOTIFY_SOCKET is not passed on: the
// runtime would proxy it. With files they are the app's stdin, stdout and stderr,
// which the runtime hands to the app; its own messages go to the log file then.
func (r ociRuntime) run(limit time.Duration, files []*os.File, args ...string) error {
	began := time.Now()
	argv := append([]string{}, r.command[1:]...)
	if r.log != "" {
		argv = append(argv, "--log", r.log)
	}
	cmd := exec.Command(r.command[0], append(argv, args...)...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	// A group of its own, to be killed as a whole.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// A file and no pipe: what the runtime leaves behind may keep it open for ever.
	own, err := memoryFile()
	if err != nil {
		return err
	}
	defer own.Close()
	cmd.Stderr = own
	if files != nil {
		cmd.Stdin, cmd.Stdout, cmd.Stderr = files[0], files[1], files[2]
	}
	if err := within(cmd, limit); err != nil {
		text := fmt.Sprintf(" (after %s)", time.Since(began).Round(time.Millisecond))
		if said := r.said(own); said != "" {
			text += ": " + said
		}
		return fmt.Errorf("%s %s: %w%s", filepath.Base(r.command[0]), args[0], err, text)
	}
	return nil
}

// within runs a command to its end, or kills it when its time is over.
func within(cmd *exec.Cmd, limit time.Duration) error {
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case err := <-ended:
		return err
	case <-timer.C:
	}
	if err := unix.Kill(-cmd.Process.Pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill it: %w", err)
	}
	<-ended
	return fmt.Errorf("killed: it took longer than %s", limit)
}

// said collects what the runtime had to say, in one line of bounded length.
func (r ociRuntime) said(own *os.File) string {
	const most = 2048
	log, _ := os.ReadFile(r.log) // no log is an empty one
	stderr, _ := io.ReadAll(io.NewSectionReader(own, 0, most))
	text := strings.Join(strings.Fields(string(log)+" "+string(stderr)), " ")
	if len(text) > most {
		text = text[:most] + "…"
	}
	return text
}

func memoryFile() (*os.File, error) {
	fd, err := unix.MemfdCreate("stderr", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd: %w", err)
	}
	return os.NewFile(uintptr(fd), "stderr"), nil
}
