package machine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"gantry/internal/guest"
	"gantry/internal/guest/guestpb"
	"gantry/internal/initproc"
	"gantry/internal/pod"
)

// call calls the agent of a machine once.
func call[R any](ctx context.Context, podDir string, what string, do func(guestpb.GuestService) (R, error)) (out R, err error) {
	c, err := dial(ctx, podDir)
	if err != nil {
		return out, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })() // one that takes nothing that is said
	if out, err = do(c); err == nil {
		return out, nil
	}
	switch {
	case guest.IsNotFound(err):
		return out, fmt.Errorf("%s: %w: %w", what, said(err), pod.ErrNotFound)
	case guest.IsAnswer(err):
		return out, fmt.Errorf("%s: %w", what, said(err))
	}
	return out, fmt.Errorf("%s: %w: %w", what, said(err), pod.ErrUnavailable)
}

// said is an error that came from a machine: as text, and no more of it than one line.
func said(err error) error {
	if err == nil {
		return nil
	}
	return errors.New(clean(err.Error()))
}

// Signal sends a signal to an app's first process, or to all of them.
func Signal(ctx context.Context, podDir string, app string, signal int, all bool) error {
	_, err := call(ctx, podDir, "signal app "+app, func(c guestpb.GuestService) (*guestpb.SignalResponse, error) {
		return c.Signal(ctx, &guestpb.SignalRequest{Ref: &guestpb.Ref{App: app}, Signal: int32(signal), All: all})
	})
	return err
}

// Forget takes away what a machine keeps of an app. One that runs is killed.
func Forget(ctx context.Context, podDir string, app string) error {
	_, err := call(ctx, podDir, "forget app "+app, func(c guestpb.GuestService) (*guestpb.ForgetResponse, error) {
		return c.Forget(ctx, &guestpb.ForgetRequest{Ref: &guestpb.Ref{App: app}})
	})
	return err
}

// Measure reads files of an app's cgroup, and what belongs to that.
func Measure(ctx context.Context, podDir string, app string, files []string) (*guestpb.StatsResponse, error) {
	return call(ctx, podDir, "measure app "+app, func(c guestpb.GuestService) (*guestpb.StatsResponse, error) {
		return c.Stats(ctx, &guestpb.StatsRequest{App: app, Files: files})
	})
}

// MeasureLayer looks at what an app has written.
func MeasureLayer(ctx context.Context, podDir string, app string) (bytes, inodes uint64, err error) {
	n, err := call(ctx, podDir, "measure the writable layer of app "+app, func(c guestpb.GuestService) (*guestpb.StatsResponse, error) {
		return c.Stats(ctx, &guestpb.StatsRequest{App: app, Disk: true})
	})
	return n.GetDiskBytes(), n.GetDiskInodes(), err
}

// Update writes limits of an app, and gives its processes another OOM score.
func Update(ctx context.Context, podDir string, app string, files []initproc.CgroupFile, was, now int) error {
	r := &guestpb.UpdateRequest{App: app, OomScoreWas: int32(was), OomScoreAdj: int32(now)}
	for _, f := range files {
		r.Files = append(r.Files, &guestpb.File{Name: f.Name, Value: f.Value})
	}
	_, err := call(ctx, podDir, "set limits of app "+app, func(c guestpb.GuestService) (*guestpb.UpdateResponse, error) { return c.Update(ctx, r) })
	return err
}

// DialPort connects to a port of a machine's loopback.
func DialPort(ctx context.Context, podDir string, port uint16) (net.Conn, error) {
	conn, err := enter(ctx, podDir, guest.ForwardPort)
	if err != nil {
		return nil, err
	}
	deadline, ok := ctx.Deadline()
	if late := time.Now().Add(forwardTime); !ok || deadline.After(late) {
		deadline = late
	}
	if err = conn.SetDeadline(deadline); err == nil {
		err = said(guest.AskForward(conn, port))
	}
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	if err != nil {
		_ = conn.Close() // what is wrong is known
		return nil, fmt.Errorf("connect in the machine: %w", err)
	}
	return conn, nil
}

// forwardTime bounds how long a machine may take to connect to a port of its own.
const forwardTime = 15 * time.Second
