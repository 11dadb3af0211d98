package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

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
	return relay(ctx, conn, stream, lastAnswer)
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

// lastAnswer is how long the pod may say nothing once the caller has said all: a caller
// that is gone looks the same, and a server may not care.
const lastAnswer = time.Minute

// relay copies both ways. The end of the pod's side ends all; the end of the
// caller's side is passed on, and answers may still come.
func relay(ctx context.Context, conn, stream io.ReadWriteCloser, patience time.Duration) error {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	answers := &answers{from: conn, patience: patience}
	defer answers.stop()
	go func() {
		_, _ = io.Copy(conn, stream) // a broken connection shows on the other side
		if c, ok := conn.(closeWriter); ok {
			_ = c.CloseWrite()
		}
		answers.last()
	}()
	_, err := io.Copy(stream, answers)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, io.ErrClosedPipe) || answers.stop() {
		return nil
	}
	return err
}

// answers are what the pod says. After last, silence ends the connection.
type answers struct {
	from     io.ReadWriteCloser
	patience time.Duration

	mu      sync.Mutex
	timer   *time.Timer
	reading bool
	over    bool // stopped, or silent for too long
}

func (a *answers) Read(p []byte) (int, error) {
	a.listens(true)
	defer a.listens(false) // a caller who takes his time is no silence of the pod's
	return a.from.Read(p)
}

// listens has the time run while the pod is waited for.
func (a *answers) listens(now bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.reading = now
	switch {
	case a.timer == nil || a.over:
	case now:
		a.timer.Reset(a.patience)
	default:
		a.timer.Stop()
	}
}

func (a *answers) last() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.over {
		return
	}
	a.timer = time.AfterFunc(a.patience, func() {
		a.stop()
		a.from.Close()
	})
	if !a.reading {
		a.timer.Stop()
	}
}

// stop tells whether there was silence for too long.
func (a *answers) stop() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	was := a.over
	if a.over = true; a.timer != nil {
		a.timer.Stop()
	}
	return was
}
