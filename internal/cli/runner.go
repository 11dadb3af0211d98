package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"gantry/internal/crilog"
	"gantry/internal/pod"
)

// runner starts the apps of a prepared pod and, in the foreground, stays with
// them. It holds nothing that the pod needs: whatever happens to it, the pod runs
// on under systemd.
type runner struct {
	env     *Env
	be      *Backend
	created *created

	remove      bool
	interactive bool // pass stdin on to the first app
	signals     signals

	mu       sync.Mutex // of the output
	stopping atomic.Bool
}

// startAll starts the apps and leaves. Init apps are waited for.
func (r *runner) startAll(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go r.onSignal(ctx)
	err := r.inits(ctx, nil)
	if err == nil {
		err = r.start(ctx)
	}
	if err != nil {
		return r.also(err, r.stopAfter(ctx))
	}
	return nil
}

// inits runs the init apps one after the other; show shows their output.
func (r *runner) inits(ctx context.Context, show func(ctx context.Context, a *pod.App) (pod.AppStatus, error)) error {
	if show == nil {
		show = func(ctx context.Context, a *pod.App) (pod.AppStatus, error) { return r.be.Engine.WaitApp(ctx, a.ID) }
	}
	for _, a := range r.created.apps {
		if a.Annotations[annotationInit] != "true" {
			continue
		}
		if err := r.startApp(ctx, a); err != nil {
			return err
		}
		s, err := show(ctx, a)
		if err != nil {
			return err
		}
		if code := exitCode(s); code != 0 {
			fmt.Fprintf(r.env.Stderr, "gantry: run pod %s: init app %s exited with code %d (%s)\n", r.created.pod.Name, a.Name, code, s.Exit.Reason)
			return &codeError{code}
		}
	}
	return nil
}

func (r *runner) mainApps() []*pod.App {
	var out []*pod.App
	for _, a := range r.created.apps {
		if a.Annotations[annotationInit] != "true" {
			out = append(out, a)
		}
	}
	return out
}

func (r *runner) start(ctx context.Context) error {
	for _, a := range r.mainApps() {
		if err := r.startApp(ctx, a); err != nil {
			return err
		}
	}
	return nil
}

// startApp gives a program that cannot be run the codes that shells use for it.
// Whatever else keeps an app from starting is an error of ours.
func (r *runner) startApp(ctx context.Context, a *pod.App) error {
	return r.startVerdict(a, r.launch(ctx, a))
}

func (r *runner) launch(ctx context.Context, a *pod.App) error {
	if r.stopping.Load() {
		return fmt.Errorf("start app %s: interrupted", a.Name)
	}
	return r.be.Engine.StartApp(ctx, a.ID)
}

func (r *runner) startVerdict(a *pod.App, err error) error {
	if err == nil {
		return nil
	}
	s, statusErr := r.be.Engine.App(a.ID)
	if statusErr != nil || !startFailed(s) || exitCode(s) == exitError {
		return err
	}
	fmt.Fprintf(r.env.Stderr, "gantry: start app %s: %s\n", a.Name, oneLine(s.Exit.Message))
	return &codeError{exitCode(s)}
}

func startFailed(s pod.AppStatus) bool {
	return s.Exit != nil && (s.Exit.Reason == pod.ReasonStartError || s.Exit.Reason == pod.ReasonCannotRun)
}

// exitCode is what an app's end means for a shell. Of a program that did not even
// start only the runtime's words tell why; they are crun's and runc's.
func exitCode(s pod.AppStatus) int {
	switch {
	case s.Exit == nil:
		return 0
	case !startFailed(s):
		return s.Exit.Code
	}
	return startCode(s.Exit.Message)
}

// startCode reads from the runtime's words why a program could not be started.
func startCode(message string) int {
	message = strings.ToLower(message)
	switch {
	case strings.Contains(message, "executable file") && strings.Contains(message, "not found"):
		return exitNotFound
	case strings.Contains(message, "not executable"), strings.Contains(message, "exec format error"):
		return exitCannotRun
	}
	return exitError
}

