package initproc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
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
	if err := protectProgram(p); err != nil {
		return err
	}
	var app Process
	if err := readJSON(filepath.Join(dir, ProcessFile), &app); err != nil {
		return fmt.Errorf("read the app's process: %w", err)
	}
	p.Seccomp = app.Seccomp // the file that it was compiled from may be gone
	run := runRecord(dir)
	if run == nil {
		return fmt.Errorf("app %s has not run", s.App)
	}
	mounts, err := openApp(*run)
	if err != nil {
		return fmt.Errorf("find the process of app %s: %w", s.App, err)
	}
	defer unix.Close(mounts)
	root, err := rootfsOf(mounts, s.Rootfs.Target)
	if err != nil {
		return fmt.Errorf("find the rootfs of app %s: %w", s.App, err)
	}
	defer root.close()
	stdio, err := ownStdio()
	if err == nil && console != "" {
		stdio.files, err = root.terminal(p, console)
	}
	if err != nil {
		return fmt.Errorf("get stdio: %w", err)
	}
	b := becoming{Process: p, mounts: mounts, root: root, files: stdio.files, ready: func() error { return nil }}
	return b.run()
}

// openApp opens the mount namespace of the app's process. Its number may be another one's
// by now: the app's is in its unit. It is looked up in the host's /proc, and is none of the
// PID namespace that we may have been put into.
func openApp(run pod.Run) (int, error) {
	process, err := os.OpenRoot(filepath.Join("/proc", strconv.Itoa(run.PID)))
	if err != nil {
		return -1, err
	}
	defer process.Close()
	group, err := process.ReadFile("cgroup")
	if err != nil {
		return -1, err
	}
	if !strings.Contains(string(group), "/"+run.Unit) {
		return -1, fmt.Errorf("process %d is not of %s: %w", run.PID, run.Unit, unix.ESRCH)
	}
	dir, err := process.Open("ns")
	if err != nil {
		return -1, err
	}
	defer dir.Close()
	// What the entry is a link to is no path.
	return unix.Openat(int(dir.Fd()), "mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
}

// rootfsOf opens the rootfs where a mount namespace has it. The thread that looks is left
// behind: it sees nothing else from then on.
func rootfsOf(mounts int, target string) (root rootfs, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err = unix.Unshare(unix.CLONE_FS); err != nil {
			return
		}
		if err = unix.Setns(mounts, unix.CLONE_NEWNS); err != nil {
			return
		}
		root, err = openRootfs(target)
	}()
	<-done
	if err != nil {
		return root, err
	}
	var fs unix.Statfs_t
	if err = unix.Fstatfs(root.fd, &fs); err == nil && fs.Type != unix.OVERLAYFS_SUPER_MAGIC {
		err = errors.New("its main process has gone to another mount namespace")
	}
	if err != nil {
		root.close()
	}
	return root, err
}
