package machine

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"gantry/internal/guest/guestpb"
	"gantry/internal/initproc"
)

// RunExec runs a process in an app, and stands for it: its exit code is returned. With a
// console its terminal is given to who listens there. What it was to run is in a file.
func RunExec(ctx context.Context, dir, file, console string) (code int, err error) {
	var a App
	if err := readJSON(filepath.Join(dir, AppFile), &a); err != nil {
		return 0, fmt.Errorf("read plan: %w", err)
	}
	process, err := os.ReadFile(file)
	if err != nil {
		return 0, fmt.Errorf("read process: %w", err)
	}
	p := proxy{app: a, dir: dir, ref: &guestpb.Ref{App: a.ID, Exec: strings.ToLower(rand.Text())}}
	p.stdio = [3]*os.File{os.Stdin, os.Stdout, os.Stderr}
	if console != "" {
		slave, master, err := terminal()
		if err != nil {
			return 0, err
		}
		defer master.Close()
		if err := initproc.SendTerminal(console, master); err != nil {
			return 0, fmt.Errorf("hand over the terminal: %w", err)
		}
		p.stdio, p.master = [3]*os.File{slave, slave, slave}, slave
	}
	if p.client, err = Dial(a.CID); err != nil {
		return 0, err
	}
	defer p.client.Close()
	if _, err := p.client.Exec(ctx, &guestpb.ExecRequest{Ref: p.ref, Process: process, Stdin: true}); err != nil {
		return 0, err
	}
	return p.follow(ctx)
}

// follow passes everything on until the process has ended. It ends with us.
func (p *proxy) follow(ctx context.Context) (int, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go p.signals(ctx)
	go p.feed(ctx)
	p.resize(ctx)
	var said sync.WaitGroup
	var errs [2]error
	for i := range p.outputs() {
		said.Go(func() { errs[i] = p.hear(ctx, uint32(i+1), p.stdio[i+1]) })
	}
	end, err := p.client.Wait(ctx, &guestpb.WaitRequest{Ref: p.ref, Kill: true})
	if err != nil {
		return 0, fmt.Errorf("wait for the end: %w", err)
	}
	said.Wait()
	_, err = p.client.Forget(ctx, &guestpb.ForgetRequest{Ref: p.ref})
	return int(end.Code), errors.Join(err, errs[0], errs[1])
}
