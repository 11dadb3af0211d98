package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"gantry/internal/engine"
	"gantry/internal/pod"
)

type attachOptions struct{ noStdin bool }

func attachCommand(env *Env) *cobra.Command {
	var o attachOptions
	cmd := command(env, "attach [OPTIONS] POD [APP]", "Connect to a running app's stdin and output", cobra.RangeArgs(1, 2), o.run)
	cmd.Long = `Connect to a running app's own stdin, stdout and stderr. With a terminal, ctrl-p ctrl-q leaves it running; without one,
ctrl-c ends gantry, never the app.`
	cmd.ValidArgsFunction = completePods(env)
	cmd.Flags().BoolVar(&o.noStdin, "no-stdin", false, "show the output only")
	return cmd
}

func (o *attachOptions) run(ctx context.Context, env *Env, args []string) error {
	if err := needRoot(env, "attach"); err != nil {
		return err
	}
	return env.with(ctx, func(be *Backend) error {
		_, a, err := findOne(be.Engine, args)
		if err != nil {
			return err
		}
		return o.attach(ctx, env, be, a)
	})
}

func (o *attachOptions) attach(ctx context.Context, env *Env, be *Backend, a pod.AppStatus) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	run := func(ctx context.Context, s engine.Streams) error {
		if o.noStdin || !a.Stdin {
			s.Stdin = nil
		}
		return be.Engine.Attach(ctx, a.ID, s)
	}
	var err error
	if a.TTY {
		err = attachTerminal(ctx, env, false, run)
	} else {
		err = run(ctx, engine.Streams{Stdin: env.Stdin, Stdout: env.Stdout, Stderr: env.Stderr})
	}
	if errors.Is(err, errDetached) || ctx.Err() != nil {
		fmt.Fprintf(env.Stderr, "\r\ngantry: detached: app %s runs on\n", a.Name)
		return nil
	}
	return err
}
