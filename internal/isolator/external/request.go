package external

import (
	"path"

	"gantry/internal/initproc"
	"gantry/internal/isolator"
	"gantry/internal/isolator/fly"
	"gantry/internal/isolator/recipe"
	"gantry/internal/pod"
)

// filesDir is where a plan's files are, below the app's directory: out of the way of ours.
const filesDir = "isolator"

func podWords(p *pod.Pod, dir isolator.Dirs) *Pod {
	out := &Pod{
		ID: string(p.ID), Name: p.Name, Namespace: p.Namespace, Hostname: p.Hostname, Labels: p.Labels, Annotations: p.Annotations,
		Privileged: p.Security.Privileged, HostNetwork: p.HostNetwork(), HostIPC: p.Namespaces.IPC == pod.NamespaceNode,
		Namespaces: map[string]string{},
	}
	if dir.Run == "" {
		return out
	}
	if !out.HostNetwork {
		out.Namespaces["net"] = path.Join(dir.Run, recipe.NetPin)
		out.Namespaces["uts"] = path.Join(dir.Run, recipe.UTSPin)
	}
	if !out.HostIPC {
		out.Namespaces["ipc"] = path.Join(dir.Run, recipe.IPCPin)
	}
	return out
}

// appWords are what an app's exec and its plan have in common.
func appWords(in isolator.App) *App {
	return &App{
		ID: string(in.App.ID), Name: in.App.Name, Directory: path.Join(in.Dir.App, filesDir), Rootfs: fly.Target,
		Privileged: in.App.Security.Privileged, TTY: in.App.TTY, HostPID: in.App.Namespaces.PID == pod.NamespaceNode,
		ReadOnlyRootfs: in.App.Security.ReadOnlyRootfs,
	}
}

func appRequest(in isolator.App, i fly.Inside) (request, error) {
	out := appWords(in)
	switch in.App.Namespaces.PID {
	case pod.NamespacePod:
		out.PIDNamespaceOf = in.HolderPID
	case pod.NamespaceTarget:
		out.PIDNamespaceOf = in.TargetPID
	}
	process, err := processWords(in, i.Process)
	if err != nil {
		return request{}, err
	}
	process.Seccomp = i.Seccomp
	out.Process = &process
	for _, m := range i.Self.Mounts {
		out.Mounts = append(out.Mounts, mountWords(m))
	}
	out.Devices, out.MaskedPaths, out.ReadOnlyPaths = in.App.Devices, i.Self.Masked, i.Self.ReadOnly
	out.Resources = &in.Resources
	return request{Verb: verbApp, Pod: podWords(in.Pod, in.Dir), App: out}, nil
}

func execRequest(in isolator.App, p initproc.Process) (request, error) {
	process, err := processWords(in, p)
	if err != nil {
		return request{}, err
	}
	process.Rlimits = recipe.Rlimits(in.App.Rlimits)
	return request{
		Verb: verbExec, Pod: podWords(in.Pod, in.Dir), App: appWords(in),
		Exec: &Exec{Process: process, TTY: p.TTY, PID: in.PID},
	}, nil
}

func processWords(in isolator.App, p initproc.Process) (Process, error) {
	caps, err := recipe.CapabilitiesOf(in.App.Security)
	if err != nil {
		return Process{}, err
	}
	return Process{
		Argv: p.Args, Env: p.Env, WorkingDir: p.Cwd, UID: p.UID, GID: p.GID, Groups: p.Groups,
		Capabilities:    Capabilities{Bounding: list(caps.Bounding), Ambient: list(caps.Ambient)},
		NoNewPrivileges: p.NoNewPrivs, AppArmor: p.AppArmor, Rlimits: in.App.Rlimits,
	}, nil
}

// list is never null in JSON.
func list(names []string) []string { return append([]string{}, names...) }

func mountWords(m initproc.Mount) Mount {
	return Mount{
		Target: m.Target, Type: m.Type, Source: m.Source, Recursive: m.Recursive, Sub: m.Sub, ReadOnly: m.ReadOnly,
		AllReadOnly: m.AllReadOnly, Propagation: m.Propagation, Options: m.Options,
	}
}
