package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/guest"
	"gantry/internal/guest/guestpb"
	"gantry/internal/initproc"
	"gantry/internal/pod"
	"gantry/internal/stdio"
)

// proxy stands for an app, or for a process in one.
type proxy struct {
	app    App
	dir    string
	ref    *guestpb.Ref
	client *Client
	in     chan os.Signal
	stdio  [3]*os.File
	hold   *os.File // see inbox, nil for who has none
	// master is the terminal that the machine's terminal follows in size, if there is one.
	master *os.File
	// written is what was passed on of the output before, nil if that is not known.
	written *[2]uint64
}

// start has the app run. A signal that comes before it does ends the attempt.
func (p *proxy) start(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	begun, taken := make(chan struct{}), make(chan os.Signal, 1)
	go func() {
		defer close(taken)
		for {
			select {
			case s := <-p.in:
				if forApp(s) {
					taken <- s
					cancel(fmt.Errorf("it got the signal %s before it ran", s))
					return
				}
			case <-begun:
				return
			}
		}
	}()
	err := p.begin(ctx)
	close(begun)
	if s, ok := <-taken; ok && err == nil { // too late
		p.in <- s
	}
	return err
}

func (p *proxy) begin(ctx context.Context) error {
	process, err := os.ReadFile(filepath.Join(p.dir, initproc.ProcessFile))
	if err != nil {
		return fmt.Errorf("read plan: %w", err)
	}
	start, err := json.Marshal(p.app.Start)
	if err != nil {
		return err
	}
	if err := p.takeStdio(); err != nil {
		return fmt.Errorf("fetch stdio: %w", err)
	}
	for _, s := range p.app.Shares {
		if err := s.mount(); err != nil {
			return fmt.Errorf("share %s: %w", s.Source, err)
		}
	}
	if p.client, err = dial(ctx, podDirOf(p.dir)); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, runTime)
	defer cancel()
	_, err = p.client.Run(ctx, &guestpb.RunRequest{App: p.app.ID, Start: start, Process: process, Stdin: p.app.Stdin, OomScoreAdj: int32(p.app.OOMScoreAdj)})
	return p.running(said(err))
}

// runTime bounds the start of an app: whoever waits for it has the pod's lock.
const runTime = time.Minute

// resume takes the place of a process that was killed.
func (p *proxy) resume(ctx context.Context) error {
	if err := p.takeStdio(); err != nil {
		return fmt.Errorf("fetch stdio: %w", err)
	}
	if p.app.Stdio.Socket != "" {
		n, err := stdio.Client{Socket: p.app.Stdio.Socket}.Written(ctx, pod.ID(p.app.ID))
		if err == nil {
			p.written = &n
		} else { // rather a line twice than an app that is ended for it
			fmt.Fprintln(os.Stderr, "gantry-guest: go on from what the machine knows:", err)
		}
	}
	var err error
	if p.client, err = dial(ctx, podDirOf(p.dir)); err != nil {
		return err
	}
	return p.running(nil)
}

func (p *proxy) running(err error) error {
	if err == nil {
		err = initproc.Running(p.dir)
	}
	if err == nil {
		err = initproc.Ready()
	}
	if err != nil {
		return errors.Join(err, p.client.Close())
	}
	return nil
}

// conclude is for an app whose end a process before this one has recorded.
func (p *proxy) conclude(ctx context.Context) error {
	if err := p.app.forget(ctx, podDirOf(p.dir)); err != nil {
		fmt.Fprintln(os.Stderr, "gantry-guest: forget the app:", err)
	}
	return initproc.Ready()
}

// kept are the names under which systemd keeps the ends of the app's stdio while there is
// no process that stands for it: nobody sees them close.
var kept = [...]string{"stdin", "stdout", "stderr"}

const keptTerminal, keptInput = "terminal", "input"

// inputFile, below an app's directory, is the inbox's.
const inputFile = "input-offset"

