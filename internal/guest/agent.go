package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"gantry/internal/guest/guestpb"
	"gantry/internal/initproc"
)

// Agent answers the host.
type Agent struct {
	Version string
	groups  groups

	mu   sync.Mutex
	apps map[string]*app

	holder holder
	clock  clock
}

// app is one of the pod's.
type app struct {
	starting sync.Mutex
	*process
	seccomp  *initproc.Seccomp
	oomScore int
	execs    map[string]*process
	// forgotten while it was being started.
	forgotten bool
}

// drainTime is how long after its end others that have a process's output may say something.
const drainTime = 2 * time.Second

var _ guestpb.GuestService = (*Agent)(nil)

// NewAgent returns one for the machine that boot has prepared; the apps' cgroups are made
// below a directory.
func NewAgent(version, cgroups string) *Agent {
	return &Agent{Version: version, groups: groups{cgroups}, apps: map[string]*app{}}
}

// named refuses what is no name of ours: it becomes part of paths.
func named(names ...string) error {
	for _, name := range names {
		if name == "" || len(name) > 64 || strings.ContainsFunc(name, func(c rune) bool { return (c < 'a' || c > 'z') && (c < '0' || c > '9') }) {
			return status.Errorf(codes.InvalidArgument, "%q is no ID", name)
		}
	}
	return nil
}

// Info tells what the machine is.
func (a *Agent) Info(context.Context, *guestpb.InfoRequest) (*guestpb.InfoResponse, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, err
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, err
	}
	return &guestpb.InfoResponse{BootId: strings.TrimSpace(string(boot)), Kernel: unix.ByteSliceToString(uts.Release[:]), Version: a.Version}, nil
}

// Connect gives the machine the pod's network.
func (a *Agent) Connect(_ context.Context, r *guestpb.ConnectRequest) (*guestpb.ConnectResponse, error) {
	var c Connection
	if err := json.Unmarshal(r.Connection, &c); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "read the connection: %v", err)
	}
	if err := errors.Join(c.apply(), expedite(false)); err != nil {
		return nil, status.Error(codes.Aborted, err.Error())
	}
	return &guestpb.ConnectResponse{}, nil
}

// Run starts an app, once.
func (a *Agent) Run(_ context.Context, r *guestpb.RunRequest) (*guestpb.RunResponse, error) {
	if err := named(r.App); err != nil {
		return nil, err
	}
	var in initproc.Inside
	if err := errors.Join(json.Unmarshal(r.Start, &in.Start), json.Unmarshal(r.Process, &in.Process)); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "read the plan: %v", err)
	}
	if in.Start.Self == nil {
		return nil, status.Error(codes.InvalidArgument, "the plan has no rootfs of the machine's own")
	}
	a.mu.Lock()
	one := a.apps[r.App]
	if one == nil {
		one = &app{seccomp: in.Process.Seccomp, oomScore: int(r.OomScoreAdj), execs: map[string]*process{}}
		a.apps[r.App] = one
	}
	a.mu.Unlock()
	one.starting.Lock()
	defer one.starting.Unlock()
	if one.process == nil {
		p, err := a.start(r, in)
		if err != nil {
			a.mu.Lock()
			if a.apps[r.App] == one {
				delete(a.apps, r.App)
			}
			forgotten := one.forgotten
			a.mu.Unlock()
			undo := a.groups.remove
			if forgotten {
				undo = a.takeAway
			}
			return nil, status.Error(codes.Aborted, errors.Join(err, undo(r.App)).Error())
		}
		a.mu.Lock()
		forgotten := one.forgotten
		if !forgotten {
			a.apps[r.App], one.process = one, p // a start before that failed has taken it out
		}
		a.mu.Unlock()
		if forgotten { // nobody knows of it
			p.drop()
			return nil, status.Error(codes.Aborted, errors.Join(errors.New("it was taken back while it was started"), a.takeAway(r.App)).Error())
		}
	}
	return &guestpb.RunResponse{Started: one.started.UnixNano()}, nil
}

func (a *Agent) start(r *guestpb.RunRequest, in initproc.Inside) (*process, error) {
	app, dir := r.App, a.groups.app(r.App)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	files := make([]*guestpb.File, len(in.Start.Cgroup))
	for i, f := range in.Start.Cgroup {
		files[i] = &guestpb.File{Name: f.Name, Value: f.Value}
	}
	if err := a.groups.write(app, files); err != nil {
		return nil, err
	}
	for _, d := range []string{in.Start.Rootfs.Upper, in.Start.Rootfs.Work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	if err := touch(in.Start); err != nil {
		return nil, err
	}
	pids, err := a.pids(in.Start.PIDs)
	if err != nil {
		return nil, err
	}
	return launch{inside: in, stdin: r.Stdin, cgroup: dir, pids: pids, oomScore: int(r.OomScoreAdj), drain: drainTime, ended: func(end *guestpb.WaitResponse) {
		end.OomKills = a.groups.oomKills(app)
		// In a PID namespace of others what the app has started lives on. If it cannot be
		// killed, Forget says so.
		_ = a.groups.kill(dir)
	}}.start()
}

// pids is a process whose PID namespace an app is to be in, 0 for one of its own.
func (a *Agent) pids(whose string) (int, error) {
	switch whose {
	case "":
		return 0, nil
	case initproc.PodPIDs:
		return a.holder.get()
	}
	target, err := a.find(whose)
	if err != nil {
		return 0, fmt.Errorf("join the PID namespace of another app: %w", err)
	}
	select {
	case <-target.done:
		return 0, fmt.Errorf("join the PID namespace of another app: %s has ended", whose)
	default:
		return target.pid, nil
	}
}

// touch looks into the directories of the host that an app is to have: each is a file
// system of its own, which is mounted when somebody goes there, and overlay takes none that
// is not mounted yet.
func touch(s initproc.Start) error {
	dirs := slices.Clone(s.Rootfs.Lower)
	for _, m := range s.Self.Mounts {
		if m.Type == "" {
			dirs = append(dirs, m.Source)
		}
	}
	for _, dir := range dirs {
		f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
		if errors.Is(err, unix.ENOTDIR) {
			continue
		}
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			return fmt.Errorf("find what the host shares: %w", err)
		}
	}
	return nil
}

