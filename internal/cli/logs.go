package cli

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"gantry/internal/crilog"
	"gantry/internal/pod"
)

type logsOptions struct {
	follow, timestamps bool
	tail               int
	since              string
}

func logsCommand(env *Env) *cobra.Command {
	var o logsOptions
	cmd := command(env, "logs [OPTIONS] POD [APP]", "Show what apps printed", cobra.RangeArgs(1, 2), o.run)
	cmd.Long = `Show what the apps of a pod printed, stdout on stdout and stderr on stderr. With several apps and none named, all are
shown, each line behind the app's name. The same lines are in the journal: journalctl -u gantry-app-ID.service.`
	cmd.ValidArgsFunction = completePods(env)
	f := cmd.Flags()
	f.BoolVarP(&o.follow, "follow", "f", false, "go on until all apps shown have exited")
	f.IntVar(&o.tail, "tail", -1, "show the last `N` lines only")
	f.StringVar(&o.since, "since", "", "show what is not older than `TIME`: 5m, or 2026-11-23T09:00:00Z")
	f.BoolVarP(&o.timestamps, "timestamps", "t", false, "put the time before each line")
	return cmd
}

func (o *logsOptions) run(ctx context.Context, env *Env, args []string) error {
	since, err := sinceTime(o.since, env.Now())
	if err != nil {
		return err
	}
	return env.with(ctx, func(be *Backend) error {
		p, err := findPod(be.Engine, args[0])
		if err != nil {
			return err
		}
		apps := p.Apps
		if len(args) > 1 {
			a, err := findApp(p, args[1])
			if err != nil {
				return err
			}
			apps = []pod.AppStatus{a}
		}
		return o.show(ctx, env, be, apps, since)
	})
}

func sinceTime(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return t, usagef("--since %q: want a time such as 5m or 2026-11-23T09:00:00Z", s)
	}
	return t, nil
}

func (o *logsOptions) show(ctx context.Context, env *Env, be *Backend, apps []pod.AppStatus, since time.Time) error {
	var mu sync.Mutex
	var group errgroup.Group
	if !o.follow {
		group.SetLimit(1) // one app after the other
	}
	for _, a := range apps {
		if a.LogPath == "" {
			return fmt.Errorf("read log of app %s: it keeps none: %w", a.Name, pod.ErrNotFound)
		}
		printer := &linePrinter{mu: &mu, stdout: env.Stdout, stderr: env.Stderr, timestamps: o.timestamps}
		if len(apps) > 1 {
			printer.prefix = "[" + a.Name + "] "
		}
		opts := crilog.Options{Tail: o.tail, Since: since, Follow: o.follow}
		group.Go(func() error { return showLog(ctx, be, a, opts, printer) })
	}
	return group.Wait()
}

func showLog(ctx context.Context, be *Backend, a pod.AppStatus, o crilog.Options, printer *linePrinter) error {
	if o.Follow {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		done := make(chan struct{})
		o.Done = done
		go func() {
			// An app that is removed meanwhile has ended, too.
			_, _ = be.Engine.WaitApp(ctx, a.ID)
			close(done)
		}()
	}
	err := crilog.Read(ctx, a.LogPath, o, printer.print)
	if errors.Is(err, pod.ErrNotFound) && a.Phase == pod.Prepared {
		return nil // it did not print anything yet
	}
	return err
}
