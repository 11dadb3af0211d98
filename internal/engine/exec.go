package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/isolator"
	"gantry/internal/pod"
	"gantry/internal/stdio"
)

// Exec runs a process in a running app. It lives in a cgroup of its own below the
// app's, so that all it started can be killed at once.
func (e *Engine) Exec(ctx context.Context, id pod.ID, p pod.Process, s Streams) (int, error) {
	app, err := e.App(id)
	if err != nil {
		return 0, err
	}
	if app.Phase != pod.Running {
		return 0, fmt.Errorf("exec in app %s: it is %s: %w", id, app.Phase, pod.ErrState)
	}
	if e.stops.dying(id) {
		return 0, fmt.Errorf("exec in app %s: it is being killed: %w", id, pod.ErrState)
	}
	if err := e.hung.check(id); err != nil {
		return 0, fmt.Errorf("exec in app %s: %w", id, err)
	}
	plan, err := e.planExec(app, p)
	if err != nil {
		return 0, fmt.Errorf("exec in app %s: %w", id, err)
	}
	group, err := e.newExecGroup(app, plan.Group)
	if err != nil {
		return 0, fmt.Errorf("exec in app %s: %w", id, err)
	}
	began := time.Now()
	outside, err := e.runtimeGroup(plan)
	if err != nil {
		return 0, errors.Join(fmt.Errorf("exec in app %s: %w", id, err), group.close())
	}
	run := &execRun{plan: plan, group: group, outside: outside, groupPath: e.cgroupName(group.path), streams: s, oomScore: app.Current.OOMScoreAdj, dir: filepath.Join(e.cfg.Run, "exec")}
	defer e.endExec(id, run)
	code, err := run.run(ctx)
	if err != nil {
		return 0, fmt.Errorf("exec in app %s: %w (after %s)", id, err, round(time.Since(began)))
	}
	return code, nil
}

func (e *Engine) planExec(app pod.AppStatus, p pod.Process) (isolator.Exec, error) {
	s, err := e.Pod(app.Pod)
	if err != nil {
		return isolator.Exec{}, err
	}
	secret, err := e.store.ReadSecret(app.Pod, app.ID)
	if err != nil {
		return isolator.Exec{}, err
	}
	iso, err := e.isolatorOf(s.Pod)
	if err != nil {
		return isolator.Exec{}, err
	}
	return iso.Exec(isolator.App{
		Pod: s.Pod, App: app.App, Secret: secret, Dir: e.dirs(app.Pod, app.ID),
		Resources: app.Current, PID: app.PID,
	}, p)
}

// execRun is one exec under way.
type execRun struct {
	plan      isolator.Exec
	group     *execGroup
	groupPath string     // from the root of cgroups
	outside   *execGroup // where the command is, if that is not the process's group
	streams   Streams
	oomScore  int
	dir       string // for the socket of a terminal
	// hangs tells when the command is gone, if it was killed and did not die; else nil.
	hangs <-chan error
}

// run starts the runtime's exec and waits for it. Its exit code is the process's.
func (r *execRun) run(ctx context.Context) (int, error) {
	process, err := memfd("process.json", r.plan.Process)
	if err != nil {
		return 0, err
	}
	defer process.Close()
	log, err := memfd("runtime.log", nil)
	if err != nil {
		return 0, err
	}
	defer log.Close()
	cmd := r.command(process, log)
	var end *session
	switch {
	case r.plan.Terminal:
		end, err = r.ownTerminal(ctx, cmd)
	case r.streams.TTY:
		end, err = r.terminal(ctx, cmd)
	default:
		end, err = r.pipes(cmd)
	}
	if err != nil {
		return 0, err
	}
	defer end.close()
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start %s: %w", r.plan.Path, err)
	}
	end.started()
	return r.wait(ctx, cmd, end, log)
}

// choom sets the score before the runtime runs: the server's own, that keeps it
// from being killed, must not be inherited.
const choom = "/usr/bin/choom"

