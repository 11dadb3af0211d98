package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"gantry/internal/engine"
	"gantry/internal/pod"
)

// internalCommand holds what other programs of Gantry and its build call. It is
// no interface for users and may change with every version.
func internalCommand(env *Env) *cobra.Command {
	cmd := &cobra.Command{Use: "internal", Short: "For Gantry's own programs", Hidden: true}
	cmd.Args = noSuchCommand
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	docs := command(env, "docs DIRECTORY", "Write manual pages, completions and the reference", cobra.ExactArgs(1), nil)
	docs.RunE = func(cmd *cobra.Command, args []string) error { return writeDocs(cmd.Root(), args[0]) }
	points := command(env, "failpoints", "List what GANTRY_FAILPOINTS may name", cobra.NoArgs, listFailpoints)
	cmd.AddCommand(docs, points, command(env, "network-down POD", "Give back the network of a pod whose unit stops", cobra.ExactArgs(1), networkDown))
	return cmd
}

// listFailpoints prints the boundaries of all steps, as the engine's code has them.
func listFailpoints(_ context.Context, env *Env, _ []string) error {
	_, err := fmt.Fprintln(env.Stdout, strings.Join(engine.FailpointNames(), "\n"))
	return err
}

// Teardown gives a pod's network back.
type Teardown interface {
	NetworkDown(ctx context.Context, id pod.ID) error
	Close() error
}

// networkDown opens no engine: it runs while the machine goes down, too.
func networkDown(ctx context.Context, env *Env, args []string) error {
	id, err := pod.ParseID(args[0])
	if err != nil {
		return err
	}
	t, err := env.OpenTeardown(OpenOptions{Log: env.log()})
	if err != nil {
		return err
	}
	return errors.Join(t.NetworkDown(ctx, id), t.Close())
}

// writeDocs writes man1/*.1, completions and cli.md below dir. Its output depends
// on the commands only, so builds are reproducible.
func writeDocs(root *cobra.Command, dir string) error {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	files := map[string]func(io.Writer) error{
		"cli.md":                       func(w io.Writer) error { return markdown(w, root) },
		"completions/bash/gantry":      func(w io.Writer) error { return root.GenBashCompletionV2(w, true) },
		"completions/zsh/_gantry":      root.GenZshCompletion,
		"completions/fish/gantry.fish": func(w io.Writer) error { return root.GenFishCompletion(w, true) },
	}
	eachCommand(root, func(cmd *cobra.Command) {
		page := filepath.Join("man1", strings.ReplaceAll(cmd.CommandPath(), " ", "-")+".1")
		files[page] = func(w io.Writer) error { return manPage(w, cmd) }
	})
	for name, write := range files {
		var b bytes.Buffer
		if err := write(&b); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
			return err
		}
	}
	return nil
}
