package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"gantry/internal/isolator"
	"gantry/internal/network"
	"gantry/internal/pod"
)

// PortForward connects a stream to a port of the pod's loopback.
func (e *Engine) PortForward(ctx context.Context, id pod.ID, port uint16, stream io.ReadWriteCloser) error {
	s, err := e.Pod(id)
	if err != nil {
		return err
	}
	if !s.Ready {
		return fmt.Errorf("forward port %d of pod %s: it is not ready: %w", port, id, pod.ErrState)
	}
	conn, err := e.dialPod(ctx, s.Pod, port)
	if err != nil {
		return fmt.Errorf("forward port %d of pod %s: %w", port, id, err)
	}
	defer conn.Close()
	return relay(ctx, conn, stream)
}

// dialer is an isolator whose pods have a loopback that is not the host's kernel's.
type dialer interface {
	Dial(ctx context.Context, d isolator.Dirs, port uint16) (net.Conn, error)
}

func (e *Engine) dialPod(ctx context.Context, p *pod.Pod, port uint16) (net.Conn, error) {
	if iso, ok := e.iso[p.Isolator].(dialer); ok {
		return iso.Dial(ctx, e.dirs(p.ID, ""), port)
	}
	return network.Dial(ctx, e.down.netns(p), int(port))
}

type closeWriter interface{ CloseWrite() error }

// relay copies both ways. The end of the pod's side ends all; the end of the
// caller's side is passed on, and answers may still come.
func relay(ctx context.Context, conn, stream io.ReadWriteCloser) error {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	go func() {
		_, _ = io.Copy(conn, stream) // a broken connection shows on the other side
		if c, ok := conn.(closeWriter); ok {
			_ = c.CloseWrite()
		}
	}()
	_, err := io.Copy(stream, conn)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, io.ErrClosedPipe) {
		return nil
	}
	return err
}