// takeStdio takes what systemd kept, or fetches it and has it kept.
func (p *proxy) takeStdio() error {
	files, err := stdio.ListenFiles(os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS"), os.Getenv("LISTEN_FDNAMES"))
	if err != nil {
		return err
	}
	have := map[string]*os.File{}
	for _, f := range files {
		unix.CloseOnExec(f.FD)
		have[f.Name] = os.NewFile(uintptr(f.FD), f.Name)
	}
	p.hold = have[keptInput]
	if t := have[keptTerminal]; t != nil && p.hold != nil {
		p.stdio, p.master = [3]*os.File{t, t, t}, t
		return nil
	}
	for i, name := range kept {
		if p.stdio[i] = have[name]; p.stdio[i] == nil || p.app.Stdin && p.hold == nil {
			return p.fetchStdio()
		}
	}
	return nil
}

func (p *proxy) fetchStdio() error {
	files, console, err := initproc.FetchStdio(p.app.Stdio, p.dir)
	if err != nil {
		return err
	}
	if console == "" {
		p.stdio = [3]*os.File(files)
	} else if err := p.makeTerminal(console); err != nil {
		return err
	}
	store, err := stdio.OpenStore(os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		return err
	}
	var ends []stdio.File
	if p.app.Stdin && p.hold == nil {
		if p.hold, err = holdPipe(); err != nil {
			return err
		}
		ends = append(ends, stdio.File{Name: keptInput, FD: int(p.hold.Fd())})
	}
	if p.master != nil {
		return store.AddEach(append(ends, stdio.File{Name: keptTerminal, FD: int(p.master.Fd())})...)
	}
	for i, name := range kept {
		ends = append(ends, stdio.File{Name: name, FD: int(p.stdio[i].Fd())})
	}
	return store.AddEach(ends...)
}

func (p *proxy) makeTerminal(console string) error {
	slave, master, err := terminal()
	if err != nil {
		return err
	}
	p.stdio, p.master = [3]*os.File{slave, slave, slave}, slave
	defer master.Close()
	return initproc.GiveTerminal(p.app.Stdio, p.app.ID, console, master)
}

// letGo lets everybody see the end of the app's stdio.
func (p *proxy) letGo() error {
	store, err := stdio.OpenStore(os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		return err
	}
	for _, name := range append([]string{keptTerminal, keptInput}, kept[:]...) {
		err = errors.Join(err, store.Remove(name))
	}
	for _, f := range p.stdio {
		_ = f.Close() // a terminal is there three times
	}
	return err
}

// attend passes everything on until the app has ended, and records that.
func (p *proxy) attend(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go p.signals(ctx)
	go p.keepTime(ctx)
	if p.app.Stdin {
		go p.feed(ctx)
	}
	if p.master != nil {
		go p.watchSize(ctx)
	}
	end, err := p.listen(ctx)
	if err != nil {
		return err
	}
	if err := initproc.Ended(p.dir, exitOf(end)); err != nil {
		return err
	}
	if err := p.letGo(); err != nil {
		return err
	}
	return p.app.forget(ctx, podDirOf(p.dir))
}

// outputs is how many there are: a terminal is one.
func (p *proxy) outputs() int {
	if p.master != nil {
		return 1
	}
	return 2
}

// listen passes on what is said until the end.
func (p *proxy) listen(ctx context.Context) (*guestpb.WaitResponse, error) {
	var said sync.WaitGroup
	failed := make(chan error, 2)
	waiting, stop := context.WithCancel(ctx)
	defer stop()
	for i := range p.outputs() {
		said.Go(func() {
			// An app whose output nobody takes would wait for ever, and nobody would know.
			if err := p.hear(waiting, i, p.stdio[i+1]); err != nil {
				failed <- fmt.Errorf("pass on the output: %w", err)
				stop()
			}
		})
	}
	end, err := p.client.Wait(waiting, &guestpb.WaitRequest{Ref: p.ref})
	if err == nil {
		said.Wait()
	}
	select { // without the others: one may write to who takes nothing
	case why := <-failed:
		return nil, why
	default:
	}
	if err != nil {
		return nil, fmt.Errorf("wait for the end: %w", err)
	}
	return end, nil
}

// mostCalls is after how many calls a connection is replaced: they have numbers, which are
// never used twice, and an app may say a thousand lines a second for a month.
const mostCalls = 1 << 28

// line is a connection for many calls, the proxy's at first.
type line struct {
	dial        func(context.Context) (*Client, error)
	client      *Client
	own         bool
	calls, most int
}

func (p *proxy) line() *line {
	dial := func(ctx context.Context) (*Client, error) { return dial(ctx, podDirOf(p.dir)) }
	return &line{dial: dial, client: p.client, most: mostCalls}
}

// next is where the next call goes. If there is no other connection this one goes on.
func (l *line) next(ctx context.Context) *Client {
	if l.calls++; l.calls < l.most {
		return l.client
	}
	l.calls = 0
	fresh, err := l.dial(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "gantry-guest: connect again:", err)
		return l.client
	}
	_ = l.close()
	l.client, l.own = fresh, true
	return fresh
}