// find returns an app that was started.
func (a *Agent) find(id string) (*app, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if one := a.apps[id]; one != nil && one.process != nil {
		return one, nil
	}
	return nil, status.Errorf(codes.NotFound, "there is no app %s", id)
}

func (a *Agent) process(r *guestpb.Ref) (*process, error) {
	one, err := a.find(r.GetApp())
	if err != nil || r.GetExec() == "" {
		if err != nil {
			return nil, err
		}
		return one.process, nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if p := one.execs[r.Exec]; p != nil {
		return p, nil
	}
	return nil, status.Errorf(codes.NotFound, "app %s has no process %s", r.App, r.Exec)
}

// Wait returns when the process has ended.
func (a *Agent) Wait(ctx context.Context, r *guestpb.WaitRequest) (*guestpb.WaitResponse, error) {
	p, err := a.process(r.GetRef())
	if err != nil {
		return nil, err
	}
	select {
	case <-p.done:
		return p.end, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Forget takes away what is left of a process. One that runs is killed.
func (a *Agent) Forget(_ context.Context, r *guestpb.ForgetRequest) (*guestpb.ForgetResponse, error) {
	if err := named(r.GetRef().GetApp()); err != nil {
		return nil, err
	}
	if r.Ref.Exec != "" {
		return &guestpb.ForgetResponse{}, a.forgetExec(r.Ref)
	}
	a.mu.Lock()
	one := a.apps[r.Ref.App]
	delete(a.apps, r.Ref.App)
	if one != nil {
		one.forgotten = true
	}
	var left []*process
	if one != nil && one.process != nil {
		left = append(slices.Collect(maps.Values(one.execs)), one.process)
	}
	a.mu.Unlock()
	for _, p := range left {
		p.drop()
	}
	return &guestpb.ForgetResponse{}, a.takeAway(r.Ref.App)
}

// takeAway kills what is left of an app, and removes what it has written and was shown.
func (a *Agent) takeAway(app string) error {
	return errors.Join(a.groups.remove(app), os.RemoveAll(filepath.Join(Scratch, app)), unshare(app))
}

// Signal sends a signal to a process, or to all of an app.
func (a *Agent) Signal(_ context.Context, r *guestpb.SignalRequest) (*guestpb.SignalResponse, error) {
	p, err := a.process(r.GetRef())
	if err != nil {
		return nil, err
	}
	if r.All {
		dir := a.groups.app(r.Ref.App)
		if r.Ref.Exec != "" {
			dir = a.execGroup(r.Ref)
		}
		if r.Signal == int32(unix.SIGKILL) {
			return &guestpb.SignalResponse{}, a.groups.kill(dir)
		}
	}
	select {
	case <-p.done:
		return &guestpb.SignalResponse{}, nil
	default:
	}
	err = unix.Kill(p.pid, unix.Signal(r.Signal))
	if errors.Is(err, unix.ESRCH) {
		err = nil
	}
	return &guestpb.SignalResponse{}, err
}

// Read returns what a process said.
func (a *Agent) Read(ctx context.Context, r *guestpb.ReadRequest) (*guestpb.ReadResponse, error) {
	p, err := a.process(r.GetRef())
	if err != nil {
		return nil, err
	}
	if r.Stream != 1 && r.Stream != 2 {
		return nil, status.Errorf(codes.InvalidArgument, "stream %d: want 1 or 2", r.Stream)
	}
	out, offset := p.out[r.Stream-1], r.Offset
	if r.Resume {
		offset = out.oldest()
	}
	data, eof, err := out.read(ctx, offset)
	if errors.Is(err, errOffset) {
		err = status.Error(codes.OutOfRange, err.Error())
	}
	return &guestpb.ReadResponse{Data: data, Eof: eof, Offset: offset}, err
}

// Write says something to a process.
func (a *Agent) Write(ctx context.Context, r *guestpb.WriteRequest) (*guestpb.WriteResponse, error) {
	p, err := a.process(r.GetRef())
	if err != nil {
		return nil, err
	}
	if p.in == nil {
		return nil, status.Error(codes.FailedPrecondition, "it has no stdin")
	}
	next, err := p.in.write(ctx, r.Offset, r.Data, r.Eof)
	return &guestpb.WriteResponse{Offset: next}, err
}

// Resize sets the size of a terminal.
func (a *Agent) Resize(_ context.Context, r *guestpb.ResizeRequest) (*guestpb.ResizeResponse, error) {
	p, err := a.process(r.GetRef())
	if err != nil {
		return nil, err
	}
	if p.master == nil {
		return nil, status.Error(codes.FailedPrecondition, "it has no terminal")
	}
	conn, err := p.master.SyscallConn()
	if err != nil {
		return nil, err
	}
	var set error
	err = conn.Control(func(fd uintptr) {
		set = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Col: uint16(r.Width), Row: uint16(r.Height)})
	})
	return &guestpb.ResizeResponse{}, errors.Join(err, set)
}
