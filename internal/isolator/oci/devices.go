package oci

import (
	"fmt"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"gantry/internal/isolator/recipe"
	"gantry/internal/pod"
)

// devices are the nodes the runtime makes in /dev, beside the standard ones. One
// may come twice: a privileged app has all of the host's and may name some, too.
func devices(ds []pod.Device) ([]specs.LinuxDevice, error) {
	var out []specs.LinuxDevice
	seen := map[string]pod.Device{}
	for _, d := range ds {
		if err := recipe.CheckDevice(d); err != nil {
			return nil, fmt.Errorf("device %s: %w", d.Path, err)
		}
		if old, ok := seen[d.Path]; ok {
			if old.Type != d.Type || old.Major != d.Major || old.Minor != d.Minor {
				return nil, recipe.Invalid("device %s: the path is used twice", d.Path)
			}
			continue
		}
		seen[d.Path] = d
		mode := os.FileMode(d.Mode & 0o7777)
		if mode == 0 {
			mode = 0o666
		}
		out = append(out, specs.LinuxDevice{
			Path: d.Path, Type: d.Type, Major: d.Major, Minor: d.Minor, FileMode: &mode, UID: &d.UID, GID: &d.GID,
		})
	}
	return out, nil
}

// hooks are those of devices that need some, nil without any.
func hooks(hs []pod.Hook) (*specs.Hooks, error) {
	if len(hs) == 0 {
		return nil, nil
	}
	out := &specs.Hooks{}
	for _, h := range hs {
		if err := recipe.CheckPath(h.Path); err != nil {
			return nil, fmt.Errorf("hook %s: %w", h.Stage, err)
		}
		hook := specs.Hook{Path: h.Path, Args: h.Args, Env: h.Env}
		if h.Timeout > 0 {
			hook.Timeout = &h.Timeout
		}
		list := stage(out, h.Stage)
		if list == nil {
			return nil, recipe.Invalid("hook %s: there is no such stage", h.Stage)
		}
		*list = append(*list, hook)
	}
	return out, nil
}

func stage(h *specs.Hooks, name string) *[]specs.Hook {
	switch name {
	case "prestart":
		return &h.Prestart //nolint:staticcheck // old, and still in use by vendors
	case "createRuntime":
		return &h.CreateRuntime
	case "createContainer":
		return &h.CreateContainer
	case "startContainer":
		return &h.StartContainer
	case "poststart":
		return &h.Poststart
	case "poststop":
		return &h.Poststop
	default:
		return nil
	}
}
