package machine

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"gantry/internal/guest/guestpb"
	"gantry/internal/initproc"
)

// RunExec runs a process in an app, and stands for it: its exit code is returned. With a
// console its terminal is given to who listens there. What it was to run is in a file.
func RunExec(ctx context.Context, dir, file, console string) (code int, err error) {
	p, err := newProxy(dir)
	if err != nil {
		return 0, err
	}
	defer signal.Stop(p.in)
	process, err := os.ReadFile(file)
	if err != nil {
		return 0, fmt.Errorf("read process: %w", err)
	}
	p.ref = &guestpb.Ref{App: p.app.ID, Exec: strings.ToLower(rand.Text())}
	p.stdio = [3]*os.File{os.Stdin, os.Stdout, os.Stderr}
	if console != "" {
		if err := p.giveTerminal(console); err != nil {
			return 0, err
		}
	}
	if p.client, err = dial(ctx, podDirOf(p.dir)); err != nil {
		return 0, err
	}
	defer p.client.Close()
	if _, err := p.client.Exec(ctx, &guestpb.ExecRequest{Ref: p.ref, Process: process, Stdin: true}); err != nil {
		return 0, said(err)
	}
	return p.follow(ctx)
}

func (p *proxy) giveTerminal(console string) error {
	slave, master, err := terminal()
	if err != nil {
		return err
	}
	defer master.Close()
	p.stdio, p.master = [3]*os.File{slave, slave, slave}, slave
	if err := own(slave); err != nil {
		return err
	}
	if err := initproc.SendTerminal(console, master); err != nil {
		return fmt.Errorf("hand over the terminal: %w", err)
	}
	return nil
}

// follow passes everything on until the process has ended. It ends with us.
func (p *proxy) follow(ctx context.Context) (int, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go p.signals(ctx)
	go p.feedOnce(ctx)
	// The process ends with this connection. An error shows in the other calls.
	go func() { _, _ = p.client.Hold(ctx, &guestpb.HoldRequest{Ref: p.ref}) }()
	if p.master != nil {
		p.resize(ctx, p.size())
	}
	end, err := p.listen(ctx)
	if err != nil {
		return 0, err
	}
	for _, f := range p.stdio {
		_ = f.Close() // a terminal is there three times
	}
	// Its end is known, whatever becomes of this: what is not forgotten goes with our connection.
	_, _ = p.client.Forget(ctx, &guestpb.ForgetRequest{Ref: p.ref})
	return int(end.Code), nil
}

// feedOnce passes on what is said to a process that ends with us.
func (p *proxy) feedOnce(ctx context.Context) {
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
