package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"gantry/internal/engine"
	"gantry/internal/pod"
)

// errDetached ends a session whose user typed the detach keys.
var errDetached = errors.New("detached")

// session starts an app, connects stdin (and with a terminal, everything) to it and
// waits for its end.
func (r *runner) session(ctx context.Context, a *pod.App, start func() error) (pod.AppStatus, error) {
	if a.TTY {
		return r.terminalSession(ctx, a, start)
	}
	if err := start(); err != nil {
		return pod.AppStatus{}, nil
	}
	// Output comes from the log, complete from its first byte.
	attached, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		err := r.be.Engine.Attach(attached, a.ID, engine.Streams{Stdin: r.env.Stdin})
		if err != nil && attached.Err() == nil && !errors.Is(err, pod.ErrState) {
			fmt.Fprintf(r.env.Stderr, "gantry: attach to app %s: %s\n", a.Name, printable(err.Error()))
		}
	}()
	return r.follow(ctx, a)
}

// terminalSession is attached before the app is started, so that nothing is missed of
// what it prints.
func (r *runner) terminalSession(ctx context.Context, a *pod.App, start func() error) (pod.AppStatus, error) {
	var startErr error
	begun := false
	err := attachTerminal(ctx, r.env, true, func(ctx context.Context, s engine.Streams) error {
		s.Start = func() error {
			begun, startErr = true, start()
			if startErr == nil {
				keysToApp(r.env)
			}
			return startErr
		}
		return r.be.Engine.Attach(ctx, a.ID, s)
	})
	switch {
	case errors.Is(err, errDetached): // stdin is read after the start only
		return pod.AppStatus{}, errDetached
	case !begun:
		return pod.AppStatus{}, err
	case startErr != nil:
		return pod.AppStatus{}, nil
	case err != nil && !errors.Is(err, pod.ErrState):
		return pod.AppStatus{}, err
	}
	return r.be.Engine.WaitApp(ctx, a.ID)
}

// attachTerminal puts the user's terminal into raw mode while f runs, so that
// every key, ctrl-c too, is the app's; ctrl-p ctrl-q leaves. While an app is only
// starting, the keys that send a signal are still ours: keysToApp ends that.
func attachTerminal(ctx context.Context, env *Env, starting bool, f func(context.Context, engine.Streams) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	detached := make(chan struct{})
	s := engine.Streams{TTY: true, Stdout: env.Stdout}
	s.Stdin = &detachReader{from: env.Stdin, detached: detached}
	if tty, ok := env.Stdin.(*os.File); ok && term.IsTerminal(int(tty.Fd())) {
		state, err := term.MakeRaw(int(tty.Fd()))
		if err != nil {
			return fmt.Errorf("set up terminal: %w", err)
		}
		defer func() { _ = term.Restore(int(tty.Fd()), state) }()
		if starting {
			if err := signalKeys(tty, true); err != nil {
				return fmt.Errorf("set up terminal: %w", err)
			}
		}
		s.Resize = watchSize(ctx, tty)
	}
	result := make(chan error, 1)
	go func() { result <- f(ctx, s) }()
	select {
	case err := <-result:
		return err
	case <-detached:
		return errDetached
	}
}

func keysToApp(env *Env) {
	if tty, ok := env.Stdin.(*os.File); ok && term.IsTerminal(int(tty.Fd())) {
		_ = signalKeys(tty, false) // without it ctrl-c ends us and not the app: no reason to give up
	}
}

// signalKeys tells a terminal whether ctrl-c and the like send signals.
func signalKeys(tty *os.File, on bool) error {
	t, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil {
		return err
	}
	if t.Lflag &^= unix.ISIG; on {
		t.Lflag |= unix.ISIG
	}
	return unix.IoctlSetTermios(int(tty.Fd()), unix.TCSETS, t)
}

// watchSize sends the terminal's size now and whenever it changes.
func watchSize(ctx context.Context, tty *os.File) <-chan engine.Size {
	sizes := make(chan engine.Size, 1)
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	go func() {
		defer signal.Stop(changed)
		for {
			if w, h, err := term.GetSize(int(tty.Fd())); err == nil {
				select {
				case sizes <- engine.Size{Width: uint16(w), Height: uint16(h)}:
				case <-ctx.Done():
					return
				}
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	return sizes
}

// detachReader passes stdin on, but for ctrl-p ctrl-q, which closes detached.
type detachReader struct {
	from     io.Reader
	detached chan struct{}
	held     bool // a ctrl-p is held back
	left     bool
}

const (
	ctrlP = 'P' & 0x1f
	ctrlQ = 'Q' & 0x1f
)

func (d *detachReader) Read(p []byte) (int, error) {
	if d.left {
		return 0, io.EOF
	}
	if len(p) < 2 {
		return 0, io.ErrShortBuffer
	}
	for {
		// Room is left for the key that may have been held back.
		buf := make([]byte, len(p)-1)
		n, err := d.from.Read(buf)
		out := d.filter(p[:0], buf[:n])
		if d.left {
			return len(out), nil
		}
		if len(out) > 0 || err != nil {
			return len(out), err
		}
	}
}

func (d *detachReader) filter(out, in []byte) []byte {
	for _, c := range in {
		if d.held {
			d.held = false
			if c == ctrlQ {
				d.left = true
				close(d.detached)
				return out
			}
			out = append(out, ctrlP)
		}
		if c == ctrlP {
			d.held = true
			continue
		}
		out = append(out, c)
	}
	return out
}
