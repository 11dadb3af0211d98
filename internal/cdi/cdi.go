// Package cdi finds devices of the Container Device Interface: what vendors'
// specifications in some directories say that a container needs to use a device.
// It reads those files each time it is asked, and says what it found in our words.
package cdi

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"
	specs "tags.cncf.io/container-device-interface/specs-go"

	"gantry/internal/pod"
)

// Dirs are the directories where specifications are by default. What a later one has
// goes before what an earlier one has.
func Dirs() []string { return []string{"/etc/cdi", "/var/run/cdi"} }

// Edits is what devices need of a container.
type Edits struct {
	Env     []string // NAME=value
	Devices []Device
	Mounts  []pod.Mount // HostPath is set, Source is not
	Hooks   []pod.Hook
	Groups  []uint32
}

// Device is a node of a device. What is nil or zero is the host's.
type Device struct {
	pod.Device
	Mode     *uint32
	UID, GID *uint32
}

// IsName tells whether a text has the form of a device's name: vendor/class=device.
func IsName(s string) bool { return parser.IsQualifiedName(s) }

// Find returns what the named devices need together. It reads the specifications, and
// nothing of the devices.
func Find(dirs, names []string) (Edits, error) {
	for _, name := range names {
		if _, _, _, err := parser.ParseQualifiedName(name); err != nil {
			return Edits{}, fmt.Errorf("device %q: %w: %w", name, pod.ErrInvalid, err)
		}
	}
	cache, err := cdi.NewCache(cdi.WithSpecDirs(dirs...), cdi.WithAutoRefresh(false))
	if err != nil {
		return Edits{}, fmt.Errorf("read device specifications: %w", err)
	}
	var out Edits
	var seen []*cdi.Spec
	for _, name := range names {
		d := cache.GetDevice(name)
		if d == nil {
			return Edits{}, fmt.Errorf("device %q: %w", name, whyNot(cache, dirs, name))
		}
		// What a specification says of all its devices counts once.
		if s := d.GetSpec(); !slices.Contains(seen, s) {
			seen = append(seen, s)
			if err := out.add(s.ContainerEdits); err != nil {
				return Edits{}, fmt.Errorf("device %q: %s: %w", name, s.GetPath(), err)
			}
		}
		if err := out.add(d.ContainerEdits); err != nil {
			return Edits{}, fmt.Errorf("device %q: %s: %w", name, d.GetSpec().GetPath(), err)
		}
	}
	return out, nil
}

// whyNot says what there is instead of a device. A file that cannot be read, or that
// conflicts with another, may have been the one.
func whyNot(c *cdi.Cache, dirs []string, name string) error {
	kind, _, _ := strings.Cut(name, "=")
	var same []string
	for _, have := range c.ListDevices() {
		if strings.HasPrefix(have, kind+"=") {
			same = append(same, have)
		}
	}
	msg := "no specification in " + strings.Join(dirs, ", ") + " has it"
	if len(same) > 0 {
		msg += "; of this class there are " + strings.Join(same, ", ")
	}
	var bad []error
	all := c.GetErrors()
	for _, path := range slices.Sorted(maps.Keys(all)) {
		bad = append(bad, fmt.Errorf("%s: %w", filepath.Base(path), errors.Join(all[path]...)))
	}
	if len(bad) > 0 {
		return fmt.Errorf("%s: %w; not read: %w", msg, pod.ErrInvalid, errors.Join(bad...))
	}
	return fmt.Errorf("%s: %w", msg, pod.ErrInvalid)
}

func (e *Edits) add(s specs.ContainerEdits) error {
	switch {
	case s.IntelRdt != nil:
		return fmt.Errorf("intelRdt: %w", pod.ErrUnsupported)
	case len(s.NetDevices) > 0:
		return fmt.Errorf("netDevices: %w", pod.ErrUnsupported)
	}
	e.Env = append(e.Env, s.Env...)
	for _, n := range s.DeviceNodes {
		d, err := deviceOf(n)
		if err != nil {
			return fmt.Errorf("device node %s: %w", n.Path, err)
		}
		e.Devices = append(slices.DeleteFunc(e.Devices, func(o Device) bool { return o.Path == d.Path }), d)
	}
	for _, m := range s.Mounts {
		mount, err := mountOf(m)
		if err != nil {
			return fmt.Errorf("mount on %s: %w", m.ContainerPath, err)
		}
		e.Mounts = append(slices.DeleteFunc(e.Mounts, func(o pod.Mount) bool { return o.Path == mount.Path }), mount)
	}
	for _, h := range s.Hooks {
		e.Hooks = append(e.Hooks, hookOf(h))
	}
	for _, g := range s.AdditionalGIDs {
		if g != 0 && !slices.Contains(e.Groups, g) { // 0 is none, as other engines have it
			e.Groups = append(e.Groups, g)
		}
	}
	return nil
}
