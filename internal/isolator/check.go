package isolator

import (
	"fmt"

	"gantry/internal/pod"
)

// ErrRecursiveReadOnly: a mount is asked for that is read-only with all that is mounted in
// it, which the isolator cannot make. It is an ErrUnsupported.
var ErrRecursiveReadOnly = fmt.Errorf("recursiveReadOnly: %w", pod.ErrUnsupported)

// CheckPod refuses a pod that asks for more than an isolator honours.
func (f Features) CheckPod(p *pod.Pod) error {
	return first([]demand{
		{"namespaces.network=pod", !p.HostNetwork(), f.PodNetwork},
		{"namespaces.network=node", p.HostNetwork(), f.HostNetwork},
		{"namespaces.pid=node", p.Namespaces.PID == pod.NamespaceNode, f.HostPID},
		{"namespaces.pid=pod", p.Namespaces.PID == pod.NamespacePod, f.SharedPID},
		{"namespaces.ipc=node", p.Namespaces.IPC == pod.NamespaceNode, f.HostIPC},
		{"namespaces.user", p.Namespaces.User != nil, f.UserNamespaces},
		{"security.privileged", p.Security.Privileged, f.Privileged},
	})
}

// CheckApp refuses an app that asks for more than an isolator honours.
func (f Features) CheckApp(a *pod.App) error {
	demands := []demand{
		{"namespaces.pid=node", a.Namespaces.PID == pod.NamespaceNode, f.HostPID},
		{"namespaces.pid=pod", a.Namespaces.PID == pod.NamespacePod, f.SharedPID},
		{"namespaces.pid=target", a.Namespaces.PID == pod.NamespaceTarget, f.SharedPID},
		{"security.privileged", a.Security.Privileged, f.Privileged},
		{"tty", a.TTY, f.TTY},
		{"devices", len(a.Devices) > 0, f.Devices},
		{"hooks", len(a.Hooks) > 0, f.Hooks},
	}
	for _, m := range a.Mounts {
		at := "mount " + m.Path + ": "
		if m.RecursiveReadOnly && !f.RecursiveReadOnlyMounts {
			return fmt.Errorf("%s%w by this isolator", at, ErrRecursiveReadOnly)
		}
		demands = append(demands,
			demand{at + "propagation=rshared", m.Propagation == pod.PropagationShared, f.BidirectionalMounts},
			demand{at + "image", m.Image != nil, f.ImageVolumes},
			demand{at + "options", len(m.Options) > 0, f.MountOptions},
			demand{at + "uids", len(m.UIDs)+len(m.GIDs) > 0, f.UserNamespaces},
		)
	}
	return first(demands)
}

// demand is a field, whether it is asked for and whether it is honoured.
type demand struct {
	field        string
	asked, given bool
}

func first(demands []demand) error {
	for _, d := range demands {
		if d.asked && !d.given {
			return fmt.Errorf("%s: %w by this isolator", d.field, pod.ErrUnsupported)
		}
	}
	return nil
}
