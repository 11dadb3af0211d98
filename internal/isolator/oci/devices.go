package oci

import (
	"fmt"
	"os"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"gantry/internal/pod"
	"gantry/internal/unit"
)

// devices are the nodes the runtime makes in /dev, beside the standard ones. One
// may come twice: a privileged app has all of the host's and may name some, too.
func devices(ds []pod.Device) ([]specs.LinuxDevice, error) {
	var out []specs.LinuxDevice
	seen := map[string]pod.Device{}
	for _, d := range ds {
		if err := checkDevice(d); err != nil {
			return nil, fmt.Errorf("device %s: %w", d.Path, err)
		}
		if old, ok := seen[d.Path]; ok {
			if old.Type != d.Type || old.Major != d.Major || old.Minor != d.Minor {
				return nil, invalid("device %s: the path is used twice", d.Path)
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
		if err := checkPath(h.Path); err != nil {
			return nil, fmt.Errorf("hook %s: %w", h.Stage, err)
		}
		hook := specs.Hook{Path: h.Path, Args: h.Args, Env: h.Env}
		if h.Timeout > 0 {
			hook.Timeout = &h.Timeout
		}
		list := stage(out, h.Stage)
		if list == nil {
			return nil, invalid("hook %s: there is no such stage", h.Stage)
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

func checkDevice(d pod.Device) error {
	if err := checkPath(d.Path); err != nil {
		return err
	}
	if d.Path == "/" {
		return invalid("is the root")
	}
	if d.Type != "c" && d.Type != "b" {
		return invalid("type %q: want c or b", d.Type)
	}
	if d.Major < 0 || d.Major >= 1<<12 || d.Minor < 0 || d.Minor >= 1<<20 {
		return invalid("number %d:%d", d.Major, d.Minor)
	}
	if d.Permissions == "" || strings.Trim(d.Permissions, "rwm") != "" || len(d.Permissions) > 3 {
		return invalid("permissions %q: want some of r, w, m", d.Permissions)
	}
	return nil
}

// deviceRules say which devices the app's cgroup may use. The policy "closed"
// brings null, zero, full, random, urandom, tty and ptmx; every node may be made,
// for a node that may not be opened does no harm; the terminal is console and pts.
// Rules name numbers: a path would be looked up on the host when the unit starts.
func deviceRules(a *pod.App) (policy string, rules unit.Devices) {
	if a.Security.Privileged {
		return "auto", nil
	}
	rules = unit.Devices{
		{Path: "char-*", Permissions: "m"},
		{Path: "block-*", Permissions: "m"},
		{Path: "/dev/char/5:1", Permissions: "rwm"},
		{Path: "char-pts", Permissions: "rwm"},
	}
	for _, d := range a.Devices {
		dir := map[string]string{"c": "char", "b": "block"}[d.Type]
		rules = append(rules, unit.Device{
			Path: fmt.Sprintf("/dev/%s/%d:%d", dir, d.Major, d.Minor), Permissions: d.Permissions,
		})
	}
	return "closed", rules
}
