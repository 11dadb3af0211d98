package recipe

import (
	"fmt"
	"strings"

	"gantry/internal/pod"
	"gantry/internal/unit"
)

// CheckDevice refuses a device that cannot be one.
func CheckDevice(d pod.Device) error {
	if err := CheckPath(d.Path); err != nil {
		return err
	}
	if d.Path == "/" {
		return Invalid("is the root")
	}
	if d.Type != "c" && d.Type != "b" {
		return Invalid("type %q: want c or b", d.Type)
	}
	if d.Major < 0 || d.Major >= 1<<12 || d.Minor < 0 || d.Minor >= 1<<20 {
		return Invalid("number %d:%d", d.Major, d.Minor)
	}
	if d.Permissions == "" || strings.Trim(d.Permissions, "rwm") != "" || len(d.Permissions) > 3 {
		return Invalid("permissions %q: want some of r, w, m", d.Permissions)
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
