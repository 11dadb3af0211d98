package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

type prepareOptions struct {
	createFlags
	quiet bool
	flags *pflag.FlagSet
}

func prepareCommand(env *Env) *cobra.Command {
	var o prepareOptions
	cmd := command(env, "prepare [OPTIONS] IMAGE [--] [ARGUMENT...]\n  gantry prepare [OPTIONS] --file POD.YAML", "Make a pod without running it", cobra.ArbitraryArgs, o.run)
	cmd.Long = `Do all that takes long, or can go wrong, before a pod runs: pull its images, make its namespaces and its network,
check its mounts and users. Print the pod's ID, for gantry run-prepared.`
	f := cmd.Flags()
	f.SetInterspersed(false)
	o.createFlags.add(f)
	f.BoolVarP(&o.quiet, "quiet", "q", false, "show no progress of pulls")
	o.flags = f
	return cmd
}

func (o *prepareOptions) run(ctx context.Context, env *Env, args []string) error {
	spec, err := o.spec(env, o.flags, args)
	if err != nil {
		return err
	}
	if err := needRoot(env, "prepare"); err != nil {
		return err
	}
	return env.with(ctx, func(be *Backend) error {
		signals := listen()
		defer signals.stop()
		c, err := signals.create(ctx, env, be, spec, o.quiet)
		if err != nil {
			return err
		}
		fmt.Fprintln(env.Stdout, c.pod.ID)
		return nil
	})
}
