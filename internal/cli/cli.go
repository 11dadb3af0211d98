// Package cli is the gantry command: one file per subcommand, each a thin
// adapter over the engine. A command parses its arguments, calls use cases and
// prints; it decides nothing about pods.
//
// Everything a command touches outside the engine comes through Env, so that
// tests run the very same code with other streams and a fake engine. Answers go
// to stdout; progress, notes and errors go to stderr.
package cli

import (
	"context"
	"io"
	"time"

	"github.com/spf13/cobra"
)

// Env is the world as commands see it.
type Env struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// UID of the caller; all that changes something needs 0.
	UID int
	// Open opens the engine. It is called by commands that need one, after their
	// arguments were checked.
	Open func(ctx context.Context, o OpenOptions) (*Backend, error)
	// OpenTeardown opens the part of an engine that works without systemd.
	OpenTeardown func(o OpenOptions) (Teardown, error)
	Now          func() time.Time
	Version      string

	debug bool
}

// Main runs gantry and returns its exit code.
func Main(ctx context.Context, env Env, args []string) int {
	root := newRoot(&env)
	root.SetArgs(args)
	root.SetIn(env.Stdin)
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)
	cmd, err := root.ExecuteContextC(ctx)
	return report(env.Stderr, cmd, err)
}

func newRoot(env *Env) *cobra.Command {
	root := &cobra.Command{
		Use:   "gantry",
		Short: "Run pods under systemd",
		Long: `gantry runs pods of containers under systemd, without a daemon: it prepares a pod, hands it to systemd and
leaves. Every container is a systemd service; systemctl, journalctl and systemd-cgls show all of them.`,
		Args:          noSuchCommand,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		// How different a word may be from the command it is taken for.
		SuggestionsMinimumDistance: 2,
	}
	root.PersistentFlags().BoolVar(&env.debug, "debug", false, "tell on stderr what is done")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usagef("%w", err) })
	root.CompletionOptions.HiddenDefaultCmd = false
	root.AddGroup(&cobra.Group{ID: groupPods, Title: "Pods:"}, &cobra.Group{ID: groupImages, Title: "Images:"}, &cobra.Group{ID: groupOther, Title: "Other:"})
	root.SetHelpCommandGroupID(groupOther)
	root.SetCompletionCommandGroupID(groupOther)
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add(groupPods, runCommand(env), prepareCommand(env), runPreparedCommand(env), listCommand(env), statusCommand(env),
		logsCommand(env), statsCommand(env), execCommand(env), attachCommand(env), portForwardCommand(env), updateCommand(env), stopCommand(env), rmCommand(env), gcCommand(env))
	add(groupImages, fetchCommand(env), imageCommand(env))
	add(groupOther, isolatorCommand(env), versionCommand(env), manCommand(env))
	root.AddCommand(internalCommand(env))
	return root
}

const (
	groupPods   = "pods"
	groupImages = "images"
	groupOther  = "other"
)

// runFunc is what a subcommand does.
type runFunc func(ctx context.Context, env *Env, args []string) error

// command makes a subcommand. Its arguments are checked by args.
func command(env *Env, use, short string, args cobra.PositionalArgs, run runFunc) *cobra.Command {
	return &cobra.Command{
		Use:   use,
		Short: short,
		Args: func(cmd *cobra.Command, list []string) error {
			if err := args(cmd, list); err != nil {
				return usagef("%w", err)
			}
			return nil
		},
		DisableFlagsInUseLine: true,
		RunE:                  func(cmd *cobra.Command, list []string) error { return run(cmd.Context(), env, list) },
	}
}

func noSuchCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		return usagef("%s: no such command: did you mean %s?", args[0], near[0])
	}
	return usagef("%s: no such command", args[0])
}
