package initproc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"gantry/internal/pod"
)

// ErrLogged is what needs no word on stderr: it is another program's.
var ErrLogged = errors.New("the reason is in the log")

// execIn runs a process in an app that gantry-init became, and says in a log why if
// that cannot be.
func execIn(args []string) error {
	const least, most = 3, 4
	if len(args) < least || len(args) > most {
		return errUsage
	}
	console := ""
	if len(args) == most {
		console = args[most-1]
	}
	err := execProcess(args[0], args[1], console)
	if logErr := os.WriteFile(args[2], []byte(err.Error()), 0o600); logErr != nil {
		return errors.Join(err, logErr)
	}
	return ErrLogged
}

// execProcess returns only if it fails.
func execProcess(dir, file, console string) error {
	s, err := readStart(dir)
	if err != nil {
		return fmt.Errorf("read plan: %w", err)
	}
	var p Process
	if err := readJSON(file, &p); err != nil {
		return fmt.Errorf("read process: %w", err)
	}
	run := runRecord(dir)
	if run == nil {
		return fmt.Errorf("app %s has not run", s.App)
	}
	process, err := openApp(*run)
	if err != nil {
		return fmt.Errorf("find the process of app %s: %w", s.App, err)
	}
	defer unix.Close(process)
	root, err := rootfsOf(process, s.Rootfs.Target)
	if err != nil {
		return fmt.Errorf("find the rootfs of app %s: %w", s.App, err)
	}
	defer root.close()
	files := []*os.File{os.Stdin, os.Stdout, os.Stderr}
	if console != "" {
		if files, err = root.terminal(p, console); err != nil {
			return fmt.Errorf("make a terminal: %w", err)
		}
	}
	b := becoming{p, process, root.fd, files, func() error { return nil }}
	return b.run()
}

// openApp opens the app's process. Its number may be another one's by now: the app's
// is in its unit.
func openApp(run pod.Run) (int, error) {
	process, err := unix.PidfdOpen(run.PID, 0)
	if err != nil {
		return -1, err
	}
	group, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(run.PID), "cgroup"))
	if err == nil && !strings.Contains(string(group), "/"+run.Unit) {
		err = fmt.Errorf("process %d is not of %s: %w", run.PID, run.Unit, unix.ESRCH)
	}
	if err != nil {
		unix.Close(process)
	}
	return process, err
}

// rootfsOf opens the rootfs where a process sees it. The thread that looks is left
// behind: it sees nothing else from then on.
func rootfsOf(process int, target string) (root rootfs, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err = unix.Unshare(unix.CLONE_FS); err != nil {
			return
		}
		if err = unix.Setns(process, unix.CLONE_NEWNS); err != nil {
			return
		}
		root, err = openRootfs(target)
	}()
	<-done
	return root, err
}
