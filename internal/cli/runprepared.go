package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"gantry/internal/pod"
)

type runPreparedOptions struct{ detach, remove bool }

func runPreparedCommand(env *Env) *cobra.Command {
	var o runPreparedOptions
	cmd := command(env, "run-prepared [OPTIONS] POD", "Run a pod that gantry prepare made", cobra.ExactArgs(1), o.run)
	cmd.ValidArgsFunction = completePods(env)
	f := cmd.Flags()
	f.BoolVarP(&o.detach, "detach", "d", false, "print the pod's ID and leave it running")
	f.BoolVar(&o.remove, "rm", false, "remove the pod once it has exited")
	return cmd
}

func (o *runPreparedOptions) run(ctx context.Context, env *Env, args []string) error {
	if o.detach && o.remove {
		return usagef("--rm cannot be combined with --detach: nothing stays to remove the pod")
	}
	if err := needRoot(env, "run-prepared"); err != nil {
		return err
	}
	return env.with(ctx, func(be *Backend) error {
		p, err := findPod(be.Engine, args[0])
		if err != nil {
			return err
		}
		if err := mayChange(p, "run", false); err != nil {
			return err
		}
		if len(p.Apps) == 0 {
			return fmt.Errorf("run pod %s: it has no apps: %w", p.Name, pod.ErrState)
		}
		if phase := phaseOf(p); phase != pod.Prepared {
			return fmt.Errorf("run pod %s: it is %s, not prepared: %w", p.Name, phase, pod.ErrState)
		}
		c := &created{pod: p.Pod}
		for _, a := range p.Apps {
			c.apps = append(c.apps, a.App)
		}
		signals := listen()
		defer signals.stop()
		r := &runner{env: env, be: be, created: c, remove: o.remove, signals: signals}
		for _, a := range r.mainApps()[:1] {
			r.interactive = a.Stdin && !o.detach
		}
		if o.detach {
			if err := r.startAll(ctx); err != nil {
				return err
			}
			fmt.Fprintln(env.Stdout, p.ID)
			return nil
		}
		return r.foreground(ctx)
	})
}