// close leaves the proxy's own connection.
func (l *line) close() error {
	if !l.own {
		return nil
	}
	return l.client.Close()
}

// hear passes on what the app says. What was written is asked for no more. If nobody takes
// it the app goes on all the same.
func (p *proxy) hear(ctx context.Context, i int, to io.Writer) error {
	request := &guestpb.ReadRequest{Ref: p.ref, Stream: uint32(i + 1), Resume: true}
	if p.written != nil {
		request.Resume, request.Offset = false, p.written[i]
	}
	l := p.line()
	defer func() { _ = l.close() }()
	for broken := false; ; {
		r, err := l.next(ctx).Read(ctx, request)
		if guest.IsNoOffset(err) && p.written != nil && !request.Resume { // who has it knows less than we do
			request.Resume = true
			continue
		}
		if err != nil {
			return err
		}
		if !broken && len(r.Data) > 0 {
			if _, err := to.Write(r.Data); err != nil {
				fmt.Fprintf(os.Stderr, "gantry-guest: nobody takes the output %d: %v\n", i+1, err)
				broken = true
			}
		}
		if r.Eof {
			return nil
		}
		request = &guestpb.ReadRequest{Ref: p.ref, Stream: uint32(i + 1), Offset: r.Offset + uint64(len(r.Data))}
	}
}

// feed passes on what is said to the app, each byte once. It ends with the app or with its
// input.
func (p *proxy) feed(ctx context.Context) {
	if err := p.feedAll(ctx); err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "gantry-guest: pass on the input:", err)
	}
}

func (p *proxy) feedAll(ctx context.Context) error {
	in, err := newInbox(p.stdio[0], p.hold, filepath.Join(p.dir, inputFile))
	if err != nil {
		return err
	}
	l := p.line()
	defer func() { _ = l.close() }()
	known, err := p.client.Write(ctx, &guestpb.WriteRequest{Ref: p.ref})
	for err == nil {
		data, offset, readErr := in.next(known.GetOffset())
		if readErr != nil { // of a terminal that nobody has any more it is another than the end
			_, err = l.next(ctx).Write(ctx, &guestpb.WriteRequest{Ref: p.ref, Offset: known.GetOffset(), Eof: true})
			return err
		}
		if known, err = l.next(ctx).Write(ctx, &guestpb.WriteRequest{Ref: p.ref, Offset: offset, Data: data}); err == nil {
			err = in.done(len(data))
		}
	}
	return err
}

// forApp tells of signals that are passed on. The others are about us.
func forApp(s os.Signal) bool {
	switch s {
	case unix.SIGCHLD, unix.SIGURG, unix.SIGPIPE, unix.SIGWINCH:
		return false
	}
	return true
}

// signals passes on those that an app may get. A terminal of ours that changes its size is
// told of.
func (p *proxy) signals(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-p.in:
			number, ok := s.(syscall.Signal)
			switch {
			case !ok:
			case forApp(s):
				// The app may have ended, which Wait tells.
				_, _ = p.client.Signal(ctx, &guestpb.SignalRequest{Ref: p.ref, Signal: int32(number)})
			case number == unix.SIGWINCH && p.master != nil:
				p.resize(ctx, p.size())
			case number == unix.SIGWINCH: // as some want to be stopped
				_, _ = p.client.Signal(ctx, &guestpb.SignalRequest{Ref: p.ref, Signal: int32(number)})
			}
		}
	}
}

// watchSize looks at the size of an app's terminal. It is not ours, so there is no signal:
// one that is ours would be hung up when we are killed.
func (p *proxy) watchSize(ctx context.Context) {
	const often = 200 * time.Millisecond
	tick := time.NewTicker(often)
	defer tick.Stop()
	for last := (unix.Winsize{}); ; {
		if now := p.size(); now != last {
			p.resize(ctx, now)
			last = now
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (p *proxy) size() unix.Winsize {
	size, err := unix.IoctlGetWinsize(int(p.master.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return unix.Winsize{}
	}
	return unix.Winsize{Row: size.Row, Col: size.Col}
}

func (p *proxy) resize(ctx context.Context, s unix.Winsize) {
	_, _ = p.client.Resize(ctx, &guestpb.ResizeRequest{Ref: p.ref, Width: uint32(s.Col), Height: uint32(s.Row)})
}
