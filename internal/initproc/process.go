package initproc

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ProcessFile holds the Process of an app that gantry-init runs itself. It is secret.
const ProcessFile = "process.json"

// Process is what gantry-init becomes: the program of an app that no OCI runtime
// runs, or of an exec in one.
type Process struct {
	Args []string `json:"args"`
	Env  []string `json:"env"`
	Cwd  string   `json:"cwd"`
	// UID, GID and Groups are the host's.
	UID    uint32   `json:"uid"`
	GID    uint32   `json:"gid"`
	Groups []uint32 `json:"groups,omitempty"`
	// Bounding and Ambient are capabilities by number. A root has all of Bounding.
	Bounding   []int `json:"bounding,omitempty"`
	Ambient    []int `json:"ambient,omitempty"`
	NoNewPrivs bool  `json:"noNewPrivileges,omitempty"`
	// AppArmor is a profile's name, "" leaves what there is.
	AppArmor string `json:"appArmor,omitempty"`
	// Seccomp is the app's. An exec gets that of the app that it is in.
	Seccomp *Seccomp `json:"seccomp,omitempty"`
	Rlimits []Rlimit `json:"rlimits,omitempty"`
	TTY     bool     `json:"tty,omitempty"`
}

// Seccomp is a filter, as the kernel takes it: eight bytes an instruction.
type Seccomp struct {
	Filter []byte `json:"filter"`
	Flags  uint   `json:"flags,omitempty"`
}

// Rlimit is a limit of the kernel's, by its number.
type Rlimit struct {
	Resource int    `json:"resource"`
	Soft     uint64 `json:"soft"`
	Hard     uint64 `json:"hard"`
}

// becoming replaces this program by another.
type becoming struct {
	Process
	mounts int // the mount namespace: nsfs or a pidfd
	// cgroups is a pidfd of one whose cgroup namespace to enter, 0 for none. A process
	// that is there already cannot be put into a cgroup by whoever starts it: the kernel
	// may take such a namespace for a boundary.
	cgroups int
	root    rootfs     // what becomes its root directory
	files   []*os.File // its stdin, stdout and stderr
	// ready is called when nothing is left but to execute it.
	ready func() error

	asked chan func() error // what the thread has others do, which are root still
	done  chan error
}

// run returns only if it fails. All is done by a thread of its own, which the kernel
// keeps as the process: until then the others are who they were, and can say why.
func (b *becoming) run() error {
	// What a thread has become, others of the same user must not get hold of: it shares
	// its memory with ours, and has descriptors of directories. A program that is executed
	// is no more concerned.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("shut out tracers: %w", err)
	}
	b.asked, b.done = make(chan func() error), make(chan error)
	thread := make(chan string, 1)
	go func() {
		runtime.LockOSThread() // for good: what the thread has become nobody else may get
		thread <- ownThread()
		b.done <- b.become()
	}()
	return b.attend(<-thread)
}

// ownThread is the directory of the calling thread in /proc, which may be that of another
// PID namespace than ours.
func ownThread() string {
	const self = "thread-self"
	link, err := os.Readlink("/proc/" + self)
	if err != nil {
		link = self // no other thread can look then, and all waits for the thread alone
	}
	return "/proc/" + link
}

// attend does what the thread asks for, until it fails. A seccomp profile may have it
// killed alone, so that nobody would tell.
func (b *becoming) attend(thread string) error {
	const often = time.Second
	tick := time.NewTicker(often)
	defer tick.Stop()
	for {
		select {
		case err := <-b.done:
			return err
		case do := <-b.asked:
			b.done <- do()
		case <-tick.C:
			if !lives(thread) {
				return errors.New("the seccomp profile ended the start")
			}
		}
	}
}

// lives tells whether a thread of ours runs. The first one stays as a zombie.
func lives(thread string) bool {
	data, err := os.ReadFile(thread + "/stat")
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ESRCH)
	}
	_, state, _ := strings.Cut(string(data), ") ")
	return !strings.HasPrefix(state, "Z") && !strings.HasPrefix(state, "X")
}

