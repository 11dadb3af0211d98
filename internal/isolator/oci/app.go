package oci

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"strings"

	"gantry/internal/initproc"
	"gantry/internal/isolator"
	"gantry/internal/isolator/recipe"
	"gantry/internal/pod"
	"gantry/internal/unit"
)

// The app's files, below its directory. The names of the first and of upper and
// work are known to others: initproc.StartFile, the OCI's bundle, the disk layout.
const (
	startFile  = "start.json"
	configFile = "config.json"
	upperDir   = "rw/upper"
	workDir    = "rw/work"
)

// App plans an app. It refuses everything that can be wrong with one as far as
// that can be told without the machine.
func (o *OCI) App(in isolator.App) (isolator.Plan, error) {
	if err := errors.Join(o.checkRuntime(), o.checkApp(in)); err != nil {
		return isolator.Plan{}, fmt.Errorf("plan app: %w", err)
	}
	if err := recipe.CheckTree("rootfs", in.Rootfs); err != nil {
		return isolator.Plan{}, fmt.Errorf("plan app: %w", err)
	}
	limits, err := recipe.LimitsOf(in)
	if err != nil {
		return isolator.Plan{}, fmt.Errorf("plan app: %w", err)
	}
	files, err := o.appFiles(in, limits)
	if err != nil {
		return isolator.Plan{}, fmt.Errorf("plan app: %w", err)
	}
	plan := isolator.Plan{Files: files, Units: []unit.Unit{o.recipe.Service(in, limits)}, Cgroup: limits.Files}
	return plan, recipe.Valid(plan.Units)
}

func (o *OCI) appFiles(in isolator.App, l recipe.Limits) ([]isolator.File, error) {
	mounts, trees, err := mounts(in)
	if err != nil {
		return nil, err
	}
	spec, err := o.spec(in, mounts)
	if err != nil {
		return nil, err
	}
	config, err := json.Marshal(spec)
	if err != nil {
		return nil, fmt.Errorf("write config: %w", err)
	}
	start, err := json.MarshalIndent(o.start(in, trees, l.Files), "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write start: %w", err)
	}
	return []isolator.File{
		{Path: configFile, Mode: 0o600, Secret: true, Data: config, Shown: func() []byte { return shownConfig(spec) }},
		{Path: startFile, Mode: 0o644, Data: append(start, '\n')},
	}, nil
}

func (o *OCI) start(in isolator.App, trees []initproc.Tree, files []isolator.CgroupFile) initproc.Start {
	s := initproc.Start{
		Pod: string(in.Pod.ID), App: string(in.App.ID),
		Runtime: o.cfg.Runtime, RuntimeMS: o.cfg.RuntimeTimeout.Milliseconds(), Bundle: in.Dir.App,
		State: o.runtimeState(in.App.ID), Group: o.dialect.appGroup(),
		Rootfs: initproc.Rootfs{
			Lower: []string{in.Rootfs.Path},
			Upper: path.Join(in.Dir.App, upperDir), Work: path.Join(in.Dir.App, workDir),
			Target: RootfsTarget, Shared: recipe.HasShared(in.App), Label: o.fileLabel(in),
		},
		Relabel: o.relabel(in),
		Trees:   trees,
		Stdio:   initproc.Stdio{Socket: o.cfg.StdioSocket, TTY: in.App.TTY},
	}
	if u := in.Pod.Namespaces.User; u != nil {
		s.Rootfs.UserNS = path.Join(in.Dir.Run, recipe.UserPin)
		s.Rootfs.UID, s.Rootfs.GID = hostRoot(u.UIDs), hostRoot(u.GIDs)
	}
	for _, f := range files {
		s.Cgroup = append(s.Cgroup, initproc.CgroupFile(f))
	}
	if in.Pod.CgroupParent != "" {
		s.PodSlice = path.Join("/sys/fs/cgroup", unit.CgroupOf(in.Pod.Slice))
	}
	return s
}

// hostRoot is who the pod's root is on the host.
func hostRoot(ms []pod.IDMap) int {
	for _, m := range ms {
		if m.Container == 0 {
			return int(m.Host)
		}
	}
	return 0
}

func (o *OCI) checkApp(in isolator.App) error {
	if err := o.recipe.CheckApp(in); err != nil {
		return err
	}
	if err := o.dialect.checkProfiles(in.App.Security); err != nil {
		return err
	}
	return o.checkLabels(in)
}

// shownConfig is config.json as people may see it: without the values of
// environment variables, and with a word for the long list of system calls.
func shownConfig(spec any) []byte {
	data, err := json.Marshal(spec)
	if err != nil {
		return nil
	}
	var v map[string]any
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	if dec.Decode(&v) != nil {
		return nil
	}
	if process, ok := v["process"].(map[string]any); ok {
		env, _ := process["env"].([]any)
		for i, e := range env {
			name, _, _ := strings.Cut(e.(string), "=")
			env[i] = name + "=…"
		}
	}
	if linux, ok := v["linux"].(map[string]any); ok {
		if s, ok := linux["seccomp"].(map[string]any); ok {
			linux["seccomp"] = summary(s)
		}
	}
	return append(pretty(v), '\n')
}
