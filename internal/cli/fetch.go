package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"gantry/internal/image"
)

type fetchOptions struct {
	quiet bool
	pull  string
}

func fetchCommand(env *Env) *cobra.Command {
	var o fetchOptions
	cmd := command(env, "fetch [OPTIONS] IMAGE...", "Pull images from their registries", cobra.MinimumNArgs(1), o.run)
	cmd.Aliases = []string{"pull"}
	cmd.Long = `Pull images and print their IDs. Registries, mirrors, credentials and signatures are configured as for Podman and
CRI-O: see containers-registries.conf(5), containers-auth.json(5) and containers-policy.json(5).`
	f := cmd.Flags()
	f.BoolVarP(&o.quiet, "quiet", "q", false, "show no progress")
	f.StringVar(&o.pull, "pull", string(image.Always), "when to ask the registry: `always|missing|never`")
	return cmd
}

func (o *fetchOptions) run(ctx context.Context, env *Env, args []string) error {
	policy, err := pullPolicy(o.pull)
	if err != nil {
		return err
	}
	if err := needRoot(env, "fetch"); err != nil {
		return err
	}
	return env.with(ctx, func(be *Backend) error {
		for _, ref := range args {
			img, err := pull(ctx, env, be.Images, ref, policy, o.quiet)
			if err != nil {
				return err
			}
			fmt.Fprintln(env.Stdout, img.ID)
		}
		return nil
	})
}
