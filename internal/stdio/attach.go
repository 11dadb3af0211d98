package stdio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"gantry/internal/pod"
)

// AttachOptions are the client's ends. Nil means not attached.
type AttachOptions struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Resize gives the sizes of the client's terminal.
	Resize <-chan Size
	// Start, if set, is called when the ends are connected: an app that has no streams
	// yet is waited for, and may be started now. Its error ends the session. Stdin is
	// not read before.
	Start func() error
}

// Attach connects the client's ends with a running app until the app's outputs
// end (nil), the client's context ends, a Writer fails or the server is lost
// (ErrUnavailable: attach again, the app was not disturbed). Leaving never stops
// the app. A Read of Stdin that blocks when Attach returns is left blocked; its
// data is lost.
func (c Client) Attach(ctx context.Context, app pod.ID, o AttachOptions) error {
	conn, err := dial(c.path())
	if err != nil {
		return wrap("attach to app", app, fmt.Errorf("%w: %w", err, pod.ErrUnavailable))
	}
	var once sync.Once
	hangUp := func() { once.Do(func() { conn.close() }) }
	defer hangUp()
	defer context.AfterFunc(ctx, hangUp)()

	req := request{Op: "attach", App: app, Stdin: o.Stdin != nil, Stdout: o.Stdout != nil, Stderr: o.Stderr != nil, Wait: o.Start != nil}
	if _, err := exchange(conn, req); err != nil {
		return wrap("attach to app", app, errors.Join(ctx.Err(), err))
	}
	done := make(chan struct{})
	defer close(done)
	if o.Resize != nil {
		go sendSizes(conn, o.Resize, done)
	}
	// What comes is taken from now on: a start may last longer than the app's pipes do.
	ended := make(chan error, 1)
	go func() { ended <- receive(conn, o) }()
	if o.Start != nil {
		if err := o.Start(); err != nil {
			hangUp()
			<-ended
			return err
		}
	}
	if o.Stdin != nil {
		go sendInput(conn, o.Stdin)
	}
	err = <-ended
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return wrap("attach to app", app, err)
}

// sendInput ends when the client's input does or when the connection is closed.
func sendInput(conn *seqpacket, in io.Reader) {
	buf := make([]byte, maxFrame)
	buf[0] = frameStdin
	for {
		n, err := in.Read(buf[1:])
		if n > 0 && conn.send(buf[:1+n]) != nil {
			return
		}
		if err != nil {
			_ = conn.send([]byte{frameClose})
			return
		}
	}
}

func sendSizes(conn *seqpacket, sizes <-chan Size, done <-chan struct{}) {
	for {
		select {
		case s, ok := <-sizes:
			if !ok || conn.send(resizeFrame(s)) != nil {
				return
			}
		case <-done:
			return
		}
	}
}

func receive(conn *seqpacket, o AttachOptions) error {
	buf := make([]byte, maxFrame)
	for {
		n, fds, err := conn.recv(buf)
		closeAll(fds)
		if err != nil || n == 0 {
			return errLost
		}
		w := o.Stdout
		switch buf[0] {
		case frameStdout:
		case frameStderr:
			w = o.Stderr
		case frameEnd:
			if n > 1 {
				return &remoteError{text: string(buf[1:n]), kind: pod.ErrUnavailable}
			}
			return nil
		default:
			continue // a newer server
		}
		if w == nil {
			continue
		}
		if _, err := w.Write(buf[1:n]); err != nil {
			return err
		}
	}
}
