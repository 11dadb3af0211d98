package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/guest/guestpb"
	"gantry/internal/initproc"
	"gantry/internal/pod"
)

// AppFile, below an app's directory, is the App.
const AppFile = "machine.json"

// App is what stands for an app on the host.
type App struct {
	ID     string         `json:"id"`
	Start  initproc.Start `json:"start"` // with paths of the machine
	Shares []Share        `json:"shares,omitempty"`
	Stdio  initproc.Stdio `json:"stdio"`
	Stdin  bool           `json:"stdin,omitempty"`
	// OOMScoreAdj is the app's among those of its machine.
	OOMScoreAdj int `json:"oomScoreAdj,omitempty"`
}

// RunApp is the process that stands for an app: it starts it, passes on what is said and
// signals, and records its end. It may be killed at any moment: systemd starts another,
// which goes on where this one was.
func RunApp(ctx context.Context, dir string) error {
	p, err := newProxy(dir)
	if err != nil {
		return err
	}
	defer signal.Stop(p.in)
	p.ref = &guestpb.Ref{App: p.app.ID}
	switch {
	case initproc.HasEnded(dir):
		return p.conclude(ctx)
	case initproc.HasRun(dir):
		err = p.resume(ctx)
	default:
		if err = p.start(ctx); err != nil {
			return errors.Join(err, initproc.NotStarted(dir, err), p.giveUp(ctx))
		}
	}
	if err != nil {
		return err
	}
	defer p.client.Close()
	return p.attend(ctx)
}

// giveUp takes back what was asked of the machine: what has taken too long may come to be still,
// and nobody would know of it. What it was to see must not stay: one that starts again and
// again would add up.
func (p *proxy) giveUp(ctx context.Context) error {
	return p.app.forget(ctx, podDirOf(p.dir))
}

func newProxy(dir string) (*proxy, error) {
	p := &proxy{dir: dir, in: make(chan os.Signal, 64)}
	signal.Notify(p.in) // first of all: what comes early is for the app
	if err := readJSON(filepath.Join(dir, AppFile), &p.app); err != nil {
		signal.Stop(p.in)
		return nil, fmt.Errorf("read plan: %w", err)
	}
	return p, nil
}

// endTime bounds how long an app may take to die in its machine.
const endTime = 10 * time.Second

// ErrGoesOn tells that an app runs on: systemd is about to put another process in the place
// of the one that stood for it.
var ErrGoesOn = errors.New("the app runs on: another process is about to stand for it")

// GoesOn is the exit code that says so.
const GoesOn = initproc.GoesOn

// EndApp ends an app whose process on the host is gone, and records the end. Result is that
// of its unit: one whose process was killed is started again. "" is one that is not.
func EndApp(ctx context.Context, dir, result string) error {
	if initproc.HasEnded(dir) {
		return nil
	}
	if result == "signal" || result == "core-dump" {
		return ErrGoesOn
	}
	var a App
	if err := readJSON(filepath.Join(dir, AppFile), &a); err != nil {
		return fmt.Errorf("read plan: %w", err)
	}
	end, err := a.end(ctx, podDirOf(dir))
	switch {
	case !initproc.HasRun(dir): // why is known, but for what it was
		if err != nil {
			return unshare(a.Shares)
		}
		return a.forget(ctx, podDirOf(dir))
	case err == nil:
		exit := exitOf(end)
		var why End
		if readJSON(filepath.Join(podDirOf(dir), EndFile), &why) == nil { // the file server has ended: its machine is told to stop, and its apps before
			exit = why.exit()
		} else if result == "exit-code" {
			exit.Message = "killed: the process that stood for it on the host has failed, see journalctl -u gantry-app-" + a.ID
		}
		return errors.Join(initproc.Ended(dir, exit), a.forget(ctx, podDirOf(dir)))
	}
	fmt.Fprintln(os.Stderr, "gantry-guest: end the app:", err)
	return errors.Join(initproc.Ended(dir, awaitEnd(ctx, podDirOf(dir)).exit()), unshare(a.Shares))
}

// end kills an app in its machine.
func (a App) end(ctx context.Context, podDir string) (*guestpb.WaitResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, endTime)
	defer cancel()
	c, err := dial(ctx, podDir)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	ref := &guestpb.Ref{App: a.ID}
	if _, err := c.Signal(ctx, &guestpb.SignalRequest{Ref: ref, Signal: int32(unix.SIGKILL), All: true}); err != nil {
		return nil, fmt.Errorf("kill the app: %w", err)
	}
	end, err := c.Wait(ctx, &guestpb.WaitRequest{Ref: ref})
	if err != nil {
		return nil, fmt.Errorf("wait for the end: %w", err)
	}
	return end, nil
}

// forget takes away what is left of an app whose end is on record. If the machine takes too
// long, or does not answer, it sees no more of the host all the same.
func (a App) forget(ctx context.Context, podDir string) error {
	ctx, cancel := context.WithTimeout(ctx, endTime)
	defer cancel()
	return errors.Join(Forget(ctx, podDir, a.ID), unshare(a.Shares))
}

func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}

// exitOf is the end of an app as its machine tells it. That may tell anything.
func exitOf(end *guestpb.WaitResponse) pod.Exit {
	const mostCode, mostSignal = 255, 64
	e := pod.Exit{
		Code: int(min(max(end.Code, 0), mostCode)), Signal: int(min(max(end.Signal, 0), mostSignal)), Message: clean(end.Message), Finished: time.Now(),
	}
	switch {
	case end.OomKills > 0 && e.Code != 0:
		e.Reason = pod.ReasonOOMKilled
	case e.Code == 0:
		e.Reason = pod.ReasonCompleted
	default:
		e.Reason = pod.ReasonError
	}
	return e
}
