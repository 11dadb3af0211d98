package cli

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"gantry/internal/isolator/external"
	"gantry/internal/node"
)

// exitCheckFailed is the code where an isolator does not pass.
const exitCheckFailed = 1

func isolatorCheckCommand(env *Env) *cobra.Command {
	cmd := command(env, "check PATH", "Check that an executable keeps to the contract for isolators", cobra.ExactArgs(1), checkIsolator)
	cmd.Long = `Check runs an executable as Gantry would and prints a line for each part of the contract for isolators of third
parties, which docs/isolators.md has. The exit code is 1 if one of them is not kept. It needs no root, makes no pod and
starts no app: what an isolator plans is looked at, and not acted on.`
	return cmd
}

func checkIsolator(ctx context.Context, env *Env, args []string) error {
	path, err := filepath.Abs(args[0])
	if err != nil {
		return fmt.Errorf("check isolator: %w", err)
	}
	x, err := node.TryIsolator(path)
	if err != nil {
		return err
	}
	checks, failed := external.Checks(x), 0
	for _, c := range checks {
		if err := c.Run(ctx); err != nil {
			failed++
			fmt.Fprintf(env.Stdout, "FAIL  %s: %s\n", c.Name, printable(strings.ReplaceAll(err.Error(), "\n", "; ")))
			continue
		}
		fmt.Fprintf(env.Stdout, "ok    %s\n", c.Name)
	}
	fmt.Fprintf(env.Stderr, "%d of %d checks passed\n", len(checks)-failed, len(checks))
	if failed > 0 {
		return &codeError{exitCheckFailed}
	}
	return nil
}