// asRoot has others of our threads do what this one cannot any more.
func (b *becoming) asRoot(do func() error) error {
	b.asked <- do
	return <-b.done
}

func (b *becoming) become() error {
	// The root, the directory and the umask are else those of all threads.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare file system attributes: %w", err)
	}
	if err := unix.Setns(b.mounts, unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter mount namespace: %w", err)
	}
	if b.cgroups != 0 {
		if err := unix.Setns(b.cgroups, unix.CLONE_NEWCGROUP); err != nil {
			return fmt.Errorf("enter cgroup namespace: %w", err)
		}
	}
	if err := b.confine(); err != nil {
		return err
	}
	if err := b.enter(); err != nil {
		return err
	}
	if err := b.giveStdio(); err != nil {
		return err
	}
	if err := b.dropPrivileges(); err != nil {
		return err
	}
	program, err := b.find()
	if err != nil {
		return err
	}
	if err := b.ready(); err != nil {
		return err
	}
	if err := b.asRoot(b.setLimits); err != nil {
		return err
	}
	return b.execute(program)
}

// confine asks for the AppArmor profile, while there is still the host's /proc.
func (b *becoming) confine() error {
	if b.AppArmor == "" {
		return nil
	}
	const attr = "/proc/thread-self/attr/"
	command := []byte("exec " + b.AppArmor)
	err := os.WriteFile(attr+"apparmor/exec", command, 0)
	if errors.Is(err, fs.ErrNotExist) {
		err = os.WriteFile(attr+"exec", command, 0)
	}
	if err != nil {
		return fmt.Errorf("AppArmor profile %s: %w", b.AppArmor, err)
	}
	return nil
}

// enter changes the root and the directory. That is the image's and the user's word,
// and is opened before: afterwards links of /proc would lead out.
func (b *becoming) enter() error {
	cwd, err := b.root.open(b.Cwd)
	if err != nil {
		return fmt.Errorf("working directory %s: %w", b.Cwd, err)
	}
	defer unix.Close(cwd)
	if !slices.ContainsFunc(b.Env, func(e string) bool { return strings.HasPrefix(e, "HOME=") }) {
		b.Env = append(slices.Clone(b.Env), "HOME="+b.root.homeOf(b.UID))
	}
	if err := unix.Fchdir(b.root.fd); err != nil {
		return fmt.Errorf("enter rootfs: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("enter rootfs: %w", err)
	}
	if err := unix.Fchdir(cwd); err != nil {
		return fmt.Errorf("working directory %s: %w", b.Cwd, err)
	}
	const usual = 0o022
	unix.Umask(usual) // an exec has that of who asked for it
	return nil
}

// mostPasswd bounds what is read of a file that an image brought.
const mostPasswd = 1 << 20

// homeOf is a user's directory, as /etc/passwd has it.
func (r rootfs) homeOf(uid uint32) string {
	const none = "/"
	f, err := r.regular("/etc/passwd")
	if err != nil {
		return none
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, mostPasswd))
	if err != nil {
		return none
	}
	for line := range strings.Lines(string(data)) {
		fields := strings.Split(strings.TrimSpace(line), ":")
		const id, home = 2, 5
		if len(fields) > home && fields[id] == strconv.FormatUint(uint64(uid), 10) && strings.HasPrefix(fields[home], "/") {
			return fields[home]
		}
	}
	return none
}

// giveStdio makes pipes and files the user's: programs open them again as /dev/stdout.
// A device is the machine's, and a terminal the user's already.
func (b *becoming) giveStdio() error {
	for _, f := range b.files {
		var stat unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &stat); err != nil {
			return fmt.Errorf("look at stdio: %w", err)
		}
		if stat.Mode&unix.S_IFMT != unix.S_IFIFO && stat.Mode&unix.S_IFMT != unix.S_IFSOCK || stat.Uid == b.UID {
			continue
		}
		if err := unix.Fchown(int(f.Fd()), int(b.UID), -1); err != nil {
			return fmt.Errorf("give stdio to user %d: %w", b.UID, err)
		}
	}
	return nil
}

