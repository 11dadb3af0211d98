package engine

import (
	"context"
	"fmt"
	"slices"

	"gantry/internal/cdi"
	"gantry/internal/pod"
)

// resolveCDI looks up devices of the Container Device Interface, and gives the app
// what they need. It returns variables for its environment.
func (e *Engine) resolveCDI(ctx context.Context, p *pod.Pod, a *pod.App, names []string) (env []string, err error) {
	if len(names) == 0 {
		return nil, nil
	}
	edits, err := cdi.Find(e.cfg.CDIDirs, names)
	if err != nil {
		return nil, fmt.Errorf("CDI: %w", err)
	}
	if err := addCDIDevices(a, edits.Devices); err != nil {
		return nil, fmt.Errorf("CDI: %w", err)
	}
	if u := p.Namespaces.User; u != nil {
		for i := range edits.Mounts {
			edits.Mounts[i].UIDs, edits.Mounts[i].GIDs = u.UIDs, u.GIDs
		}
	}
	mounts, err := e.resolveMounts(ctx, p, edits.Mounts)
	if err != nil {
		return nil, fmt.Errorf("CDI: %w", err)
	}
	for _, m := range mounts {
		a.Mounts = append(slices.DeleteFunc(a.Mounts, func(o pod.Mount) bool { return o.Path == m.Path }), m)
	}
	for _, g := range edits.Groups {
		if !slices.Contains(a.Security.Groups, g) {
			a.Security.Groups = append(a.Security.Groups, g)
		}
	}
	a.CDI, a.Hooks = names, edits.Hooks
	return edits.Env, nil
}

// addCDIDevices reads from the host what a specification does not say. A device of
// theirs goes before another at the same path; its owner is the app's user, unless
// the specification names one.
func addCDIDevices(a *pod.App, devices []cdi.Device) error {
	for _, d := range devices {
		one := d.Device
		if one.Type == "" || one.Major == 0 {
			var err error
			if one, err = deviceOf(d.Source, d.Path, d.Permissions); err != nil {
				return fmt.Errorf("device node %s: %w: %w", d.Source, pod.ErrInvalid, pathCause(err))
			}
		}
		if d.Mode != nil {
			one.Mode = *d.Mode
		}
		if one.UID = a.Security.UID; d.UID != nil {
			one.UID = *d.UID
		}
		if one.GID = a.Security.GID; d.GID != nil {
			one.GID = *d.GID
		}
		a.Devices = append(slices.DeleteFunc(a.Devices, func(o pod.Device) bool { return o.Path == one.Path }), one)
	}
	return nil
}
