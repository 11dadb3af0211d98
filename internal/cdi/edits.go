package cdi

import (
	"fmt"

	specs "tags.cncf.io/container-device-interface/specs-go"

	"gantry/internal/pod"
)

// noPermissions is what a specification says of a node that may be seen only.
const noPermissions = "none"

func deviceOf(n *specs.DeviceNode) (Device, error) {
	d := Device{
		Device: pod.Device{Path: n.Path, Source: n.HostPath, Permissions: n.Permissions, Major: n.Major, Minor: n.Minor},
		UID:    n.UID, GID: n.GID,
	}
	if d.Source == "" {
		d.Source = n.Path
	}
	switch n.Permissions {
	case "":
		d.Permissions = "rwm"
	case noPermissions:
		d.Permissions = "m" // whoever may make nodes may make this one; opening it is another thing
	}
	switch n.Type {
	case "", "b", "c":
		d.Type = n.Type
	case "u":
		d.Type = "c"
	default:
		return d, fmt.Errorf("type %q: %w", n.Type, pod.ErrUnsupported)
	}
	if n.FileMode != nil {
		mode := uint32(*n.FileMode) & 0o7777
		d.Mode = &mode
	}
	return d, nil
}

// mountOf takes bind mounts, with the options that our mounts have.
func mountOf(m *specs.Mount) (pod.Mount, error) {
	out := pod.Mount{Path: m.ContainerPath, HostPath: m.HostPath, Propagation: pod.PropagationPrivate}
	if m.Type != "" && m.Type != "bind" && m.Type != "none" {
		return out, fmt.Errorf("type %q: %w", m.Type, pod.ErrUnsupported)
	}
	for _, o := range m.Options {
		switch o {
		case "bind", "rbind", "rw", "dev", "suid", "exec", "private", "rprivate":
		case "ro":
			out.ReadOnly = true
		case "slave", "rslave":
			out.Propagation = pod.PropagationSlave
		case "shared", "rshared":
			out.Propagation = pod.PropagationShared
		case "noexec", "nodev", "nosuid":
			out.Options = append(out.Options, o)
		default:
			return out, fmt.Errorf("option %q: %w", o, pod.ErrUnsupported)
		}
	}
	return out, nil
}

func hookOf(h *specs.Hook) pod.Hook {
	out := pod.Hook{Stage: h.HookName, Path: h.Path, Args: h.Args, Env: h.Env}
	if h.Timeout != nil {
		out.Timeout = *h.Timeout
	}
	return out
}
