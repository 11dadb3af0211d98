// Package namespace makes the namespaces that the apps of a pod share, without a
// process that holds them: each is pinned by a bind mount below the pod's run
// directory, together with the pod's /dev/shm.
//
//	/run/gantry/pods/<id>/net  ipc  uts  user   namespaces
//	/run/gantry/pods/<id>/shm                   tmpfs
//
// The pins are ordinary mounts of the host's mount namespace, so that an unmount
// reaches every mount namespace that was copied from it in the meantime.
package namespace

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Kind of namespace, by the name of its file in /proc/<pid>/ns.
type Kind string

// The kinds that are pinned.
const (
	Net  Kind = "net"
	IPC  Kind = "ipc"
	UTS  Kind = "uts"
	User Kind = "user"
)

// Shm is the file name of the pod's /dev/shm beside the pins.
const Shm = "shm"

// Of a pod that is a virtual machine there are more names: a mount with what it sees of the
// host, and the socket of who serves that. The machine makes both and takes them away; what
// is left of it when that was killed Remove does.
const (
	Share       = "share"
	FilesSocket = "files.sock"
)

var cloneFlags = map[Kind]int{
	Net: unix.CLONE_NEWNET, IPC: unix.CLONE_NEWIPC, UTS: unix.CLONE_NEWUTS, User: unix.CLONE_NEWUSER,
}

// Map is one line of uid_map or gid_map.
type Map struct{ Container, Host, Length int }

// Spec says what to make.
type Spec struct {
	Dir      string // /run/gantry/pods/<id>
	Kinds    []Kind
	UIDs     []Map // with User
	GIDs     []Map
	Child    string            // with User: the program that calls Child, gantry-init
	Hostname string            // with UTS
	Sysctls  map[string]string // net.* with Net, kernel.* and fs.mqueue.* with IPC
	// ShmSize is the size of /dev/shm in bytes; 0 makes none.
	ShmSize int64
}

// Create makes and pins the namespaces. A failure leaves nothing pinned.
func Create(s Spec) error {
	if err := s.makeDir(); err != nil {
		return fmt.Errorf("create namespaces: %w", err)
	}
	err := create(s)
	if err != nil {
		return errors.Join(fmt.Errorf("create namespaces: %w", err), Remove(s.Dir))
	}
	return nil
}

// makeDir makes the directory for the pod's root alone: in it is /dev/shm, where
// everyone may write who gets there, and that must be the pod and not the users of
// the host.
func (s Spec) makeDir() error {
	if err := os.MkdirAll(filepath.Dir(s.Dir), 0o711); err != nil {
		return err
	}
	if err := os.Mkdir(s.Dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	uid, gid := 0, 0
	if s.has(User) {
		uid, gid = rootOf(s.UIDs), rootOf(s.GIDs)
	}
	return errors.Join(os.Chown(s.Dir, uid, gid), os.Chmod(s.Dir, 0o700))
}

func create(s Spec) error {
	if err := s.pinAll(); err != nil {
		return err
	}
	if s.ShmSize == 0 {
		return nil
	}
	return mountShm(s)
}

func (s Spec) pinAll() error {
	if len(s.Kinds) == 0 {
		return nil
	}
	if s.has(User) {
		return s.pinChild()
	}
	return onThrowawayThread(s.pinHere)
}

func (s Spec) has(k Kind) bool {
	for _, have := range s.Kinds {
		if have == k {
			return true
		}
	}
	return false
}

// onThrowawayThread runs f on a thread of its own that ends with it: a thread
// that left the host's namespaces must never run anything else.
// The program's first thread is never it: it does not die, but would stay in the
// namespaces, and keep them, for as long as the program runs.
func onThrowawayThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			done <- onThrowawayThread(f) // on another one: this one is taken
			runtime.UnlockOSThread()
			return
		}
		done <- f() // never unlocked: the thread dies with the goroutine
	}()
	return <-done
}

// pinHere unshares the calling thread and pins what it got.
func (s Spec) pinHere() error {
	flags := 0
	for _, k := range s.Kinds {
		flags |= cloneFlags[k]
	}
	if err := unix.Unshare(flags); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := s.configure(); err != nil {
		return err
	}
	return s.pin("/proc/thread-self/ns")
}

// configure sets what belongs to the namespaces of the calling thread.
func (s Spec) configure() error {
	if s.has(UTS) && s.Hostname != "" {
		if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
			return fmt.Errorf("set hostname %q: %w", s.Hostname, err)
		}
	}
	if s.has(Net) {
		if err := loopbackUp(); err != nil {
			return fmt.Errorf("bring up loopback: %w", err)
		}
	}
	for name, value := range s.Sysctls {
		path := "/proc/sys/" + strings.ReplaceAll(name, ".", "/")
		if err := writeExisting(path, value); err != nil {
			return fmt.Errorf("set sysctl %s: %w", name, err)
		}
	}
	return nil
}

func writeExisting(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// loopbackUp sets IFF_UP on lo. Its addresses come by themselves.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, req); err != nil {
		return err
	}
	req.SetUint16(req.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
}

func (s Spec) pin(from string) error {
	for _, k := range s.Kinds {
		target := filepath.Join(s.Dir, string(k))
		f, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
		if err != nil {
			return fmt.Errorf("pin %s: %w", k, err)
		}
		f.Close()
		if err := unix.Mount(filepath.Join(from, string(k)), target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("pin %s: %w", k, err)
		}
	}
	return nil
}

func mountShm(s Spec) error {
	target := filepath.Join(s.Dir, Shm)
	if err := os.Mkdir(target, 0o700); err != nil {
		return fmt.Errorf("mount shm: %w", err)
	}
	options := fmt.Sprintf("mode=1777,size=%d", s.ShmSize)
	if s.has(User) {
		options += fmt.Sprintf(",uid=%d,gid=%d", rootOf(s.UIDs), rootOf(s.GIDs))
	}
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	if err := unix.Mount("shm", target, "tmpfs", flags, options); err != nil {
		return fmt.Errorf("mount shm: %w", err)
	}
	return nil
}

func rootOf(maps []Map) int {
	for _, m := range maps {
		if m.Container == 0 {
			return m.Host
		}
	}
	return 0
}

// Path tells where a namespace is pinned.
func Path(dir string, k Kind) string { return filepath.Join(dir, string(k)) }

// Remove unpins everything and removes the directory. It is idempotent, and it
// removes nothing but the names of this package.
func Remove(dir string) error {
	var errs []error
	for _, name := range []string{string(Net), string(IPC), string(UTS), string(User), Shm, Share, FilesSocket} {
		errs = append(errs, unpin(filepath.Join(dir, name)))
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove namespaces: %w", err)
	}
	return nil
}

// unpin detaches what is mounted on path, however often, and removes path.
func unpin(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		switch {
		case err == nil:
			continue
		case errors.Is(err, unix.ENOENT):
			return nil
		case errors.Is(err, unix.EINVAL): // not a mount point (any more)
			if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			return nil // the end of the pod's unit does the same, maybe just now
		default:
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
}