func oneLine(s string) string { return printable(strings.ReplaceAll(s, "\n", "; ")) }

// foreground runs the pod to its end and returns the exit code of the first app
// that failed.
func (r *runner) foreground(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go r.onSignal(ctx)

	err := r.inits(ctx, r.follow)
	if err == nil {
		err = r.runMain(ctx)
	}
	if errors.Is(err, errDetached) {
		r.sayDetached()
		return nil
	}
	var code *codeError
	if err != nil && !errors.As(err, &code) {
		// Something is wrong with us: that must not take the pod down if it runs.
		if r.anyRunning() {
			return withHint(err, "the pod runs on: gantry status %s", r.created.pod.Name)
		}
	}
	return r.also(err, r.stopAfter(ctx))
}

// also tells of an error after another. The code of an app says nothing of it.
func (r *runner) also(err, after error) error {
	var code *codeError
	if after != nil && errors.As(err, &code) {
		fmt.Fprintf(r.env.Stderr, "gantry: run pod %s: %s\n", r.created.pod.Name, oneLine(after.Error()))
		return err
	}
	return errors.Join(err, after)
}

func (r *runner) sayDetached() {
	name := r.created.pod.Name
	fmt.Fprintf(r.env.Stderr, "\r\ngantry: detached: the pod runs on: gantry attach %s\n", name)
	if r.remove {
		fmt.Fprintf(r.env.Stderr, "gantry: nobody removes it at its end: gantry rm %s\n", name)
	}
}

func (r *runner) anyRunning() bool {
	s, err := r.be.Engine.Pod(r.created.pod.ID)
	return err != nil || len(inPhase(s.Apps, pod.Running)) > 0
}

// stopAfter gives back what a pod that has ended still holds, or removes it.
func (r *runner) stopAfter(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	if r.remove {
		return r.be.Engine.RemovePod(ctx, r.created.pod.ID)
	}
	return r.be.Engine.StopPod(ctx, r.created.pod.ID)
}

func (r *runner) runMain(ctx context.Context) error {
	apps := r.mainApps()
	results := make([]pod.AppStatus, len(apps))
	var group errgroup.Group
	// Who detaches from one app leaves the others, too: all that are to be started are.
	shown, leave := context.WithCancelCause(ctx)
	defer leave(nil)
	for i, a := range apps {
		run := r.startAndFollow
		if i == 0 && r.interactive {
			run = r.session
		}
		started := make(chan error, 1)
		start := func() error {
			err := r.launch(ctx, a)
			started <- err
			return err
		}
		ended := make(chan struct{})
		group.Go(func() (err error) {
			defer close(ended)
			results[i], err = run(shown, a, start)
			if errors.Is(err, errDetached) {
				leave(errDetached)
			}
			return err
		})
		if err := begun(started, ended); err != nil {
			r.kill(ctx)
			err2 := group.Wait() // gives the terminal back
			if errors.Is(err, errNotBegun) {
				return err2
			}
			return errors.Join(r.startVerdict(a, err), err2)
		}
	}
	if err := group.Wait(); err != nil {
		if errors.Is(context.Cause(shown), errDetached) {
			return errDetached
		}
		return err
	}
	return firstFailure(r.env, results)
}

// errNotBegun is for an app whose session ended before its start: it has the error.
var errNotBegun = errors.New("not started")

// begun waits for the start of an app.
func begun(started <-chan error, ended <-chan struct{}) error {
	select {
	case err := <-started:
		return err
	case <-ended:
	}
	select {
	case err := <-started: // both: the app has ended already
		return err
	default:
		return errNotBegun
	}
}

