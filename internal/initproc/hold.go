package initproc

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The process that is PID 1 of a shared PID namespace, by argv[0]: first it shuts
// itself in, then it is executed again from a mount that nobody can write to.
const (
	holdStartArg = "gantry-holder-start"
	holdArg      = "gantry-holder"
)

// holdReport is the descriptor on which the holder says how its start went.
const holdReport = 3

const holdReady = "ready"

// hold starts a process in a new PID namespace and leaves: as the only one of its
// service it becomes the main process. The namespace ends with that process: it is part of the pod.
func hold() error {
	if err := startHolder(); err != nil {
		return fmt.Errorf("hold PID namespace: %w", err)
	}
	return nil
}

func startHolder() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command(self)
	cmd.Args = []string{holdStartArg}
	cmd.Env = []string{"GODEBUG=asyncpreemptoff=1", "GOGC=off"}
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS}
	err = errors.Join(cmd.Start(), w.Close())
	if err != nil {
		return err
	}
	if err := holderReported(r); err != nil {
		_ = cmd.Process.Kill() // it may be gone
		return errors.Join(err, cmd.Wait())
	}
	return cmd.Process.Release()
}

func holderReported(r io.Reader) error {
	said, err := io.ReadAll(io.LimitReader(r, 4096))
	switch {
	case err != nil:
		return fmt.Errorf("read what the holder says: %w", err)
	case len(said) == 0:
		return errors.New("the holder died at its start")
	case string(said) != holdReady:
		return errors.New(string(said))
	}
	return nil
}

// holdStart executes the program again from a read-only mount: an app that may trace
// the holder could write to the host's file through /proc/1/exe.
func holdStart() error {
	return reportFailure(func() error {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("make mounts private: %w", err)
		}
		if err := unix.Mount(self, self, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s: %w", self, err)
		}
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID}
		if err := unix.MountSetattr(unix.AT_FDCWD, self, 0, &attr); err != nil {
			return fmt.Errorf("make %s read-only: %w", self, err)
		}
		return syscall.Exec(self, []string{holdArg}, os.Environ())
	})
}

// Hold is what PID 1 of a shared PID namespace does in a machine, in a mount namespace of its
// own: what it is executed from cannot be written to there. It says on descriptor 3 how its
// start went: see HolderReported.
func Hold() error { return holdChild() }

// HolderReported reads what a holder said, and gives it as an error if it does not hold.
func HolderReported(r io.Reader) error { return holderReported(r) }

// holdChild shuts itself in, reaps what is left to it and waits to be told to go.
func holdChild() error {
	if err := reportFailure(confineHolder); err != nil {
		return err
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGCHLD, unix.SIGTERM, unix.SIGINT)
	report := os.NewFile(holdReport, "report")
	_, err := report.WriteString(holdReady)
	if err := errors.Join(err, report.Close()); err != nil {
		return err
	}
	for s := range signals {
		if s != unix.SIGCHLD {
			return nil
		}
		reap()
	}
	return nil
}

// reportFailure tells whoever started the holder of an error.
func reportFailure(f func() error) error {
	err := f()
	if err != nil {
		_, _ = unix.Write(holdReport, []byte(err.Error())) // nobody may listen any more
	}
	return err
}

// confineHolder leaves the holder nothing that an app could reach through it: an
// empty read-only root, no capability, no way to get one, no access by ptrace or /proc
// for who lacks CAP_SYS_PTRACE, and next to no system calls.
func confineHolder() error {
	if err := emptyRoot(); err != nil {
		return fmt.Errorf("leave the host's root: %w", err)
	}
	if err := dropPower(); err != nil {
		return err
	}
	return filterHolder()
}

func emptyRoot() error {
	const at = "/run" // any directory of the host
	flags := uintptr(unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	if err := unix.Mount("gantry-holder", at, "tmpfs", flags, "size=4k,nr_inodes=2,mode=0555"); err != nil {
		return fmt.Errorf("mount a root: %w", err)
	}
	if err := unix.Chdir(at); err != nil {
		return err
	}
	// The old root comes to lie upon the new one, from where it can be taken away.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("detach the old root: %w", err)
	}
	return unix.Chdir("/")
}

// dropPower is about threads, of which Go has several.
func dropPower() error {
	if _, _, e := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); e != 0 {
		return fmt.Errorf("no_new_privs: %w", e)
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if _, _, e := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&none)), 0); e != 0 {
		return fmt.Errorf("drop capabilities: %w", e)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("PR_SET_DUMPABLE: %w", err)
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
