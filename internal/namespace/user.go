package namespace

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// ChildArg as argv[0] makes Spec.Child behave as the child that holds new
// namespaces while they are pinned: its main asks IsChild and calls Child.
const ChildArg = "gantry-namespace-child"

// pinChild makes namespaces that belong to a new user namespace. A process with
// threads cannot enter one, so a child is cloned into them; it does what needs to
// be done inside, says so, and waits until its namespaces are pinned.
func (s Spec) pinChild() error {
	// The kernel sends Pdeathsig when the thread that cloned the child ends, and the
	// threads that make the namespaces of other pods do end.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.Command(s.Child, s.childArgs()...)
	cmd.Args[0] = ChildArg
	cmd.Env = []string{}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		UidMappings: mappings(s.UIDs), GidMappings: mappings(s.GIDs),
		// Our own user is not in the new namespace: without this, exec drops all
		// capabilities in it.
		Credential:                 &syscall.Credential{},
		GidMappingsEnableSetgroups: true,
		Pdeathsig:                  syscall.SIGKILL,
	}
	for _, k := range s.Kinds {
		cmd.SysProcAttr.Cloneflags |= uintptr(cloneFlags[k])
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return fmt.Errorf("clone: %w", err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("clone: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("clone: %w", err)
	}
	err = s.pinOf(cmd.Process.Pid, stdout)
	stdin.Close() // lets the child go
	if waitErr := cmd.Wait(); err == nil && waitErr != nil {
		err = fmt.Errorf("child: %w", waitErr)
	}
	return err
}

func (s Spec) pinOf(pid int, said io.Reader) error {
	line, err := bufio.NewReader(said).ReadString('\n')
	if err != nil {
		return fmt.Errorf("child died: %w", err)
	}
	if line != "ok\n" {
		return fmt.Errorf("child: %s", line[:len(line)-1])
	}
	return s.pin(fmt.Sprintf("/proc/%d/ns", pid))
}

func mappings(maps []Map) []syscall.SysProcIDMap {
	out := make([]syscall.SysProcIDMap, len(maps))
	for i, m := range maps {
		out[i] = syscall.SysProcIDMap{ContainerID: m.Container, HostID: m.Host, Size: m.Length}
	}
	return out
}

// childArgs are the hostname, the kinds and the sysctls, one argument each.
func (s Spec) childArgs() []string {
	args := []string{"hostname=" + s.Hostname}
	for _, k := range s.Kinds {
		args = append(args, "kind="+string(k))
	}
	for name, value := range s.Sysctls {
		args = append(args, "sysctl="+name+"="+value)
	}
	return args
}

// IsChild tells whether the program was started as the child.
func IsChild(args []string) bool { return len(args) > 0 && args[0] == ChildArg }

// Child configures the namespaces that it was cloned into, says "ok" or what went
// wrong in one line, and stays until its standard input is closed.
func Child(args []string) error {
	s, err := parseChildArgs(args[1:])
	if err == nil {
		err = s.configure()
	}
	if err != nil {
		fmt.Fprintln(os.Stdout, err)
		return err
	}
	fmt.Fprintln(os.Stdout, "ok")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

var errChildArg = errors.New("unknown argument of the namespace child")

func parseChildArgs(args []string) (Spec, error) {
	s := Spec{Sysctls: map[string]string{}}
	for _, arg := range args {
		key, value, _ := strings.Cut(arg, "=")
		switch key {
		case "hostname":
			s.Hostname = value
		case "kind":
			s.Kinds = append(s.Kinds, Kind(value))
		case "sysctl":
			name, v, ok := strings.Cut(value, "=")
			if !ok {
				return Spec{}, errChildArg
			}
			s.Sysctls[name] = v
		default:
			return Spec{}, errChildArg
		}
	}
	return s, nil
}

// TryIDMap tells why a mount of what fd names cannot be mapped to the users of a pinned
// user namespace; 0 if it can, and if there is no such namespace.
func TryIDMap(fd int, userns string) syscall.Errno {
	ns, err := os.Open(userns)
	if err != nil {
		return 0
	}
	defer ns.Close()
	tree, err := unix.OpenTree(fd, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err == nil {
		defer unix.Close(tree)
		err = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{
			Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd()),
		})
	}
	var errno syscall.Errno
	errors.As(err, &errno)
	return errno
}
