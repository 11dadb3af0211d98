package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"gantry/internal/engine"
	"gantry/internal/pod"
)

type runOptions struct {
	createFlags
	detach, remove, dryRun, quiet bool
	flags                         *pflag.FlagSet
}

func runCommand(env *Env) *cobra.Command {
	var o runOptions
	cmd := command(env, "run [OPTIONS] IMAGE [--] [ARGUMENT...]\n  gantry run [OPTIONS] --file POD.YAML", "Make a pod and run it", cobra.ArbitraryArgs, o.run)
	cmd.Long = `Make a pod of an image, or of a Kubernetes Pod manifest, and run it under systemd.

In the foreground (without --detach) the output of all apps is shown until they have exited, and the exit code is that
of the first app that failed. The first INT or TERM signal stops the pod as gantry stop does, the second one kills it.
Nothing of gantry has to stay for the pod to run: when gantry itself is killed, the pod goes on.`
	cmd.Example = `  gantry run --rm docker.io/library/busybox echo hello
  gantry run --rm -it docker.io/library/busybox
  gantry run -d --name web -p 8080:80 docker.io/library/nginx
  gantry run -f pod.yaml`
	f := cmd.Flags()
	f.SetInterspersed(false)
	o.createFlags.add(f)
	f.BoolVarP(&o.detach, "detach", "d", false, "print the pod's ID and leave it running")
	f.BoolVar(&o.remove, "rm", false, "remove the pod once it has exited")
	f.BoolVar(&o.dryRun, "dry-run", false, "print the plan: files and units; change nothing")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "show no progress of pulls")
	o.flags = f
	return cmd
}

func (o *runOptions) run(ctx context.Context, env *Env, args []string) error {
	if o.detach && o.remove {
		return usagef("--rm cannot be combined with --detach: nothing stays to remove the pod")
	}
	if o.detach && o.interactive {
		return usagef("--interactive cannot be combined with --detach: use gantry attach")
	}
	spec, err := o.spec(env, o.flags, args)
	if err != nil {
		return err
	}
	if err := needRoot(env, "run"); err != nil {
		return err
	}
	return env.with(ctx, func(be *Backend) error {
		if o.dryRun {
			return dryRun(ctx, env, be, spec, o.quiet)
		}
		signals := listen()
		defer signals.stop()
		c, err := signals.create(ctx, env, be, spec, o.quiet)
		if err != nil {
			return err
		}
		r := &runner{env: env, be: be, created: c, remove: o.remove, interactive: o.interactive, signals: signals}
		if o.detach {
			if err := r.startAll(ctx); err != nil {
				return err
			}
			fmt.Fprintln(env.Stdout, c.pod.ID)
			return nil
		}
		return r.foreground(ctx)
	})
}

// planner is an engine that can tell what it would do.
type planner interface {
	Plan(ctx context.Context, p pod.Pod, apps []engine.AppSpec) (string, error)
}

// dryRun prints the plan. Images are pulled all the same: the plan depends on them.
func dryRun(ctx context.Context, env *Env, be *Backend, s *podSpec, quiet bool) error {
	e, ok := be.Engine.(planner)
	if !ok {
		return fmt.Errorf("plan pod %s: %w", s.Pod.Name, pod.ErrUnsupported)
	}
	if err := lookUp(be, s); err != nil {
		return err
	}
	var apps []engine.AppSpec
	for _, a := range s.Apps {
		img, err := pull(ctx, env, be.Images, a.Image, a.Pull, quiet)
		if err != nil {
			return err
		}
		a.Image = img.ID
		// The pod's directory does not exist, so its volumes stand for themselves.
		for _, vm := range a.VolumeMounts {
			fmt.Fprintf(env.Stderr, "note: volume %s on %s of app %s is made with the pod and left out here\n", vm.Volume, vm.Mount.Path, a.Name)
		}
		apps = append(apps, a.AppSpec)
	}
	text, err := e.Plan(ctx, s.Pod, apps)
	if err != nil {
		return err
	}
	_, err = fmt.Fprint(env.Stdout, text)
	return err
}
