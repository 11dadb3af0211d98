package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"gantry/internal/pod"
)

type stopOptions struct {
	grace time.Duration
	force bool
}

// ownGrace is what the engine takes for each app's own.
const ownGrace time.Duration = -1

func stopCommand(env *Env) *cobra.Command {
	var o stopOptions
	cmd := command(env, "stop [OPTIONS] POD...", "Stop pods", cobra.MinimumNArgs(1), o.run)
	cmd.Long = `Send each app of the pods its stop signal, kill what runs on after the grace, and give back the pods' network and
namespaces. Logs and status stay until gantry rm.`
	cmd.ValidArgsFunction = completePods(env)
	f := cmd.Flags()
	f.DurationVar(&o.grace, "grace", ownGrace, "kill apps this long after the stop signal, 0 at once; default: each app's own")
	f.Lookup("grace").DefValue = ""
	f.BoolVar(&o.force, "force", false, "stop pods of a kubelet, too (it will start them again)")
	return cmd
}

func (o *stopOptions) run(ctx context.Context, env *Env, args []string) error {
	if o.grace != ownGrace && o.grace < 0 || o.grace > 24*time.Hour {
		return usagef("--grace %s: want 0 to 24h", o.grace)
	}
	if err := needRoot(env, "stop"); err != nil {
		return err
	}
	return eachPod(ctx, env, args, func(be *Backend, p pod.PodStatus) error {
		if err := mayChange(p, "stop", o.force); err != nil {
			return err
		}
		return stopPod(ctx, be, p, o.grace)
	})
}

// stopPod stops all apps at the same time, then the pod.
func stopPod(ctx context.Context, be *Backend, p pod.PodStatus, grace time.Duration) error {
	var group errgroup.Group
	for _, a := range p.Apps {
		group.Go(func() error { return be.Engine.StopApp(ctx, a.ID, grace) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return be.Engine.StopPod(ctx, p.ID)
}

// eachPod runs f for every pod named, prints the names of those that went well,
// and goes on after an error.
func eachPod(ctx context.Context, env *Env, refs []string, f func(*Backend, pod.PodStatus) error) error {
	return env.with(ctx, func(be *Backend) error {
		var errs []error
		for _, ref := range refs {
			p, err := findPod(be.Engine, ref)
			if err == nil {
				err = f(be, p)
			}
			if err != nil {
				errs = append(errs, err)
				continue
			}
			fmt.Fprintln(env.Stdout, p.Name)
		}
		return errors.Join(errs...)
	})
}
