package guest

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"gantry/internal/guest/guestpb"
	"gantry/internal/initproc"
)

// holdTime is how long an exec may be nobody's.
const holdTime = 10 * time.Second

// Exec runs a process in an app, under the app's seccomp profile.
func (a *Agent) Exec(_ context.Context, r *guestpb.ExecRequest) (*guestpb.ExecResponse, error) {
	if err := named(r.GetRef().GetApp(), r.GetRef().GetExec()); err != nil {
		return nil, err
	}
	one, err := a.find(r.Ref.App)
	if err != nil {
		return nil, err
	}
	in := initproc.Inside{App: appFD}
	if err := json.Unmarshal(r.Process, &in.Process); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "read the process: %v", err)
	}
	in.Process.Seccomp = one.seccomp
	select {
	case <-one.done:
		return nil, status.Errorf(codes.FailedPrecondition, "app %s has ended", r.Ref.App)
	default:
	}
	dir := a.execGroup(r.Ref)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	p, err := launch{inside: in, stdin: r.Stdin, cgroup: dir, app: one.pid, pids: one.pid, oomScore: a.oomScore(one), drain: drainTime}.start()
	if err != nil {
		return nil, status.Error(codes.Aborted, errors.Join(err, removeGroup(dir)).Error())
	}
	a.mu.Lock()
	one.execs[r.Ref.Exec] = p
	a.mu.Unlock()
	go a.unheld(r.Ref, p)
	return &guestpb.ExecResponse{}, nil
}

// Hold is there as long as an exec is somebody's.
func (a *Agent) Hold(ctx context.Context, r *guestpb.HoldRequest) (*guestpb.HoldResponse, error) {
	if r.GetRef().GetExec() == "" {
		return nil, status.Error(codes.InvalidArgument, "an app is not held")
	}
	p, err := a.process(r.Ref)
	if err != nil {
		return nil, err
	}
	p.hold()
	select {
	case <-p.forgotten:
		return &guestpb.HoldResponse{}, nil
	case <-ctx.Done():
		return nil, errors.Join(ctx.Err(), a.abandon(r.Ref, p))
	}
}

// unheld abandons an exec whose caller was gone before it could hold it.
func (a *Agent) unheld(r *guestpb.Ref, p *process) {
	late := time.NewTimer(holdTime)
	defer late.Stop()
	select {
	case <-p.held:
	case <-p.forgotten:
	case <-late.C:
		_ = a.abandon(r, p) // what is left of it goes with the app
	}
}

// abandon kills an exec with all that it started, and forgets it.
func (a *Agent) abandon(r *guestpb.Ref, p *process) error {
	err := a.groups.kill(a.execGroup(r))
	late := time.NewTimer(holdTime)
	defer late.Stop()
	select {
	case <-p.done:
	case <-late.C: // it hangs in the kernel
	}
	return errors.Join(err, a.forgetExec(r), a.groups.bury(a.execGroup(r)))
}

func (a *Agent) execGroup(r *guestpb.Ref) string {
	return filepath.Join(a.groups.app(r.App), "exec-"+r.Exec)
}

func (a *Agent) forgetExec(r *guestpb.Ref) error {
	if err := named(r.Exec); err != nil {
		return err
	}
	a.mu.Lock()
	var p *process
	if one := a.apps[r.App]; one != nil {
		p = one.execs[r.Exec]
		delete(one.execs, r.Exec)
	}
	a.mu.Unlock()
	if p == nil {
		return nil
	}
	close(p.forgotten)
	p.drop()
	dir := a.execGroup(r)
	if err := removeGroup(dir); !errors.Is(err, unix.EBUSY) { // a daemon that it left stays
		return err
	}
	return nil
}
