package fly

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"gantry/internal/initproc"
	"gantry/internal/isolator"
	"gantry/internal/isolator/recipe"
	"gantry/internal/pod"
)

// process is what an app and an exec in it have in common.
func (f *Fly) process(in isolator.App) (initproc.Process, error) {
	s := in.App.Security
	caps, err := recipe.CapabilitiesOf(s)
	if err != nil {
		return initproc.Process{}, fmt.Errorf("security: %w", err)
	}
	profile, err := recipe.AppArmor(s, f.cfg.AppArmorDefault)
	if err != nil {
		return initproc.Process{}, err
	}
	if profile == recipe.Unconfined {
		profile = "" // which gantry-init is, too
	}
	cwd := in.App.WorkingDir
	if cwd == "" {
		cwd = "/"
	}
	return initproc.Process{
		Args: in.App.Argv, Env: recipe.Env(in, in.App.TTY, nil), Cwd: cwd,
		UID: s.UID, GID: s.GID, Groups: recipe.Groups(s),
		Bounding: recipe.CapabilityNumbers(caps.Bounding), Ambient: recipe.CapabilityNumbers(caps.Ambient),
		NoNewPrivs: s.NoNewPrivileges, AppArmor: profile,
		Rlimits: rlimits(in.App.Rlimits), TTY: in.App.TTY,
	}, nil
}

// Exec plans a process in a running app, as the same user, under the same
// restrictions. The limits are all stated: the process would inherit those of who
// spawns it.
func (f *Fly) Exec(in isolator.App, p pod.Process) (isolator.Exec, error) {
	process, err := f.execProcess(in, p)
	if err != nil {
		return isolator.Exec{}, fmt.Errorf("plan exec: %w", err)
	}
	data, err := json.Marshal(process)
	if err != nil {
		return isolator.Exec{}, fmt.Errorf("plan exec: %w", err)
	}
	args := []string{f.cfg.Init, "exec", in.Dir.App, isolator.ProcessArg, isolator.LogArg}
	if p.TTY {
		args = append(args, isolator.ConsoleArg)
	}
	return isolator.Exec{Path: f.cfg.Init, Args: args, Process: data}, nil
}

func (f *Fly) execProcess(in isolator.App, p pod.Process) (initproc.Process, error) {
	in.Rootfs.Path = target // an exec needs none
	in, err := f.check(in)
	if err != nil {
		return initproc.Process{}, err
	}
	return f.execOf(in, p)
}

func (f *Fly) execOf(in isolator.App, p pod.Process) (initproc.Process, error) {
	if err := recipe.CheckArgv(p.Argv); err != nil {
		return initproc.Process{}, err
	}
	if err := recipe.CheckEnv(p.Env); err != nil {
		return initproc.Process{}, err
	}
	process, err := f.process(in)
	if err != nil {
		return initproc.Process{}, err
	}
	process.Args, process.TTY = p.Argv, p.TTY
	process.Env = recipe.Env(in, p.TTY, p.Env)
	process.Rlimits = rlimits(recipe.Rlimits(in.App.Rlimits))
	return process, nil
}

// resources are the kernel's numbers of limits.
var resources = map[string]int{
	"RLIMIT_CPU": 0, "RLIMIT_FSIZE": 1, "RLIMIT_DATA": 2, "RLIMIT_STACK": 3, "RLIMIT_CORE": 4, "RLIMIT_RSS": 5,
	"RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK,
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_LOCKS": 10, "RLIMIT_SIGPENDING": 11, "RLIMIT_MSGQUEUE": 12, "RLIMIT_NICE": 13,
	"RLIMIT_RTPRIO": 14, "RLIMIT_RTTIME": 15,
}

func rlimits(limits []pod.Rlimit) (out []initproc.Rlimit) {
	for _, l := range limits {
		out = append(out, initproc.Rlimit{Resource: resources[l.Type], Soft: l.Soft, Hard: l.Hard})
	}
	return out
}

// shown is the process as people may see it: without the values of environment
// variables, and with a word for the filter.
func shown(p initproc.Process) []byte {
	p.Env = slices.Clone(p.Env)
	for i, e := range p.Env {
		name, _, _ := strings.Cut(e, "=")
		p.Env[i] = name + "=…"
	}
	words := struct {
		initproc.Process
		Seccomp string `json:"seccomp,omitempty"`
	}{Process: p}
	if p.Seccomp != nil {
		words.Seccomp = fmt.Sprintf("a filter of %d bytes", len(p.Seccomp.Filter))
	}
	data, err := json.MarshalIndent(words, "", "  ")
	if err != nil {
		return nil
	}
	return append(data, '\n')
}