// dropPrivileges makes the thread the user. The calls of package syscall would change
// all threads.
func (b *becoming) dropPrivileges() error {
	if err := b.dropBounding(); err != nil {
		return err
	}
	if err := b.setUser(); err != nil {
		return err
	}
	if err := b.setCapabilities(); err != nil {
		return err
	}
	if !b.NoNewPrivs {
		return nil
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no new privileges: %w", err)
	}
	return nil
}

func (b *becoming) dropBounding() error {
	for c := 0; ; c++ {
		have, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(c), 0, 0, 0)
		if c > 0 && errors.Is(err, unix.EINVAL) { // there is no such capability, and none above it
			return nil
		}
		if err == nil && have == 1 && !slices.Contains(b.Bounding, c) {
			err = unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0)
		}
		if err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
}

func (b *becoming) setUser() error {
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("keep capabilities: %w", err)
	}
	groups := unsafe.Pointer(unsafe.SliceData(b.Groups))
	if _, _, errno := unix.Syscall(unix.SYS_SETGROUPS, uintptr(len(b.Groups)), uintptr(groups), 0); errno != 0 {
		return fmt.Errorf("set groups: %w", errno)
	}
	gid, uid := uintptr(b.GID), uintptr(b.UID)
	if _, _, errno := unix.Syscall(unix.SYS_SETRESGID, gid, gid, gid); errno != 0 {
		return fmt.Errorf("set group %d: %w", b.GID, errno)
	}
	if _, _, errno := unix.Syscall(unix.SYS_SETRESUID, uid, uid, uid); errno != 0 {
		return fmt.Errorf("set user %d: %w", b.UID, errno)
	}
	// The one of who asked for an exec has his keys.
	if _, _, errno := unix.Syscall(unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0); errno != 0 && errno != unix.ENOSYS {
		return fmt.Errorf("join a session keyring: %w", errno)
	}
	return nil
}

// setCapabilities leaves the thread one more than the program gets if a filter is to be
// installed and takes it. It does not outlive the execution: it is not in Bounding.
func (b *becoming) setCapabilities() error {
	var sets [2]unix.CapUserData
	own := b.Bounding
	if b.Seccomp != nil && !b.NoNewPrivs {
		own = append(slices.Clone(own), unix.CAP_SYS_ADMIN)
	}
	for _, c := range own {
		sets[c/32].Permitted |= 1 << (c % 32)
		sets[c/32].Effective |= 1 << (c % 32)
	}
	for _, c := range b.Ambient {
		sets[c/32].Inheritable |= 1 << (c % 32)
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capset(&head, &sets[0]); err != nil {
		return fmt.Errorf("set capabilities: %w", err)
	}
	for _, c := range b.Ambient {
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(c), 0, 0); err != nil {
			return fmt.Errorf("raise ambient capability %d: %w", c, err)
		}
	}
	return nil
}

// setLimits sets those of the whole process, so it comes late: ours is a large program.
func (b *becoming) setLimits() error {
	for _, l := range b.Rlimits {
		r := syscall.Rlimit{Cur: l.Soft, Max: l.Hard}
		// Package syscall's own, for it would else set the number of files back at the end.
		if err := syscall.Setrlimit(l.Resource, &r); err != nil {
			return fmt.Errorf("set limit %d to %d:%d: %w", l.Resource, l.Soft, l.Hard, err)
		}
	}
	return nil
}

// find looks the program up as the user that we are now.
func (b *becoming) find() (string, error) {
	name := b.Args[0]
	if strings.Contains(name, "/") {
		return name, executable(name)
	}
	var why error
	for dir := range strings.SplitSeq(pathOf(b.Env), ":") {
		file := path.Join(dir, name)
		if dir == "" {
			file = "./" + name
		}
		err := executable(file)
		if err == nil {
			return file, nil
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) && why == nil {
			why = err
		}
	}
	if why == nil {
		why = fmt.Errorf("executable file %q: not found in $PATH", name)
	}
	return "", why
}

