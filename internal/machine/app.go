package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/disk"
	"gantry/internal/guest/guestpb"
	"gantry/internal/initproc"
	"gantry/internal/pod"
)

// AppFile, below an app's directory, is the App.
const AppFile = "machine.json"

// App is what stands for an app on the host.
type App struct {
	ID     string         `json:"id"`
	CID    uint32         `json:"cid"`
	Start  initproc.Start `json:"start"` // with paths of the machine
	Shares []Share        `json:"shares,omitempty"`
	Stdio  initproc.Stdio `json:"stdio"`
	Stdin  bool           `json:"stdin,omitempty"`
}

// RunApp is the process that stands for an app: it starts it, passes on what is said and
// signals, and records its end. If it is killed the app ends with it: see EndApp.
func RunApp(ctx context.Context, dir string) error {
	var a App
	if err := readJSON(filepath.Join(dir, AppFile), &a); err != nil {
		return fmt.Errorf("read plan: %w", err)
	}
	p := proxy{app: a, dir: dir, ref: &guestpb.Ref{App: a.ID}}
	if err := p.begin(ctx); err != nil {
		return errors.Join(err, initproc.NotStarted(dir, err))
	}
	defer p.client.Close()
	return p.attend(ctx)
}

// endTime bounds how long an app may take to die in its machine.
const endTime = 10 * time.Second

// EndApp ends an app whose process on the host is gone, and records the end. It does
// nothing for one whose end is known, or whose machine does not answer: that has ended.
func EndApp(ctx context.Context, dir string) error {
	var a App
	if err := readJSON(filepath.Join(dir, AppFile), &a); err != nil {
		return fmt.Errorf("read plan: %w", err)
	}
	if disk.Exists(filepath.Join(dir, "exit.json")) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, endTime)
	defer cancel()
	c, err := Dial(a.CID)
	if err != nil {
		return err
	}
	defer c.Close()
	ref := &guestpb.Ref{App: a.ID}
	if _, err := c.Signal(ctx, &guestpb.SignalRequest{Ref: ref, Signal: int32(unix.SIGKILL), All: true}); err != nil {
		return fmt.Errorf("kill the app: %w", err)
	}
	end, err := c.Wait(ctx, &guestpb.WaitRequest{Ref: ref})
	if err != nil {
		return fmt.Errorf("wait for the end: %w", err)
	}
	if err := initproc.Ended(dir, exitOf(end)); err != nil {
		return err
	}
	return a.forget(ctx, c)
}

// forget takes away what is left of an app whose end is on record.
func (a App) forget(ctx context.Context, c *Client) error {
	if _, err := c.Forget(ctx, &guestpb.ForgetRequest{Ref: &guestpb.Ref{App: a.ID}}); err != nil {
		return fmt.Errorf("have the machine forget the app: %w", err)
	}
	return unshare(a.Shares)
}

func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}

// proxy stands for an app, or for a process in one.
type proxy struct {
	app    App
	dir    string
	ref    *guestpb.Ref
	client *Client
	stdio  [3]*os.File
	master *os.File // of the terminal that the host sees, ours is stdio
}

// begin has the app run.
func (p *proxy) begin(ctx context.Context) error {
	process, err := os.ReadFile(filepath.Join(p.dir, initproc.ProcessFile))
	if err != nil {
		return fmt.Errorf("read plan: %w", err)
	}
	start, err := json.Marshal(p.app.Start)
	if err != nil {
		return err
	}
	if err := p.fetchStdio(); err != nil {
		return fmt.Errorf("fetch stdio: %w", err)
	}
	for _, s := range p.app.Shares {
		if err := s.mount(); err != nil {
			return fmt.Errorf("share %s: %w", s.Source, err)
		}
	}
	if p.client, err = Dial(p.app.CID); err != nil {
		return err
	}
	_, err = p.client.Run(ctx, &guestpb.RunRequest{App: p.app.ID, Start: start, Process: process, Stdin: p.app.Stdin})
	if err == nil {
		err = initproc.Running(p.dir)
	}
	if err != nil {
		return errors.Join(err, p.client.Close())
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
		return nil
	}
	slave, master, err := terminal()
	if err != nil {
		return err
	}
	p.stdio, p.master = [3]*os.File{slave, slave, slave}, slave
	defer master.Close()
	return initproc.GiveTerminal(p.app.Stdio, p.app.ID, console, master)
}

