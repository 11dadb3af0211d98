package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/guest/guestpb"
	"gantry/internal/initproc"
)

// insideArg as argv[0] makes this program become an app: see Inside.
const insideArg = "gantry-inside"

// The descriptors of a program that becomes an app: what it is to be, and where it says
// why it cannot, and the app that it joins. The second is closed by the execution of the app.
const (
	specFD  = 3
	errorFD = 4
	appFD   = 5 // the app that a process joins
)

// process is an app, or one that runs in it.
type process struct {
	started time.Time
	pid     int
	in      *input
	out     [2]*output
	master  *os.File   // of its terminal, if it has one
	said    []*os.File // our ends of its output

	done chan struct{} // closed when end is there
	end  *guestpb.WaitResponse

	// Of an exec: closed when it is somebody's, and when it is forgotten.
	held, forgotten chan struct{}
	once            sync.Once
}

func (p *process) hold() { p.once.Do(func() { close(p.held) }) }

// launch is all that a process is started with.
type launch struct {
	inside initproc.Inside
	stdin  bool
	cgroup string
	// oomScore is the process's oom_score_adj.
	oomScore int
	app      int // the process of the app to join, 0 for an app itself
	pids     int // one whose PID namespace to be in, 0 for one of its own
	// ended tells of the end what only the machine knows.
	ended func(*guestpb.WaitResponse)
	// drain is how long after the end output may come.
	drain time.Duration
}

// start returns when the program runs.
func (l launch) start() (_ *process, err error) {
	p := &process{done: make(chan struct{}), held: make(chan struct{}), forgotten: make(chan struct{})}
	var closers []io.Closer
	defer func() {
		for _, c := range closers { // the ends of the child
			c.Close()
		}
		if err != nil {
			p.drop()
		}
	}()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args, cmd.Env = []string{insideArg}, []string{}
	var console *net.UnixListener
	if l.inside.Process.TTY {
		if console, err = listenConsole(); err != nil {
			return nil, err
		}
		closers = append(closers, console)
		l.inside.Console = console.Addr().String()
	} else {
		files, err := p.pipes(l.stdin)
		for _, f := range files {
			closers = append(closers, f)
		}
		if err != nil {
			return nil, err
		}
		cmd.Stdin, cmd.Stdout, cmd.Stderr = files[0], files[1], files[2]
	}
	group, err := os.Open(l.cgroup)
	if err != nil {
		return nil, err
	}
	closers = append(closers, group)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(group.Fd())}
	if l.app == 0 {
		cmd.SysProcAttr.Unshareflags = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP
	}
	if l.pids == 0 {
		cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWPID
	}
	said, err := l.run(cmd)
	if err != nil {
		return nil, err
	}
	p.pid = cmd.Process.Pid
	if console != nil && said == "" {
		if p.master, err = receiveConsole(console); err != nil {
			said = fmt.Sprintf("receive the terminal: %v", err)
		}
	}
	if said != "" {
		_ = cmd.Process.Kill() // it ends by itself, too
		_ = cmd.Wait()
		return nil, errors.New(said)
	}
	p.started = time.Now()
	p.attend(cmd, l)
	return p, nil
}

// run starts the program and hears why it could not become the app, "" if it did.
func (l launch) run(cmd *exec.Cmd) (said string, err error) {
	spec, specEnd, err := os.Pipe()
	if err != nil {
		return "", err
	}
	errs, errsEnd, err := os.Pipe()
	if err != nil {
		return "", errors.Join(err, spec.Close(), specEnd.Close())
	}
	defer errs.Close()
	cmd.ExtraFiles = []*os.File{spec, errsEnd}
	err = l.startIn(cmd)
	err = errors.Join(err, spec.Close(), errsEnd.Close())
	if err == nil && l.oomScore != 0 {
		err = writeFile(fmt.Sprintf("/proc/%d/oom_score_adj", cmd.Process.Pid), strconv.Itoa(l.oomScore))
	}
	if err == nil {
		err = errors.Join(json.NewEncoder(specEnd).Encode(l.inside), specEnd.Close())
	} else {
		specEnd.Close()
	}
	if err != nil {
		if cmd.Process != nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
		return "", fmt.Errorf("start: %w", err)
	}
	const most = 8 << 10
	text, err := io.ReadAll(io.LimitReader(errs, most))
	return strings.TrimSpace(string(text)), err
}

