package initproc

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Self is an app that no OCI runtime runs: gantry-init furnishes the rootfs, and then
// becomes the app. It has the host's namespaces, but for that of mounts.
type Self struct {
	Mounts   []Mount  `json:"mounts,omitempty"`
	Links    []Link   `json:"links,omitempty"`
	Devices  []Device `json:"devices,omitempty"`
	Masked   []string `json:"masked,omitempty"`
	ReadOnly []string `json:"readOnly,omitempty"`
	// ReadOnlyRootfs is for what the image and the app's own layer have.
	ReadOnlyRootfs bool `json:"readOnlyRootfs,omitempty"`
	// Console shows the app's terminal as /dev/console.
	Console bool `json:"console,omitempty"`
	// OnHost tells that the rootfs is mounted in the host's own mount namespace, and has
	// to be unmounted at the end.
	OnHost bool `json:"onHost,omitempty"`
}

// runSelf becomes the app. It returns only if that cannot be.
//
//	fetch stdio, mount and furnish the rootfs
//	write exact limits, and run.json    from here on the app has run
//	chroot, drop privileges, look for the program
//	READY=1, execve
//
// Systemd watches this process from its first moment on: no exit is missed.
func runSelf(s Start, dir string) error {
	var p Process
	if err := readJSON(filepath.Join(dir, ProcessFile), &p); err != nil {
		return fmt.Errorf("read plan: %w", err)
	}
	if err := protectProgram(p); err != nil {
		return err
	}
	u, err := ownUnit()
	if err != nil {
		return err
	}
	stdio, err := fetchStdio(s.Stdio, dir, u)
	if err != nil {
		return fmt.Errorf("fetch stdio: %w", err)
	}
	if err := prepare(s); err != nil {
		return err
	}
	if s.Self.OnHost { // what is mounted in it is nobody else's
		if err := unix.Mount("", s.Rootfs.Target, "", unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("keep the rootfs to ourselves: %w", err)
		}
	}
	return settle(s, p, settling{dir: dir, unit: u, pid: os.Getpid(), stdio: stdio})
}

// settling is what settle is told beside the plan.
type settling struct {
	dir   string
	unit  unitFacts
	pid   int // the app's, as the host counts
	stdio stdioFiles
}

// settle furnishes the mounted rootfs and becomes the app in it.
func settle(s Start, p Process, in settling) error {
	stdio := in.stdio
	root, err := furnish(s, p)
	if err != nil {
		return fmt.Errorf("furnish rootfs: %w", err)
	}
	defer root.close()
	if stdio.console != "" {
		if stdio.files, err = root.terminal(p, stdio.console); err != nil {
			return fmt.Errorf("make a terminal: %w", err)
		}
		if s.Self.Console {
			if err := root.show(int(stdio.files[0].Fd()), Mount{Target: "/dev/console"}); err != nil {
				return fmt.Errorf("show the terminal as /dev/console: %w", err)
			}
		}
		if err := awaitConsole(s.Stdio, s.App); err != nil {
			return err
		}
	}
	if err := writeCgroup(in.unit.Cgroup, s.Cgroup); err != nil {
		return fmt.Errorf("set cgroup limits: %w", err)
	}
	conn, err := notifySocket(in.unit.Notify)
	if err != nil {
		return fmt.Errorf("tell systemd: %w", err)
	}
	defer conn.Close()
	if err := writeRun(in.dir, in.unit, in.pid); err != nil {
		return err
	}
	return becomeApp(p, root, stdio.files, conn)
}

// protectProgram executes us again from a mount that nobody can write to, unless we are:
// an app can have /proc/self/exe executed instead of itself, and a root without
// capabilities, or a user with some, could write to the host's file then.
func protectProgram(p Process) error {
	const self = "/proc/self/exe"
	var fs unix.Statfs_t
	if err := unix.Statfs(self, &fs); err != nil || p.UID != 0 && len(p.Ambient) == 0 || fs.Flags&unix.ST_RDONLY != 0 {
		return err
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, self, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("clone the mount of %s: %w", self, err)
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("make %s read-only: %w", self, err)
	}
	return fmt.Errorf("execute %s again: %w", self, syscall.Exec(fmt.Sprintf("/proc/self/fd/%d", fd), os.Args, os.Environ()))
}

// becomeApp keeps our own stderr, for what there is to say if it fails.
func becomeApp(p Process, root rootfs, files []*os.File, systemd *net.UnixConn) error {
	own, err := unix.FcntlInt(2, unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return fmt.Errorf("keep stderr: %w", err)
	}
	defer unix.Close(own)
	// Ours may be that of this thread alone.
	mounts, err := os.Open("/proc/thread-self/ns/mnt")
	if err != nil {
		return fmt.Errorf("open mount namespace: %w", err)
	}
	defer mounts.Close()
	b := becoming{Process: p, mounts: int(mounts.Fd()), root: root, files: files, ready: func() error {
		if _, err := systemd.Write([]byte("READY=1")); err != nil {
			return fmt.Errorf("tell systemd: %w", err)
		}
		return nil
	}}
	return errors.Join(fmt.Errorf("start app: %w", b.run()), unix.Dup3(own, 2, 0))
}

func furnish(s Start, p Process) (rootfs, error) {
	root, err := openRootfs(s.Rootfs.Target)
	if err != nil {
		return root, err
	}
	err = root.furnish(*s.Self)
	if err == nil {
		var cwd int
		if cwd, err = root.directory(p.Cwd); err == nil {
			err = unix.Close(cwd)
		} else {
			err = fmt.Errorf("working directory %s: %w", p.Cwd, err)
		}
	}
	if err == nil && s.Self.ReadOnlyRootfs {
		err = makeReadOnly(s.Rootfs.Target)
	}
	if err != nil {
		root.close()
	}
	return root, err
}

// UnmountRootfs takes what is mounted at target, and in it, off the host. It is no error
// if there is nothing.
func UnmountRootfs(target string) error {
	for {
		err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) { // it is no mount point, or no more
			break
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", target, err)
		}
	}
	if err := os.Remove(target); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("unmount: %w", err)
	}
	return nil
}