func (r *execRun) command(process, log *os.File) *exec.Cmd {
	args := make([]string, len(r.plan.Args))
	known := strings.NewReplacer(isolator.ProcessArg, "/proc/self/fd/3", isolator.LogArg, "/proc/self/fd/4",
		isolator.GroupArg, filepath.Base(r.group.path), isolator.GroupPathArg, r.groupPath)
	for i, a := range r.plan.Args {
		args[i] = known.Replace(a)
	}
	argv := append([]string{choom, "-n", strconv.Itoa(r.oomScore), "--", r.plan.Path}, args[1:]...)
	cmd := &exec.Cmd{
		Path: choom, Args: argv, Dir: "/",
		Env:         []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		ExtraFiles:  []*os.File{process, log},
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	in := r.group
	if r.outside != nil {
		in = r.outside
	}
	if r.outside != nil || r.plan.Group == "" {
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(in.lock.File().Fd())
	}
	return cmd
}

// kill ends the process and the command that runs it. That goes first: what it has begun
// and not yet put into the group is with it still, or of its own process group.
func (r *execRun) kill(cmd *exec.Cmd) error {
	var err error
	switch {
	case r.outside != nil:
		err = r.outside.kill()
	case r.plan.Outside:
		err = ignore(unix.Kill(-cmd.Process.Pid, unix.SIGKILL), unix.ESRCH)
	}
	return errors.Join(err, r.group.kill())
}

func memfd(name string, data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.WriteAt(data, 0); len(data) > 0 && err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (r *execRun) wait(ctx context.Context, cmd *exec.Cmd, end *session, log *os.File) (int, error) {
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	var err error
	select {
	case err = <-exited:
	case <-ctx.Done():
		killErr := r.kill(cmd)
		r.awaitDeath(exited, end)
		return 0, errors.Join(ctx.Err(), killErr)
	}
	end.drain(ctx, drainTime)
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0, nil
	case !errors.As(err, &exit):
		return 0, err
	}
	if said := runtimeError(log); said != "" {
		return 0, fmt.Errorf("%w: %s", pod.ErrInvalid, said)
	}
	if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal()), nil
	}
	return exit.ExitCode(), nil
}

// runtimeError is what the runtime said, if it could not run the process at all. What it
// only warns of is no reason.
func runtimeError(log *os.File) string {
	data := make([]byte, 2048)
	n, _ := log.ReadAt(data, 0) // an empty file is no error of the runtime
	var words []string
	for line := range strings.Lines(string(data[:n])) {
		if !strings.Contains(line, "level=warning") && !strings.Contains(line, "level=info") {
			words = append(words, strings.Fields(line)...)
		}
	}
	return strings.Join(words, " ")
}

// session are our ends of an exec's stdio.
type session struct {
	theirs []*os.File    // closed once the process has them
	ours   []io.Closer   // closed at the end
	out    chan struct{} // closed when all output was copied
	before func()        // runs once started

	mu       sync.Mutex
	outflows []*outflow
}

func (s *session) started() {
	for _, f := range s.theirs {
		f.Close()
	}
	s.theirs = nil
	if s.before != nil {
		s.before()
	}
}

func (s *session) close() {
	for _, f := range s.theirs {
		f.Close()
	}
	for _, c := range s.ours {
		c.Close()
	}
}

// pipes gives the process pipes for the streams that are wanted.
func (r *execRun) pipes(cmd *exec.Cmd) (*session, error) {
	s := &session{out: make(chan struct{})}
	var copies []func()
	connect := func(w io.Writer) (*os.File, error) {
		if w == nil {
			return nil, nil
		}
		ours, theirs, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		s.ours, s.theirs = append(s.ours, ours), append(s.theirs, theirs)
		copies = append(copies, s.flow(ours, w).run)
		return theirs, nil
	}
	stdout, err := connect(r.streams.Stdout)
	if err == nil && stdout != nil {
		cmd.Stdout = stdout
	}
	stderr, err2 := connect(r.streams.Stderr)
	if err2 == nil && stderr != nil {
		cmd.Stderr = stderr
	}
	var stdin *os.File
	var err3 error
	if r.streams.Stdin != nil {
		var theirs *os.File
		if theirs, stdin, err3 = os.Pipe(); err3 == nil {
			s.ours, s.theirs = append(s.ours, stdin), append(s.theirs, theirs)
			cmd.Stdin = theirs
		}
	}
	if err := errors.Join(err, err2, err3); err != nil {
		s.close()
		return nil, fmt.Errorf("make pipes: %w", err)
	}
	s.before = func() { s.copy(copies, r.streams.Stdin, stdin) }
	return s, nil
}