// startIn starts the program, in another's PID namespace if it is to be in one: a child is
// born into it if its parent's thread has entered it. That thread is of no use for
// anything else.
func (l launch) startIn(cmd *exec.Cmd) error {
	if l.app != 0 {
		app, err := pidfd(l.app)
		if err != nil {
			return fmt.Errorf("find the app's process: %w", err)
		}
		defer app.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, app)
	}
	if l.pids == 0 {
		return cmd.Start()
	}
	other, err := pidfd(l.pids)
	if err != nil {
		return fmt.Errorf("find the process whose PID namespace to join: %w", err)
	}
	defer other.Close()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(int(other.Fd()), unix.CLONE_NEWPID); err != nil {
			done <- fmt.Errorf("enter the PID namespace: %w", err)
			return
		}
		done <- cmd.Start()
	}()
	return <-done
}

func pidfd(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	return os.NewFile(uintptr(fd), "process"), err
}

// pipes makes the process's stdio, and returns its ends.
func (p *process) pipes(stdin bool) (theirs []*os.File, err error) {
	if stdin {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		theirs, p.in = append(theirs, r), newInput(w)
	} else {
		null, err := os.Open(os.DevNull)
		if err != nil {
			return nil, err
		}
		theirs = append(theirs, null)
	}
	for i := range p.out {
		r, w, err := os.Pipe()
		if err != nil {
			return theirs, err
		}
		theirs, p.out[i], p.said = append(theirs, w), newOutput(), append(p.said, r)
		go func() {
			defer r.Close()
			p.out[i].fill(r)
		}()
	}
	return theirs, nil
}

// attend waits for the end of a process that runs.
func (p *process) attend(cmd *exec.Cmd, l launch) {
	if p.master != nil {
		p.in, p.out[0], p.out[1] = newInput(p.master), newOutput(), newOutput()
		p.out[1].end()
		p.said = []*os.File{p.master}
		go p.out[0].fill(p.master)
	}
	go func() {
		_ = cmd.Wait() // the state says it all
		end := &guestpb.WaitResponse{Finished: time.Now().UnixNano()}
		if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok {
			end.Code = int32(status.ExitStatus())
			if status.Signaled() {
				end.Code, end.Signal, end.Core = 128+int32(status.Signal()), int32(status.Signal()), status.CoreDump()
			}
		}
		if l.ended != nil {
			l.ended(end)
		}
		p.end = end
		for _, r := range p.said { // others may have what it said to still
			_ = r.SetReadDeadline(time.Now().Add(l.drain)) // one that is closed has said all
		}
		close(p.done)
	}()
}

// drop takes what is kept of a process that has ended, or was never started.
func (p *process) drop() {
	if p.in != nil {
		p.in.close()
	}
	for _, o := range p.out {
		if o != nil {
			o.end()
		}
	}
}

// consoles is where a process hands over its terminal.
const consoles = "/run/consoles"

func listenConsole() (*net.UnixListener, error) {
	dir, err := os.MkdirTemp(consoles, "")
	if err != nil {
		return nil, err
	}
	return net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "socket"), Net: "unix"})
}

// receiveConsole takes the terminal that the process has sent by now.
func receiveConsole(l *net.UnixListener) (*os.File, error) {
	defer os.RemoveAll(filepath.Dir(l.Addr().String()))
	if err := l.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return nil, err
	}
	conn, err := l.AcceptUnix()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	f, err := initproc.ReceiveFile(conn)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// One that does not block: a write to it may have to be given up.
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	return os.NewFile(uintptr(fd), "terminal"), err
}

// IsInside tells whether the program was started to become an app.
func IsInside(args []string) bool { return len(args) > 0 && args[0] == insideArg }

// Inside becomes the app, and says why if that cannot be.
func Inside() error {
	unix.CloseOnExec(specFD)
	unix.CloseOnExec(errorFD)
	spec := os.NewFile(specFD, "spec")
	var in initproc.Inside
	err := json.NewDecoder(spec).Decode(&in)
	spec.Close()
	if err == nil {
		err = in.Run()
	}
	if _, writeErr := io.WriteString(os.NewFile(errorFD, "errors"), err.Error()); writeErr != nil {
		err = errors.Join(err, writeErr)
	}
	return err
}
