package oci

import (
	"fmt"
	"path"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"gantry/internal/isolator"
	"gantry/internal/isolator/recipe"
	"gantry/internal/pod"
)

// spec is config.json. What is not in it on purpose: limits (the unit has them), the OOM score (the unit has it), hostname and sysctls
// (set once, when the pod's namespaces were made, which a kernel of the runtime's does not look at).
func (o *OCI) spec(in isolator.App, mounts []specs.Mount) (*specs.Spec, error) {
	namespaces, err := namespaces(in)
	if err != nil {
		return nil, err
	}
	devices, err := devices(in.App.Devices)
	if err != nil {
		return nil, err
	}
	process, err := o.process(in)
	if err != nil {
		return nil, err
	}
	seccomp, err := o.seccompOf(in, process.Capabilities.Bounding)
	if err != nil {
		return nil, fmt.Errorf("security.seccomp: %w", err)
	}
	hooks, err := hooks(in.App.Hooks)
	if err != nil {
		return nil, err
	}
	masked, readonly, err := recipe.HiddenPaths(in.App.Security)
	if err != nil {
		return nil, err
	}
	s := &specs.Spec{
		Version: specs.Version,
		Process: process,
		Root:    &specs.Root{Path: RootfsTarget, Readonly: in.App.Security.ReadOnlyRootfs},
		Mounts:  mounts,
		Hooks:   hooks,
		Linux: &specs.Linux{
			Namespaces: namespaces, Devices: devices, Seccomp: seccomp,
			RootfsPropagation: propagation(in.App),
			MaskedPaths:       masked, ReadonlyPaths: readonly,
			MountLabel: o.fileLabel(in),
		},
	}
	if u := in.Pod.Namespaces.User; u != nil {
		s.Linux.UIDMappings, s.Linux.GIDMappings = idMappings(u.UIDs), idMappings(u.GIDs)
	}
	if o.dialect.kernel {
		s.Hostname = in.Pod.Hostname
	}
	o.dialect.ownCgroup(in, s.Linux)
	return s, nil
}

// propagation of the rootfs: slave, since what the host mounts later must reach
// the volumes that want it, and the runtime's own default would cut them off.
func propagation(a *pod.App) string {
	if recipe.HasShared(a) {
		return string(pod.PropagationShared)
	}
	return string(pod.PropagationSlave)
}

func idMappings(ms []pod.IDMap) []specs.LinuxIDMapping {
	var out []specs.LinuxIDMapping
	for _, m := range ms {
		out = append(out, specs.LinuxIDMapping{ContainerID: m.Container, HostID: m.Host, Size: m.Length})
	}
	return out
}

// namespaces: the pod's own are pinned below Dirs.Run. The hostname belongs to
// the network: a pod in the host's network has the host's name.
func namespaces(in isolator.App) ([]specs.LinuxNamespace, error) {
	p, ns := in.Pod, []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	pinned := func(t specs.LinuxNamespaceType, name string) {
		ns = append(ns, specs.LinuxNamespace{Type: t, Path: path.Join(in.Dir.Run, name)})
	}
	if p.Namespaces.User != nil {
		pinned(specs.UserNamespace, recipe.UserPin)
	}
	if !p.HostNetwork() {
		pinned(specs.NetworkNamespace, recipe.NetPin)
		pinned(specs.UTSNamespace, recipe.UTSPin)
	}
	if p.Namespaces.IPC != pod.NamespaceNode {
		pinned(specs.IPCNamespace, recipe.IPCPin)
	}
	pid, err := pidNamespace(in)
	if err != nil {
		return nil, err
	}
	ns = append(ns, pid...)
	// A privileged app sees the host's cgroups, as node agents expect; any other
	// one sees its own limits at the root.
	if !in.App.Security.Privileged {
		ns = append(ns, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	return ns, nil
}

func pidNamespace(in isolator.App) ([]specs.LinuxNamespace, error) {
	of := func(field string, pid int) ([]specs.LinuxNamespace, error) {
		if pid < 1 {
			return nil, fmt.Errorf("namespaces.pid: the %s does not run: %w", field, pod.ErrState)
		}
		return []specs.LinuxNamespace{{Type: specs.PIDNamespace, Path: fmt.Sprintf("/proc/%d/ns/pid", pid)}}, nil
	}
	switch mode := in.App.Namespaces.PID; mode {
	case pod.NamespaceNode:
		if in.Pod.Namespaces.User != nil {
			return nil, fmt.Errorf("namespaces.pid: the host's in a user namespace: %w", pod.ErrUnsupported)
		}
		return nil, nil
	case pod.NamespaceApp:
		return []specs.LinuxNamespace{{Type: specs.PIDNamespace}}, nil
	case pod.NamespacePod:
		return of("pod's holder", in.HolderPID)
	case pod.NamespaceTarget:
		return of("target app", in.TargetPID)
	default:
		return nil, recipe.Invalid("namespaces.pid %q", mode)
	}
}

// process is what config.json and an exec's process file have in common.
func (o *OCI) process(in isolator.App) (*specs.Process, error) {
	a := in.App
	caps, err := capabilities(a.Security)
	if err != nil {
		return nil, fmt.Errorf("security: %w", err)
	}
	apparmor, err := o.appArmor(a.Security)
	if err != nil {
		return nil, err
	}
	cwd := a.WorkingDir
	if cwd == "" {
		cwd = "/"
	}
	return &specs.Process{
		Terminal: a.TTY,
		User:     specs.User{UID: a.Security.UID, GID: a.Security.GID, AdditionalGids: recipe.Groups(a.Security)},
		Args:     a.Argv,
		Env:      recipe.Env(in, a.TTY, nil),
		Cwd:      cwd, Capabilities: caps, Rlimits: rlimits(a.Rlimits),
		NoNewPrivileges: a.Security.NoNewPrivileges,
		ApparmorProfile: apparmor, SelinuxLabel: o.processLabel(in),
	}, nil
}

func rlimits(limits []pod.Rlimit) []specs.POSIXRlimit {
	var out []specs.POSIXRlimit
	for _, l := range limits {
		out = append(out, specs.POSIXRlimit{Type: l.Type, Soft: l.Soft, Hard: l.Hard})
	}
	return out
}

func capabilities(s pod.Security) (*specs.LinuxCapabilities, error) {
	c, err := recipe.CapabilitiesOf(s)
	if err != nil {
		return nil, err
	}
	return &specs.LinuxCapabilities{
		Bounding: c.Bounding, Effective: c.Bounding, Permitted: c.Bounding, Inheritable: c.Ambient, Ambient: c.Ambient,
	}, nil
}