func pathOf(env []string) string {
	value := ""
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			value = v
		}
	}
	return value
}

func executable(file string) error {
	var stat unix.Stat_t
	err := unix.Stat(file, &stat)
	if err == nil && stat.Mode&unix.S_IFMT != unix.S_IFREG {
		err = unix.EACCES
		if stat.Mode&unix.S_IFMT == unix.S_IFDIR {
			err = unix.EISDIR
		}
	}
	if err == nil {
		err = unix.Faccessat(unix.AT_FDCWD, file, unix.X_OK, unix.AT_EACCESS)
	}
	if err != nil {
		return fmt.Errorf("executable file %q: %w", file, err)
	}
	return nil
}

// execute returns only if the kernel does not take the program. The filter comes last:
// a profile allows what the program does, and not what we do before.
func (b *becoming) execute(program string) error {
	name, err := syscall.BytePtrFromString(program)
	if err != nil {
		return fmt.Errorf("execute: %w", err)
	}
	args, err := syscall.SlicePtrFromStrings(b.Args)
	if err != nil {
		return fmt.Errorf("execute %s: arguments: %w", program, err)
	}
	env, err := syscall.SlicePtrFromStrings(b.Env)
	if err != nil {
		return fmt.Errorf("execute %s: environment: %w", program, err)
	}
	for i, f := range b.files {
		if err := unix.Dup3(int(f.Fd()), i, 0); err != nil {
			return fmt.Errorf("hand over stdio: %w", err)
		}
	}
	const firstOther = 3
	if err := unix.CloseRange(firstOther, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close descriptors: %w", err)
	}
	if err := unignoreSignals(); err != nil {
		return err
	}
	if b.Seccomp != nil {
		if err := b.Seccomp.install(); err != nil {
			return err
		}
	}
	// Not syscall.Exec: if the filter kills the thread in it, all others wait for ever. What
	// that guards against, threads that are made meanwhile, cannot be with our own fs_struct.
	_, _, errno := unix.Syscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(name)), uintptr(unsafe.Pointer(&args[0])), uintptr(unsafe.Pointer(&env[0])))
	runtime.KeepAlive(name)
	runtime.KeepAlive(args)
	runtime.KeepAlive(env)
	return fmt.Errorf("execute %s: %w", program, errno)
}

// unignoreSignals gives signals that are ignored their default action: they would stay
// ignored. Who runs an exec under nohup ignores one.
func unignoreSignals() error {
	const (
		ignored  = 1
		setBytes = 8
		last     = 64
	)
	for s := uintptr(1); s <= last; s++ {
		if s == uintptr(unix.SIGKILL) || s == uintptr(unix.SIGSTOP) {
			continue
		}
		var action, none [8]uint64 // larger than the kernel's; the handler comes first
		if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, s, 0, uintptr(unsafe.Pointer(&action)), setBytes, 0, 0); errno != 0 {
			return fmt.Errorf("look at signal %d: %w", s, errno)
		}
		if action[0] != ignored {
			continue
		}
		if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, s, uintptr(unsafe.Pointer(&none)), 0, setBytes, 0, 0); errno != 0 {
			return fmt.Errorf("reset signal %d: %w", s, errno)
		}
	}
	return nil
}

// sockFprog is the kernel's struct sock_fprog.
type sockFprog struct {
	length uint16
	filter unsafe.Pointer
}

const seccompInstruction = 8 // bytes

func (s Seccomp) install() error {
	n := len(s.Filter) / seccompInstruction
	if n == 0 || n > 4096 || len(s.Filter)%seccompInstruction != 0 {
		return fmt.Errorf("install seccomp filter: %d bytes are none", len(s.Filter))
	}
	prog := sockFprog{uint16(n), unsafe.Pointer(&s.Filter[0])}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(s.Flags), uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(s.Filter)
	if errno != 0 {
		return fmt.Errorf("install seccomp filter: %w", errno)
	}
	return nil
}
