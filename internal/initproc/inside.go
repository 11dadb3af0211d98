package initproc

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Inside is an app, or a process in one, in a machine of its own. The agent there makes
// its namespaces and its cgroup, and starts this program in them.
type Inside struct {
	Start   Start   `json:"start"`
	Process Process `json:"process"`
	// Console is a socket that is sent the master of the terminal.
	Console string `json:"console,omitempty"`
	// App is a descriptor of the app's process, for a process that joins it.
	App int `json:"app,omitempty"`
}

// Run becomes the app or the process. It returns only if that cannot be.
func (in Inside) Run() error {
	if in.App != 0 {
		return in.join()
	}
	if in.Start.Self == nil {
		return errors.New("the plan has no rootfs of our own")
	}
	if err := prepare(in.Start); err != nil {
		return err
	}
	root, err := furnish(in.Start, in.Process)
	if err != nil {
		return fmt.Errorf("furnish rootfs: %w", err)
	}
	defer root.close()
	mounts, err := os.Open("/proc/thread-self/ns/mnt")
	if err != nil {
		return fmt.Errorf("open mount namespace: %w", err)
	}
	defer mounts.Close()
	files, err := in.stdio(root, in.Start.Self.Console)
	if err != nil {
		return err
	}
	if err := leaveRoot(in.Start.Rootfs.Target); err != nil {
		return fmt.Errorf("leave the machine's root: %w", err)
	}
	b := becoming{Process: in.Process, mounts: int(mounts.Fd()), root: root, files: files, ready: func() error { return nil }}
	return fmt.Errorf("start app: %w", b.run())
}

func (in Inside) stdio(root rootfs, console bool) ([]*os.File, error) {
	if !in.Process.TTY {
		stdio, err := ownStdio()
		return stdio.files, err
	}
	files, err := root.terminal(in.Process, in.Console)
	if err != nil {
		return nil, fmt.Errorf("make a terminal: %w", err)
	}
	if console {
		if err := root.show(int(files[0].Fd()), Mount{Target: "/dev/console"}); err != nil {
			return nil, fmt.Errorf("show the terminal as /dev/console: %w", err)
		}
	}
	return files, nil
}

// leaveRoot makes a rootfs the root of our mount namespace and takes the old one out of
// it: no capability leads back.
func leaveRoot(target string) error {
	if err := unix.Chdir(target); err != nil {
		return err
	}
	// The old root comes to lie on the new one, and goes.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the old root: %w", err)
	}
	return unix.Chdir("/")
}

// join becomes a process in an app, whose PID namespace we were started in.
func (in Inside) join() error {
	unix.CloseOnExec(in.App)
	root, err := rootfsOf(in.App, "/")
	if err != nil {
		return fmt.Errorf("find the rootfs of the app: %w", err)
	}
	defer root.close()
	files, err := in.stdio(root, false)
	if err != nil {
		return err
	}
	b := becoming{Process: in.Process, mounts: in.App, cgroups: in.App, root: root, files: files, ready: func() error { return nil }}
	return b.run()
}
