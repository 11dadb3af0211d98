package machine

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"time"

	"github.com/containerd/ttrpc"
	"github.com/mdlayher/vsock"

	"gantry/internal/guest"
	"gantry/internal/guest/guestpb"
	"gantry/internal/pod"
)

// Client calls the agent of a machine.
type Client struct {
	guestpb.GuestService
	ttrpc *ttrpc.Client
}

// Dial connects to the agent of a machine that is up.
func Dial(cid uint32) (*Client, error) {
	conn, err := vsock.Dial(cid, guest.Port, nil)
	if err != nil {
		return nil, fmt.Errorf("reach the machine: %w: %w", err, pod.ErrUnavailable)
	}
	return NewClient(conn), nil
}

// NewClient calls an agent over a connection.
func NewClient(conn net.Conn) *Client {
	c := ttrpc.NewClient(conn)
	return &Client{guestpb.NewGuestClient(c), c}
}

// Close ends the connection.
func (c *Client) Close() error { return c.ttrpc.Close() }

// Await waits until the agent of a pod's machine answers: it boots meanwhile. pid is the
// emulator's process.
func Await(ctx context.Context, podDir string, pid int, patience time.Duration) (*guestpb.InfoResponse, error) {
	var plan Plan
	if err := readJSON(filepath.Join(podDir, PlanFile), &plan); err != nil {
		return nil, fmt.Errorf("boot the machine: read plan: %w", err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("its agent does not answer within %s (kvm.boot-time)", patience))
	defer cancel()
	ctx, stop := whileRuns(ctx, pid)
	defer stop()
	const often = 20 * time.Millisecond
	tick := time.NewTicker(often)
	defer tick.Stop()
	for {
		info, err := ask(ctx, plan.CID)
		if err == nil {
			return info, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("boot the machine: %w (%w)", context.Cause(ctx), err)
		}
	}
}

func ask(ctx context.Context, cid uint32) (*guestpb.InfoResponse, error) {
	c, err := Dial(cid)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	const patience = 5 * time.Second
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return c.Info(ctx, &guestpb.InfoRequest{})
}
