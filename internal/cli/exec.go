package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/spf13/cobra"

	"gantry/internal/engine"
	"gantry/internal/pod"
)

type execOptions struct {
	tty, interactive bool
	env              []string
}

func execCommand(env *Env) *cobra.Command {
	var o execOptions
	cmd := command(env, "exec [OPTIONS] POD [APP] -- COMMAND [ARGUMENT...]", "Run a command in a running app", cobra.MinimumNArgs(2), o.run)
	cmd.Long = `Run a command in a running app, as its user and with its environment. The exit code is the command's. Without --, the
first word after POD begins the command.`
	cmd.Example = `  gantry exec web -- cat /etc/hostname
  gantry exec -it web sidecar -- sh`
	cmd.ValidArgsFunction = completePods(env)
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.BoolVarP(&o.tty, "tty", "t", false, "give the command a terminal")
	f.BoolVarP(&o.interactive, "interactive", "i", false, "pass stdin on to the command")
	f.StringArrayVarP(&o.env, "env", "e", nil, "set a variable, `NAME=VALUE`; may be repeated")
	return cmd
}

// splitExec finds POD, APP and the command; the dashes stand behind one of the
// first two words, or belong to the command.
func splitExec(args []string) (podRef, appRef string, argv []string) {
	switch slices.Index(args, "--") {
	case 1:
		return args[0], "", args[2:]
	case 2:
		return args[0], args[1], args[3:]
	}
	return args[0], "", args[1:]
}

func (o *execOptions) run(ctx context.Context, env *Env, args []string) error {
	podRef, appRef, argv := splitExec(args)
	if len(argv) == 0 {
		return usagef("name a command behind --")
	}
	process := pod.Process{Argv: argv, TTY: o.tty}
	for _, e := range o.env {
		kv, err := parseEnv(e)
		if err != nil {
			return usagef("--env %w", err)
		}
		process.Env = append(process.Env, kv...)
	}
	if err := needRoot(env, "exec"); err != nil {
		return err
	}
	return env.with(ctx, func(be *Backend) error {
		p, err := findPod(be.Engine, podRef)
		if err != nil {
			return err
		}
		a, err := findApp(p, appRef)
		if err != nil {
			return err
		}
		if a.Phase != pod.Running {
			return fmt.Errorf("exec in app %s: it is %s: %w", a.Name, a.Phase, pod.ErrState)
		}
		code, err := o.exec(ctx, env, be, a, process)
		if err != nil && errors.Is(err, pod.ErrInvalid) && startCode(err.Error()) != exitError {
			fmt.Fprintf(env.Stderr, "gantry: %s\n", oneLine(err.Error()))
			return &codeError{startCode(err.Error())}
		}
		if err != nil {
			return err
		}
		if code != 0 {
			return &codeError{code}
		}
		return nil
	})
}

func (o *execOptions) exec(ctx context.Context, env *Env, be *Backend, a pod.AppStatus, process pod.Process) (int, error) {
	// A signal ends the command, with all it started: its cgroup is killed.
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	var code int
	run := func(ctx context.Context, s engine.Streams) error {
		if !o.interactive {
			s.Stdin = nil
		}
		var err error
		code, err = be.Engine.Exec(ctx, a.ID, process, s)
		return err
	}
	var err error
	if o.tty {
		err = attachTerminal(ctx, env, false, run)
	} else {
		err = run(ctx, engine.Streams{Stdin: env.Stdin, Stdout: env.Stdout, Stderr: env.Stderr})
	}
	if errors.Is(err, errDetached) {
		return 0, nil
	}
	if err != nil && ctx.Err() != nil {
		return 0, fmt.Errorf("exec in app %s: interrupted", a.Name)
	}
	return code, err
}