// attend passes everything on until the app has ended, and records that.
func (p *proxy) attend(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go p.signals(ctx)
	if p.app.Stdin {
		go p.feed(ctx)
	}
	var said sync.WaitGroup
	var errs [2]error
	for i := range p.outputs() {
		said.Go(func() { errs[i] = p.hear(ctx, uint32(i+1), p.stdio[i+1]) })
	}
	end, err := p.client.Wait(ctx, &guestpb.WaitRequest{Ref: p.ref})
	if err != nil {
		return fmt.Errorf("wait for the end: %w", err)
	}
	said.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		return fmt.Errorf("pass on the output: %w", err)
	}
	if err := initproc.Ended(p.dir, exitOf(end)); err != nil {
		return err
	}
	return p.app.forget(ctx, p.client)
}

// outputs is how many there are: a terminal is one.
func (p *proxy) outputs() int {
	if p.master != nil {
		return 1
	}
	return 2
}

func exitOf(end *guestpb.WaitResponse) pod.Exit {
	e := pod.Exit{Code: int(end.Code), Signal: int(end.Signal), Message: end.Message, Finished: time.Now()}
	switch {
	case end.OomKills > 0 && end.Code != 0:
		e.Reason = pod.ReasonOOMKilled
	case end.Code == 0:
		e.Reason = pod.ReasonCompleted
	default:
		e.Reason = pod.ReasonError
	}
	return e
}

// hear passes on what the app says. What was written is asked for no more: a proxy that
// takes this one's place goes on behind it.
func (p *proxy) hear(ctx context.Context, stream uint32, to *os.File) error {
	request := &guestpb.ReadRequest{Ref: p.ref, Stream: stream, Resume: true}
	for {
		r, err := p.client.Read(ctx, request)
		if err != nil {
			return err
		}
		if _, err := to.Write(r.Data); err != nil {
			return err
		}
		if r.Eof {
			return to.Close()
		}
		request = &guestpb.ReadRequest{Ref: p.ref, Stream: stream, Offset: r.Offset + uint64(len(r.Data))}
	}
}

// feed passes on what is said to the app. It ends with the app or with its input.
func (p *proxy) feed(ctx context.Context) {
	next, err := p.client.Write(ctx, &guestpb.WriteRequest{Ref: p.ref})
	buffer := make([]byte, 32<<10)
	for err == nil {
		n, readErr := p.stdio[0].Read(buffer)
		next, err = p.client.Write(ctx, &guestpb.WriteRequest{Ref: p.ref, Offset: next.GetOffset(), Data: buffer[:n], Eof: readErr != nil})
		if readErr != nil {
			return
		}
	}
}

// signals passes on those that an app may get. A terminal that changes its size is told.
func (p *proxy) signals(ctx context.Context) {
	in := make(chan os.Signal, 16)
	signal.Notify(in)
	defer signal.Stop(in)
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-in:
			number, ok := s.(syscall.Signal)
			switch {
			case !ok || number == unix.SIGCHLD || number == unix.SIGURG || number == unix.SIGPIPE:
			case number == unix.SIGWINCH:
				p.resize(ctx)
			default:
				// The app may have ended, which Wait tells.
				_, _ = p.client.Signal(ctx, &guestpb.SignalRequest{Ref: p.ref, Signal: int32(number)})
			}
		}
	}
}

func (p *proxy) resize(ctx context.Context) {
	if p.master == nil {
		return
	}
	size, err := unix.IoctlGetWinsize(int(p.master.Fd()), unix.TIOCGWINSZ)
	if err == nil {
		_, _ = p.client.Resize(ctx, &guestpb.ResizeRequest{Ref: p.ref, Width: uint32(size.Col), Height: uint32(size.Row)})
	}
}
