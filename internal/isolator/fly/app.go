package fly

import (
	"encoding/json"
	"fmt"
	"path"

	"gantry/internal/initproc"
	"gantry/internal/isolator"
	"gantry/internal/isolator/recipe"
	"gantry/internal/pod"
	"gantry/internal/unit"
)

const (
	// target is where the rootfs is mounted, in the unit's own mount namespace.
	target = initproc.RunRoot + "/rootfs"
	// hostTargets is where rootfs are that the host sees.
	hostTargets = initproc.RunRoot + "/fly"

	upperDir = "rw/upper"
	workDir  = "rw/work"
)

// annotationMounts is what a pod asks by for its rootfs to be in the mount namespace of
// the host, by the value "host".
const annotationMounts = "gantry.io/fly-mounts"

// inHostMounts tells whether a pod's apps share the host's mounts.
func inHostMounts(p *pod.Pod) (bool, error) {
	switch value := p.Annotations[annotationMounts]; value {
	case "", "own":
		return false, nil
	case "host":
		return true, nil
	default:
		return false, recipe.Invalid("annotation %s=%q: want own or host", annotationMounts, value)
	}
}

func hostTarget(app pod.ID) string { return path.Join(hostTargets, string(app)) }

// App plans an app. It refuses everything that can be wrong with one as far as
// that can be told without the machine.
func (f *Fly) App(in isolator.App) (isolator.Plan, error) {
	plan, err := f.app(in)
	if err != nil {
		return isolator.Plan{}, fmt.Errorf("plan app: %w", err)
	}
	return plan, recipe.Valid(plan.Units)
}

func (f *Fly) app(in isolator.App) (isolator.Plan, error) {
	in, err := f.check(in)
	if err != nil {
		return isolator.Plan{}, err
	}
	limits, err := recipe.LimitsOf(in)
	if err != nil {
		return isolator.Plan{}, err
	}
	process, err := f.process(in)
	if err != nil {
		return isolator.Plan{}, err
	}
	if process.Seccomp, err = f.filter(in); err != nil {
		return isolator.Plan{}, fmt.Errorf("security.seccomp: %w", err)
	}
	start, host, err := f.start(in, limits)
	if err != nil {
		return isolator.Plan{}, err
	}
	secret, err := json.Marshal(process)
	if err != nil {
		return isolator.Plan{}, fmt.Errorf("write process: %w", err)
	}
	open, err := json.MarshalIndent(start, "", "  ")
	if err != nil {
		return isolator.Plan{}, fmt.Errorf("write start: %w", err)
	}
	service := f.recipe.Service(in, limits)
	// Gantry-init is the main process from the first moment, and is the app in the end.
	service.Properties = append(without(service.Properties, "NotifyAccess"), unit.Property{Name: "NotifyAccess", Value: unit.String("main")})
	switch {
	case host:
		service.Properties = without(service.Properties, "PrivateMounts")
	case service.Get("PrivateMounts") != nil:
		// Elsewhere gantry-init sees to that itself, by being executed a second time.
		service.Properties = append(service.Properties, unit.Property{Name: "ReadOnlyPaths", Value: unit.Strings{f.cfg.Init}})
	}
	return isolator.Plan{
		Files: []isolator.File{
			{Path: initproc.ProcessFile, Mode: 0o600, Secret: true, Data: secret, Shown: func() []byte { return shown(process) }},
			{Path: initproc.StartFile, Mode: 0o644, Data: append(open, '\n')},
		},
		Units:  []unit.Unit{service},
		Cgroup: limits.Files,
	}, nil
}

func without(properties []unit.Property, name string) (out []unit.Property) {
	for _, p := range properties {
		if p.Name != name {
			out = append(out, p)
		}
	}
	return out
}

// check returns the input with the namespaces that the app will have.
func (f *Fly) check(in isolator.App) (isolator.App, error) {
	if in.Pod != nil && in.App != nil {
		app := *in.App
		app.Namespaces = isolator.OnHost(app.Namespaces)
		in.Pod, in.App = onHost(in.Pod), &app
	}
	if err := f.recipe.CheckApp(in); err != nil {
		return in, err
	}
	if explicit := in.App.Security.SELinux != nil || in.Pod.Security.SELinux != nil; explicit && f.cfg.SELinux {
		return in, fmt.Errorf("security.selinux: %w by this isolator", pod.ErrUnsupported)
	}
	return in, recipe.CheckTree("rootfs", in.Rootfs)
}

func rootfs(in isolator.App) initproc.Rootfs {
	return initproc.Rootfs{
		Lower: []string{in.Rootfs.Path}, Upper: path.Join(in.Dir.App, upperDir), Work: path.Join(in.Dir.App, workDir),
		Target: target, Shared: recipe.HasShared(in.App),
	}
}

func (f *Fly) start(in isolator.App, l recipe.Limits) (s initproc.Start, host bool, err error) {
	if host, err = inHostMounts(in.Pod); err != nil {
		return s, false, err
	}
	if host && recipe.HasShared(in.App) {
		// To take its mounts off the host at the end would take the volume's with them.
		return s, false, fmt.Errorf("annotation %s=host with bidirectional volumes: %w", annotationMounts, pod.ErrUnsupported)
	}
	self, err := self(in)
	if err != nil {
		return s, false, err
	}
	self.OnHost = host
	s = initproc.Start{
		Pod: string(in.Pod.ID), App: string(in.App.ID), Self: &self,
		Rootfs: rootfs(in),
		Stdio:  initproc.Stdio{Socket: f.cfg.StdioSocket, TTY: in.App.TTY},
	}
	if host {
		s.Rootfs.Target, s.Rootfs.Shared = hostTarget(in.App.ID), false
	}
	for _, c := range l.Files {
		s.Cgroup = append(s.Cgroup, initproc.CgroupFile(c))
	}
	if in.Pod.CgroupParent != "" {
		s.PodSlice = path.Join("/sys/fs/cgroup", unit.CgroupOf(in.Pod.Slice))
	}
	return s, host, nil
}
