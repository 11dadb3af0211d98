package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/ttrpc"
	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"gantry/internal/guest"
	"gantry/internal/guest/guestpb"
	"gantry/internal/pod"
)

// Client calls the agent of a machine.
type Client struct {
	guestpb.GuestService
	ttrpc *ttrpc.Client
}

// dialTime is how long a machine that is up may take to take a connection: it may be busy.
const dialTime = 30 * time.Second

// dial connects to the agent of a pod's machine that is up.
func dial(ctx context.Context, podDir string) (*Client, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	conn, err := enter(ctx, podDir, guest.Port)
	if err != nil {
		return nil, err
	}
	return NewClient(conn), nil
}

// enter connects to a port of a pod's machine, and says its key.
func enter(ctx context.Context, podDir string, port uint32) (net.Conn, error) {
	key, err := os.ReadFile(filepath.Join(podDir, KeyFile))
	if err != nil {
		return nil, fmt.Errorf("reach the machine: read its key: %w: %w", err, pod.ErrUnavailable)
	}
	conn, err := connectTo(ctx, Address(filepath.Base(podDir)), port)
	if err != nil {
		return nil, err
	}
	// A machine may take a connection, and nothing that is said.
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	_, err = conn.Write(key)
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = conn.Close() // what is wrong is known
		return nil, fmt.Errorf("reach the machine: say its key: %w: %w", err, pod.ErrUnavailable)
	}
	return conn, nil
}

// connectTo connects to a port of a machine on vsock, which may hang. The kernel gives up
// after two seconds; a machine that is not there says so at once.
func connectTo(ctx context.Context, cid, port uint32) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		var err error
		for first := true; first || errors.Is(err, unix.ETIMEDOUT) && ctx.Err() == nil; first = false {
			var conn net.Conn
			if conn, err = vsock.Dial(cid, port, nil); err == nil {
				done <- result{conn: conn}
				return
			}
		}
		done <- result{err: fmt.Errorf("reach the machine: %w: %w", err, pod.ErrUnavailable)}
	}()
	select {
	case r := <-done:
		return r.conn, r.err
	case <-ctx.Done():
		go func() {
			if r := <-done; r.err == nil {
				_ = r.conn.Close() // too late
			}
		}()
		return nil, fmt.Errorf("reach the machine: %w: %w", context.Cause(ctx), pod.ErrUnavailable)
	}
}

// NewClient calls an agent over a connection.
func NewClient(conn net.Conn) *Client {
	c := ttrpc.NewClient(conn)
	return &Client{guestpb.NewGuestClient(c), c}
}

// Close ends the connection.
func (c *Client) Close() error { return c.ttrpc.Close() }

// Await waits until the agent of a pod's machine answers, and gives it the pod's network
// when that is there: the machine boots while that is made. pid is the emulator's process.
func Await(ctx context.Context, podDir string, pid int, patience time.Duration) (*guestpb.InfoResponse, error) {
	var plan Plan
	if err := readJSON(filepath.Join(podDir, PlanFile), &plan); err != nil {
		return nil, fmt.Errorf("%s: read plan: %w", StageBoot, err)
	}
	ctx, stop := whileRuns(ctx, pid)
	defer stop()
	info, err := answer(ctx, podDir, patience)
	if err != nil {
		return nil, err
	}
	if err := networked(ctx, podDir); err != nil {
		return nil, fmt.Errorf("%s: wait for the network: %w", StageBoot, err)
	}
	if err := plan.connect(ctx, podDir); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = fmt.Errorf("%w (%w)", cause, err)
		}
		return nil, fmt.Errorf("%s: connect the network: %w", StageBoot, err)
	}
	return info, nil
}

// connect makes the pod's network the machine's.
func (p Plan) connect(ctx context.Context, podDir string) error {
	told := guest.Connection{Sysctls: p.Sysctls}
	err := inNetwork(p.Run, func() (err error) {
		told.Network, err = connect()
		return err
	})
	if err != nil {
		return err
	}
	data, err := json.Marshal(told)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, dialTime, fmt.Errorf("its agent does not answer within %s", dialTime))
	defer cancel()
	c, err := dial(ctx, podDir)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Connect(ctx, &guestpb.ConnectRequest{Connection: data})
	return said(err)
}

// answer waits until the agent answers.
func answer(ctx context.Context, podDir string, patience time.Duration) (*guestpb.InfoResponse, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("its agent does not answer within %s (kvm.boot-time)", patience))
	defer cancel()
	const often = 20 * time.Millisecond
	tick := time.NewTicker(often)
	defer tick.Stop()
	for {
		info, err := ask(ctx, podDir)
		if err == nil {
			return info, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("%s: %w (%w)", StageBoot, context.Cause(ctx), err)
		}
	}
}

func ask(ctx context.Context, podDir string) (*guestpb.InfoResponse, error) {
	const patience = 5 * time.Second
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c, err := dial(ctx, podDir)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	info, err := c.Info(ctx, &guestpb.InfoRequest{})
	return info, said(err)
}