// copy runs the copies; out is closed when all output is through.
func (s *session) copy(copies []func(), from io.Reader, stdin *os.File) {
	if stdin != nil {
		go func() {
			_, _ = io.Copy(stdin, from) // the process may close its input early
			stdin.Close()
		}()
	}
	left := make(chan struct{}, len(copies))
	for _, c := range copies {
		go func() { c(); left <- struct{}{} }()
	}
	go func() {
		for range copies {
			<-left
		}
		close(s.out)
	}()
}

// socketSuffix ends the name of a terminal's socket, which is that of the exec's group.
const socketSuffix = ".sock"

// terminal makes the runtime send the master of a new terminal to us.
func (r *execRun) terminal(ctx context.Context, cmd *exec.Cmd) (*session, error) {
	path := filepath.Join(r.dir, filepath.Base(r.group.path)+socketSuffix)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen for a terminal: %w", err)
	}
	for i, a := range cmd.Args {
		cmd.Args[i] = strings.ReplaceAll(a, isolator.ConsoleArg, path)
	}
	// Closing it removes the socket's file, and ends the wait for a runtime that
	// failed before it sent a terminal, or could not be started at all.
	s := &session{out: make(chan struct{}), ours: []io.Closer{l}}
	s.before = func() {
		go func() {
			defer close(s.out)
			r.relay(ctx, l, s)
		}()
	}
	return s, nil
}

// consoleTime bounds the wait for the runtime to send the terminal.
const consoleTime = 30 * time.Second

func (r *execRun) relay(ctx context.Context, l *net.UnixListener, s *session) {
	if err := l.SetDeadline(time.Now().Add(consoleTime)); err != nil {
		return
	}
	conn, err := l.AcceptUnix()
	if err != nil {
		return
	}
	defer conn.Close()
	master, err := receiveFile(conn)
	if err != nil {
		return
	}
	defer master.Close()
	r.use(ctx, master, s)
}

// use connects a terminal with the streams until nobody has it open any more.
func (r *execRun) use(ctx context.Context, master *os.File, s *session) {
	go r.resize(ctx, master)
	if r.streams.Stdin != nil {
		go func() { _, _ = io.Copy(master, r.streams.Stdin) }() // ends with the terminal
	}
	s.flow(master, r.streams.Stdout).run()
}

func (r *execRun) resize(ctx context.Context, master *os.File) {
	for {
		select {
		case <-ctx.Done():
			return
		case size, ok := <-r.streams.Resize:
			if !ok {
				return
			}
			raw, err := master.SyscallConn()
			if err != nil {
				return
			}
			_ = raw.Control(func(fd uintptr) { // a terminal that is gone has no size
				_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Height, Col: size.Width})
			})
		}
	}
}

func receiveFile(conn *net.UnixConn) (*os.File, error) {
	data, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(data, oob)
	if err != nil {
		return nil, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) == 0 {
		return nil, errors.Join(err, errors.New("the runtime sent no terminal"))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return nil, err
	}
	unix.CloseOnExec(fds[0])
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fds[0]), "terminal"), nil
}

// Attach connects streams to a running app's own stdio.
func (e *Engine) Attach(ctx context.Context, id pod.ID, s Streams) error {
	app, err := e.App(id)
	if err != nil {
		return err
	}
	if app.Phase != pod.Running && !(s.Start != nil && app.Phase == pod.Prepared) {
		return fmt.Errorf("attach to app %s: it is %s: %w", id, app.Phase, pod.ErrState)
	}
	sizes := make(chan stdio.Size)
	go func() {
		defer close(sizes)
		for {
			select {
			case <-ctx.Done():
				return
			case z, ok := <-s.Resize:
				if !ok {
					return
				}
				select {
				case sizes <- stdio.Size{Width: z.Width, Height: z.Height}:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return e.cfg.Stdio.Attach(ctx, id, stdio.AttachOptions{
		Stdin: s.Stdin, Stdout: s.Stdout, Stderr: s.Stderr, Resize: sizes, Start: s.Start,
	})
}
