package cli

import (
	"github.com/spf13/cobra"

	"gantry/internal/engine"
)

type completeFunc = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

// completePods offers the names of pods where a POD is expected first.
func completePods(env *Env) completeFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 && cmd.Name() != "rm" && cmd.Name() != "stop" {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var names []string
		err := env.with(cmd.Context(), func(be *Backend) error {
			pods, err := be.Engine.Pods(engine.Filter{})
			for _, p := range pods {
				names = append(names, nameOf(p))
			}
			return err
		})
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeImages offers the names of images.
func completeImages(env *Env) completeFunc {
	return func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		var names []string
		err := env.with(cmd.Context(), func(be *Backend) error {
			images, err := be.Images.Images()
			for _, i := range images {
				names = append(names, i.Tags...)
			}
			return err
		})
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}
