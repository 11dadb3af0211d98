package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"gantry/internal/engine"
	"gantry/internal/pod"
)

type rmOptions struct {
	force, all bool
}

func rmCommand(env *Env) *cobra.Command {
	var o rmOptions
	cmd := command(env, "rm [OPTIONS] POD...", "Remove pods that do not run", cobra.ArbitraryArgs, o.run)
	cmd.Long = `Remove pods with all that belongs to them: records, logs and volumes of their own. A pod that runs is refused
without --force.`
	cmd.ValidArgsFunction = completePods(env)
	f := cmd.Flags()
	f.BoolVar(&o.force, "force", false, "kill what runs; remove pods of a kubelet, too")
	f.BoolVarP(&o.all, "all", "a", false, "remove all pods of the command line that have exited")
	return cmd
}

func (o *rmOptions) run(ctx context.Context, env *Env, args []string) error {
	if o.all == (len(args) > 0) {
		return usagef("name pods, or give --all")
	}
	if err := needRoot(env, "rm"); err != nil {
		return err
	}
	if o.all {
		return o.removeAll(ctx, env)
	}
	return eachPod(ctx, env, args, func(be *Backend, p pod.PodStatus) error { return o.remove(ctx, be, p) })
}

func (o *rmOptions) remove(ctx context.Context, be *Backend, p pod.PodStatus) error {
	if err := mayChange(p, "remove", o.force); err != nil {
		return err
	}
	// Unknown may well be running: systemd did not answer.
	if phase := phaseOf(p); (phase == pod.Running || phase == pod.Unknown) && !o.force {
		return withHint(fmt.Errorf("remove pod %s: it is %s: %w", p.Name, phase, pod.ErrState), "gantry stop %s, or gantry rm --force", p.Name)
	}
	return be.Engine.RemovePod(ctx, p.ID)
}

func (o *rmOptions) removeAll(ctx context.Context, env *Env) error {
	return env.with(ctx, func(be *Backend) error {
		pods, err := be.Engine.Pods(engine.Filter{Owner: pod.OwnerCLI})
		if err != nil {
			return err
		}
		var errs []error
		for _, p := range pods {
			if phaseOf(p) != pod.Exited {
				continue
			}
			if err := be.Engine.RemovePod(ctx, p.ID); err != nil {
				errs = append(errs, err)
				continue
			}
			fmt.Fprintln(env.Stdout, p.Name)
		}
		return errors.Join(errs...)
	})
}
