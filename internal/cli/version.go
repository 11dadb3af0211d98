package cli

import (
	"context"
	"fmt"
	"runtime"

	"github.com/spf13/cobra"
)

type versionOptions struct{ format format }

type versionJSON struct {
	Version  string `json:"version"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func versionCommand(env *Env) *cobra.Command {
	var o versionOptions
	cmd := command(env, "version [OPTIONS]", "Show the version", cobra.NoArgs, o.run)
	o.format.flag(cmd.Flags())
	return cmd
}

func (o *versionOptions) run(_ context.Context, env *Env, _ []string) error {
	v := versionJSON{Version: env.Version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	if o.format == formatJSON {
		return printJSON(env.Stdout, v)
	}
	_, err := fmt.Fprintf(env.Stdout, "gantry %s %s %s\n", v.Version, v.Go, v.Platform)
	return err
}
