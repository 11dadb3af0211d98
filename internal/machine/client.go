package machine

import (
	"context"
	"errors"
	"fmt"
	"net"
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

// Await waits until the agent of a machine answers: it boots meanwhile.
func Await(ctx context.Context, cid uint32) (*guestpb.InfoResponse, error) {
	const often = 20 * time.Millisecond
	tick := time.NewTicker(often)
	defer tick.Stop()
	var why error
	for {
		info, err := ask(ctx, cid)
		if err == nil {
			return info, nil
		}
		why = err
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the machine's agent: %w", errors.Join(context.Cause(ctx), why))
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
