package initproc

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// holdArg is argv[0] of the process that is PID 1 of a shared PID namespace.
const holdArg = "gantry-holder"

// hold starts a process in a new PID namespace and leaves: as the only one of its
// service it becomes the main process. The namespace ends with that process: it is part of the pod.
func hold() error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("hold PID namespace: %w", err)
	}
	cmd := exec.Command(self)
	cmd.Args = []string{holdArg}
	cmd.Env = []string{"GODEBUG=asyncpreemptoff=1", "GOGC=off"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("hold PID namespace: %w", err)
	}
	return cmd.Process.Release()
}

// holdChild reaps what is left to it and waits to be told to go.
func holdChild() error {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGCHLD, unix.SIGTERM, unix.SIGINT)
	for s := range signals {
		if s != unix.SIGCHLD {
			return nil
		}
		reap()
	}
	return nil
}

func reap() {
	for {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		if err != nil || pid <= 0 {
			return
		}
	}
}
