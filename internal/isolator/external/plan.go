package external

import (
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"

	"gantry/internal/initproc"
	"gantry/internal/isolator"
	"gantry/internal/isolator/fly"
	"gantry/internal/isolator/recipe"
	"gantry/internal/pod"
	"gantry/internal/unit"
)

// App plans an app. Everything that is wrong with any app is refused before the executable
// is asked.
func (x *External) App(in isolator.App) (isolator.Plan, error) {
	p, err := x.app(in)
	if err != nil {
		return isolator.Plan{}, fmt.Errorf("plan app: %w", err)
	}
	return p, recipe.Valid(p.Units)
}

func (x *External) app(in isolator.App) (isolator.Plan, error) {
	r, in, err := x.check(in)
	if err != nil {
		return isolator.Plan{}, err
	}
	if err := recipe.CheckTree("rootfs", in.Rootfs); err != nil {
		return isolator.Plan{}, err
	}
	limits, err := recipe.LimitsOf(in)
	if err != nil {
		return isolator.Plan{}, err
	}
	inside, err := x.inside.Inside(in)
	if err != nil {
		return isolator.Plan{}, err
	}
	req, err := appRequest(in, inside)
	if err != nil {
		return isolator.Plan{}, err
	}
	a, err := x.ask(req, never)
	if err != nil {
		return isolator.Plan{}, err
	}
	b := builder{x: x, in: in, answer: *a.Plan, inside: inside, limits: limits, around: slices.Contains(a.Plan.Run.Argv, initproc.AppArg)}
	files, err := b.files()
	return isolator.Plan{Files: files, Units: []unit.Unit{b.unit(r)}, Cgroup: limits.Files}, err
}

// check refuses what no app may have, and what this isolator's may not.
func (x *External) check(in isolator.App) (recipe.Recipe, isolator.App, error) {
	r, err := x.recipe()
	if err != nil {
		return r, in, err
	}
	if in.Pod != nil && in.App != nil && r.Features.Isolation == isolator.IsolationNone {
		app := *in.App
		app.Namespaces = isolator.OnHost(app.Namespaces)
		in.Pod, in.App = onHost(in.Pod), &app
	}
	return r, in, r.CheckApp(in)
}

// builder makes a plan of an answer.
type builder struct {
	x      *External
	in     isolator.App
	answer plan
	inside fly.Inside
	limits recipe.Limits
	around bool
}

func (b builder) files() ([]isolator.File, error) {
	process := b.inside.Process
	if !b.around {
		process = initproc.Process{Args: b.answer.Run.Argv, Env: b.answer.Run.Env, Cwd: "/", TTY: b.in.App.TTY}
	}
	secret, err := json.Marshal(process)
	if err != nil {
		return nil, fmt.Errorf("write process: %w", err)
	}
	start, err := json.MarshalIndent(b.start(), "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write start: %w", err)
	}
	out := []isolator.File{
		{Path: initproc.ProcessFile, Mode: 0o600, Secret: true, Data: secret, Shown: func() []byte { return fly.Shown(process) }},
		{Path: initproc.StartFile, Mode: 0o644, Data: append(start, '\n')},
	}
	for _, f := range b.answer.Files {
		out = append(out, isolator.File{
			Path: path.Join(filesDir, f.Path), Mode: f.mode(), Secret: !f.Public, Data: []byte(f.Text),
		})
	}
	return out, nil
}

func (f file) mode() uint32 {
	mode := uint32(0o600)
	if f.Executable {
		mode = 0o700
	}
	if f.Public {
		mode |= mode>>3&0o55 | mode>>6&0o5
	}
	return mode
}

func (b builder) start() initproc.Start {
	s := initproc.Start{
		Pod: string(b.in.Pod.ID), App: string(b.in.App.ID), Rootfs: b.inside.Rootfs,
		Stdio: initproc.Stdio{Socket: b.x.cfg.StdioSocket, TTY: b.in.App.TTY},
	}
	if b.around {
		s.Self, s.Around = &b.inside.Self, b.answer.Run.Argv
	} else {
		s.Program = true
	}
	for _, c := range b.limits.Files {
		s.Cgroup = append(s.Cgroup, initproc.CgroupFile(c))
	}
	if b.in.Pod.CgroupParent != "" {
		s.PodSlice = path.Join("/sys/fs/cgroup", unit.CgroupOf(b.in.Pod.Slice))
	}
	return s
}

// unit is the app's as every isolator has it, with what the answer adds.
func (b builder) unit(r recipe.Recipe) unit.Unit {
	u := r.Service(b.in, b.limits)
	if b.around {
		// Who stops the unit does not know which process the app is: all are told.
		set(&u, "KillMode", unit.String("control-group"))
	} else {
		set(&u, "NotifyAccess", unit.String("main"))
	}
	set(&u, "ReadOnlyPaths", unit.Strings{b.x.cfg.Init})
	if allow, ok := u.Get("DeviceAllow").(unit.Devices); ok {
		for _, d := range b.answer.Devices {
			allow = append(allow, unit.Device(d))
		}
		set(&u, "DeviceAllow", allow)
	}
	for _, name := range slices.Sorted(maps.Keys(b.answer.Properties)) {
		set(&u, name, unit.Bool(b.answer.Properties[name]))
	}
	return u
}

func set(u *unit.Unit, name string, v unit.Value) {
	for i, p := range u.Properties {
		if p.Name == name {
			u.Properties[i].Value = v
			return
		}
	}
	u.Properties = append(u.Properties, unit.Property{Name: name, Value: v})
}

// Exec plans a process in a running app.
func (x *External) Exec(in isolator.App, p pod.Process) (isolator.Exec, error) {
	out, err := x.exec(in, p)
	if err != nil {
		return isolator.Exec{}, fmt.Errorf("plan exec: %w", err)
	}
	return out, nil
}

func (x *External) exec(in isolator.App, p pod.Process) (isolator.Exec, error) {
	_, in, err := x.check(in)
	if err != nil {
		return isolator.Exec{}, err
	}
	process, err := x.inside.InsideExec(in, p)
	if err != nil {
		return isolator.Exec{}, err
	}
	req, err := execRequest(in, process)
	if err != nil {
		return isolator.Exec{}, err
	}
	a, err := x.ask(req, never)
	if err != nil {
		return isolator.Exec{}, err
	}
	argv := a.Exec.Argv
	i := slices.Index(argv, initproc.AppArg)
	if i < 0 {
		if p.TTY && !slices.Contains(argv, isolator.ConsoleArg) {
			return isolator.Exec{}, fmt.Errorf("a terminal: %w by this isolator", pod.ErrUnsupported)
		}
		return isolator.Exec{Path: argv[0], Args: argv, Process: []byte(*a.Exec.Input)}, nil
	}
	data, err := json.Marshal(process)
	if err != nil {
		return isolator.Exec{}, fmt.Errorf("write process: %w", err)
	}
	own := []string{x.cfg.Init, "exec", in.Dir.App, isolator.ProcessArg, isolator.LogArg}
	if p.TTY {
		own = append(own, isolator.ConsoleArg)
	}
	return isolator.Exec{Path: argv[0], Args: slices.Replace(slices.Clone(argv), i, i+1, own...), Process: data}, nil
}
