package fly

import (
	"encoding/json"
	"fmt"

	"gantry/internal/initproc"
	"gantry/internal/isolator"
	"gantry/internal/isolator/recipe"
	"gantry/internal/pod"
)

// Target is where an app's rootfs is mounted, in the unit's own mount namespace.
const Target = target

// Inside is an app as gantry-init becomes one. In which namespaces it does is the business
// of who asks.
type Inside struct {
	Rootfs  initproc.Rootfs
	Self    initproc.Self
	Process initproc.Process
	// Seccomp is the profile that Process.Seccomp was compiled from, in the OCI's JSON;
	// nil is none.
	Seccomp json.RawMessage
}

// Inside plans an app that was checked.
func (f *Fly) Inside(in isolator.App) (out Inside, err error) {
	if in.App.Security.SELinux != nil || in.Pod.Security.SELinux != nil {
		if f.cfg.SELinux {
			return out, fmt.Errorf("security.selinux: %w by this isolator", pod.ErrUnsupported)
		}
	}
	out.Rootfs = rootfs(in)
	if out.Self, err = self(in); err != nil {
		return out, err
	}
	if out.Process, err = f.process(in); err != nil {
		return out, err
	}
	if out.Process.Seccomp, err = f.filter(in); err != nil {
		return out, fmt.Errorf("security.seccomp: %w", err)
	}
	caps, err := recipe.CapabilitiesOf(in.App.Security)
	if err != nil {
		return out, err
	}
	profile, err := f.seccomp.For(in, f.cfg.Arch, caps.Bounding)
	if err != nil || profile == nil {
		return out, err
	}
	out.Seccomp, err = json.Marshal(profile)
	return out, err
}

// InsideExec plans a process in such an app.
func (f *Fly) InsideExec(in isolator.App, p pod.Process) (initproc.Process, error) {
	return f.execOf(in, p)
}

// Rlimits are all of an app's limits, with the defaults of those that it does not set: for an
// app that no unit gives any.
func Rlimits(own []pod.Rlimit) []initproc.Rlimit { return rlimits(recipe.Rlimits(own)) }

// Shown is a process as people may see it.
func Shown(p initproc.Process) []byte { return shown(p) }
