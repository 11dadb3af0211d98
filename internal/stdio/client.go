package stdio

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/pod"
)

// Client talks to the server. It holds nothing between calls and may be copied.
type Client struct {
	Socket string // "" is the fixed place
}

// Drain waits until all that an app wrote is in its log file, at most for the
// given time, and ends what is kept for the app.
func (c Client) Drain(ctx context.Context, app pod.ID, timeout time.Duration) error {
	_, err := c.call(ctx, request{Op: "drain", App: app, TimeoutMS: timeout.Milliseconds()})
	return wrap("drain output of app", app, err)
}

// Reopen makes the log path name a new file, for rotation.
func (c Client) Reopen(ctx context.Context, app pod.ID) error {
	_, err := c.call(ctx, request{Op: "reopen", App: app})
	return wrap("reopen log of app", app, err)
}

// Resize sets the size of an app's terminal.
func (c Client) Resize(ctx context.Context, app pod.ID, s Size) error {
	_, err := c.call(ctx, request{Op: "resize", App: app, Size: s})
	return wrap("resize terminal of app", app, err)
}

// CloseStdin lets an app see the end of its input.
func (c Client) CloseStdin(ctx context.Context, app pod.ID) error {
	_, err := c.call(ctx, request{Op: "close-stdin", App: app})
	return wrap("close stdin of app", app, err)
}

// Console waits until the terminal of an app has been handed over.
func (c Client) Console(ctx context.Context, app pod.ID, timeout time.Duration) error {
	_, err := c.call(ctx, request{Op: "console", App: app, TimeoutMS: timeout.Milliseconds()})
	return wrap("wait for terminal of app", app, err)
}

// Written tells how many bytes were ever written to an app's stdout and stderr. It is exact
// if nobody writes.
func (c Client) Written(ctx context.Context, app pod.ID) (n [2]uint64, err error) {
	r, err := c.call(ctx, request{Op: "written", App: app})
	if err == nil && r.Written == nil {
		err = errors.New("empty answer")
	}
	if err != nil {
		return n, wrap("count output of app", app, err)
	}
	return *r.Written, nil
}

// Status asks for the totals, or also for one app unless it is "".
func (c Client) Status(ctx context.Context, app pod.ID) (Status, error) {
	r, err := c.call(ctx, request{Op: "status", App: app})
	if err != nil {
		return Status{}, fmt.Errorf("ask gantry-stdio for its status: %w", err)
	}
	if r.Status == nil {
		return Status{}, errors.New("ask gantry-stdio for its status: empty answer")
	}
	return *r.Status, nil
}

func wrap(what string, app pod.ID, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %s: %w", what, app, err)
}

func (c Client) path() string {
	if c.Socket == "" {
		return Socket
	}
	return c.Socket
}

// attempts is how often a call is made again after the server was lost. It is
// back within milliseconds, and all calls may be repeated.
const attempts = 6

// errLost says that the connection broke before an answer came.
var errLost = fmt.Errorf("lost the connection to gantry-stdio: %w", pod.ErrUnavailable)

func (c Client) call(ctx context.Context, req request) (reply, error) {
	for i := 1; ; i++ {
		r, err := c.once(ctx, req)
		if err == nil || i == attempts || !retryable(err) {
			return r, err
		}
		select {
		case <-ctx.Done():
			return r, err
		case <-time.After(time.Duration(i) * 20 * time.Millisecond):
		}
	}
}

func retryable(err error) bool {
	return errors.Is(err, errLost) || errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT)
}

func (c Client) once(ctx context.Context, req request) (reply, error) {
	conn, err := dial(c.path())
	if err != nil {
		return reply{}, fmt.Errorf("%w: %w", err, pod.ErrUnavailable)
	}
	defer conn.close()
	defer context.AfterFunc(ctx, func() { conn.f.SetDeadline(time.Unix(1, 0)) })()
	r, err := exchange(conn, req)
	if err != nil && ctx.Err() != nil {
		return r, ctx.Err()
	}
	return r, err
}

func exchange(conn *seqpacket, req request) (reply, error) {
	var r reply
	data, err := json.Marshal(req)
	if err != nil {
		return r, err
	}
	buf := make([]byte, maxSpec)
	err = conn.send(data)
	var n int
	if err == nil {
		var fds []int
		n, fds, err = conn.recv(buf)
		closeAll(fds)
	}
	if err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
			err = errLost
		}
		return r, err
	}
	if err := json.Unmarshal(buf[:n], &r); err != nil {
		return r, fmt.Errorf("parse answer: %w", err)
	}
	return r, r.err()
}
