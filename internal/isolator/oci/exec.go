package oci

import (
	"encoding/json"
	"fmt"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"gantry/internal/isolator"
	"gantry/internal/isolator/recipe"
	"gantry/internal/pod"
)

// Exec plans a process in a running app: as the same user, under the same
// restrictions (the runtime takes the seccomp profile from the app's own config).
// The rlimits are all stated: the process would inherit those of who spawns it.
func (o *OCI) Exec(in isolator.App, p pod.Process) (isolator.Exec, error) {
	process, err := o.execProcess(in, p)
	if err != nil {
		return isolator.Exec{}, fmt.Errorf("plan exec: %w", err)
	}
	data, err := json.Marshal(process)
	if err != nil {
		return isolator.Exec{}, fmt.Errorf("plan exec: %w", err)
	}
	args := append(slices.Clone(o.cfg.Runtime), "--log", isolator.LogArg, "exec", "--process", isolator.ProcessArg)
	args = append(args, o.dialect.exec...)
	if p.TTY && o.dialect.socket {
		args = append(args, "--console-socket", isolator.ConsoleArg)
	}
	return isolator.Exec{
		Path: o.cfg.Runtime[0], Args: append(args, string(in.App.ID)), Process: data,
		Group: o.dialect.appGroup(), Outside: o.dialect.group || len(o.dialect.exec) > 0, Terminal: p.TTY && !o.dialect.socket,
	}, nil
}

func (o *OCI) execProcess(in isolator.App, p pod.Process) (*specs.Process, error) {
	if err := o.checkApp(in); err != nil {
		return nil, err
	}
	if err := recipe.CheckArgv(p.Argv); err != nil {
		return nil, err
	}
	if err := recipe.CheckEnv(p.Env); err != nil {
		return nil, err
	}
	process, err := o.process(in)
	if err != nil {
		return nil, err
	}
	process.Args, process.Terminal = p.Argv, p.TTY
	process.Env = recipe.Env(in, p.TTY, p.Env)
	process.Rlimits = rlimits(recipe.Rlimits(in.App.Rlimits))
	process.OOMScoreAdj = &in.Resources.OOMScoreAdj
	return process, nil
}
