package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
)

type updateOptions struct {
	limits limitFlags
	force  bool
}

func updateCommand(env *Env) *cobra.Command {
	var o updateOptions
	cmd := command(env, "update [OPTIONS] POD [APP]", "Change the limits of an app", cobra.RangeArgs(1, 2), o.run)
	cmd.Long = `Change the limits of an app, at once if it runs. What is not named stays as it is. Limits that the isolator cannot
change while the app runs are refused, and nothing is changed then.`
	cmd.Example = `  gantry update --memory 256Mi --cpus 1.5 web
  gantry update --pids-limit 500 web sidecar`
	cmd.ValidArgsFunction = completePods(env)
	f := cmd.Flags()
	o.limits.add(f)
	f.BoolVar(&o.force, "force", false, "change apps of a kubelet, too (it will change them back)")
	return cmd
}

func (o *updateOptions) run(ctx context.Context, env *Env, args []string) error {
	r, err := o.limits.resources()
	if err != nil {
		return err
	}
	if o.limits == (limitFlags{}) {
		return usagef("name a limit to change: --memory, --cpus or --pids-limit")
	}
	if err := needRoot(env, "update"); err != nil {
		return err
	}
	return env.with(ctx, func(be *Backend) error {
		p, a, err := findOne(be.Engine, args)
		if err != nil {
			return err
		}
		if err := mayChange(p, "update", o.force); err != nil {
			return err
		}
		if err := be.Engine.UpdateApp(ctx, a.ID, r); err != nil {
			return err
		}
		fmt.Fprintln(env.Stdout, a.Name)
		return nil
	})
}
