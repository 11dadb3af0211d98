package guest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"gantry/internal/initproc"
)

// holderArg as argv[0] makes this program PID 1 of what apps of the pod share.
const holderArg = "gantry-holder"

// holder is the process that the pod's PID namespace begins and ends with. It is there from
// the first app on that wants it.
type holder struct {
	mu  sync.Mutex
	cmd *exec.Cmd
}

// get returns its number. With it all ends that is in the namespace, so another one is
// made if it was killed.
func (h *holder) get() (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.cmd != nil && h.cmd.Process.Signal(syscall.Signal(0)) == nil {
		return h.cmd.Process.Pid, nil
	}
	cmd, err := startHolder()
	if err != nil {
		return 0, fmt.Errorf("hold the pod's PID namespace: %w", err)
	}
	go cmd.Wait()
	h.cmd = cmd
	return cmd.Process.Pid, nil
}

// end ends it, and all that is in the namespace.
func (h *holder) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.cmd != nil {
		_ = h.cmd.Process.Kill() // it may be gone
	}
}

func startHolder() (*exec.Cmd, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{holderArg}
	cmd.Env = []string{"GODEBUG=asyncpreemptoff=1", "GOGC=off"}
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWPID, Unshareflags: unix.CLONE_NEWNS}
	if err := errors.Join(cmd.Start(), w.Close()); err != nil {
		return nil, err
	}
	if err := initproc.HolderReported(r); err != nil {
		_ = cmd.Process.Kill() // it may be gone
		return nil, errors.Join(err, cmd.Wait())
	}
	return cmd, nil
}

// IsHolder tells whether the program was started to hold the pod's PID namespace.
func IsHolder(args []string) bool { return len(args) > 0 && args[0] == holderArg }

// Hold does so until it is told to end.
func Hold() error { return initproc.Hold() }