// firstFailure is the exit code of the app that failed first, if one did.
func firstFailure(env *Env, results []pod.AppStatus) error {
	var first *pod.AppStatus
	for i := range results {
		if exitCode(results[i]) != 0 && (first == nil || results[i].Finished.Before(first.Finished)) {
			first = &results[i]
		}
	}
	if first == nil {
		return nil
	}
	switch first.Exit.Reason {
	case pod.ReasonCompleted, pod.ReasonError:
	default:
		text := first.Exit.Reason
		if first.Exit.Message != "" {
			text += ": " + first.Exit.Message
		}
		fmt.Fprintf(env.Stderr, "gantry: app %s: %s\n", first.Name, oneLine(text))
	}
	return &codeError{exitCode(*first)}
}

// startAndFollow has nothing to add to an error of the start.
func (r *runner) startAndFollow(ctx context.Context, a *pod.App, start func() error) (pod.AppStatus, error) {
	if err := start(); err != nil {
		return pod.AppStatus{}, nil
	}
	return r.follow(ctx, a)
}

// follow shows an app's log from its beginning until the app has exited. It reads
// the file rather than attaching, so that no output is missed that was written
// before, and none is lost when gantry-stdio starts anew.
func (r *runner) follow(ctx context.Context, a *pod.App) (pod.AppStatus, error) {
	return r.waitShowing(ctx, a, r.env.Stdout, r.env.Stderr)
}

func (r *runner) waitShowing(ctx context.Context, a *pod.App, stdout, stderr io.Writer) (pod.AppStatus, error) {
	printer := &linePrinter{mu: &r.mu, stdout: stdout, stderr: stderr}
	if len(r.created.apps) > 1 {
		printer.prefix = "[" + a.Name + "] "
	}
	done := make(chan struct{})
	shown := make(chan error, 1)
	go func() {
		shown <- crilog.Read(ctx, a.LogPath, crilog.Options{Tail: -1, Follow: true, Done: done}, printer.print)
	}()
	s, err := r.be.Engine.WaitApp(ctx, a.ID)
	close(done)
	return s, errors.Join(err, <-shown)
}

// onSignal stops the pod at the first signal and kills it at the second.
func (r *runner) onSignal(ctx context.Context) {
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-r.signals:
		}
		r.stopping.Store(true)
		if n == 0 {
			go r.stop(ctx, -1)
		} else {
			go r.kill(ctx)
		}
	}
}

func (r *runner) kill(ctx context.Context) { r.stop(ctx, 0) }

// stop stops all apps; what runs in the foreground sees them end.
func (r *runner) stop(ctx context.Context, grace time.Duration) {
	var group errgroup.Group
	for _, a := range r.created.apps {
		group.Go(func() error { return r.be.Engine.StopApp(ctx, a.ID, grace) })
	}
	if err := group.Wait(); err != nil && ctx.Err() == nil {
		fmt.Fprintf(r.env.Stderr, "gantry: stop pod %s: %s\n", r.created.pod.Name, printable(err.Error()))
	}
}

// linePrinter prints log lines: to the stream they came from, behind a prefix if
// several apps print, with a time if asked for.
type linePrinter struct {
	mu             *sync.Mutex
	stdout, stderr io.Writer
	prefix         string
	timestamps     bool

	within [2]bool // the stream is in the middle of a line
	buf    []byte
}

func (p *linePrinter) print(l crilog.Line) error {
	w, stream := p.stdout, 0
	if l.Stderr {
		w, stream = p.stderr, 1
	}
	p.buf = p.buf[:0]
	if !p.within[stream] {
		if p.timestamps {
			p.buf = append(l.Time.AppendFormat(p.buf, time.RFC3339Nano), ' ')
		}
		p.buf = append(p.buf, p.prefix...)
	}
	p.buf = append(p.buf, l.Text...)
	if !l.Partial {
		p.buf = append(p.buf, '\n')
	}
	p.within[stream] = l.Partial
	p.mu.Lock()
	defer p.mu.Unlock()
	_, err := w.Write(p.buf)
	return err
}
