package recipe

import (
	"slices"
	"strings"

	"github.com/moby/sys/capability"

	"gantry/internal/pod"
)

// defaultCaps are the capabilities of an app that says nothing; the same as other
// engines give.
var defaultCaps = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
	"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

func allCaps() []string {
	var out []string
	for _, c := range capability.ListKnown() {
		out = append(out, "CAP_"+strings.ToUpper(c.String()))
	}
	slices.Sort(out)
	return out
}

// Capabilities are what an app may have: Bounding is also what a root has in force.
// Nothing is inheritable unless it is ambient: an inheritable set lets file
// capabilities in the image raise what a user may do.
type Capabilities struct{ Bounding, Ambient []string }

// CapabilitiesOf resolves names. ALL comes first on both sides, then single names are
// added and dropped, so that "drop ALL, add KILL" leaves KILL.
func CapabilitiesOf(s pod.Security) (Capabilities, error) {
	set, err := boundingCaps(s)
	if err != nil {
		return Capabilities{}, err
	}
	var ambient []string
	for _, name := range s.AmbientCaps {
		c, err := capName(name)
		if err != nil {
			return Capabilities{}, err
		}
		if c == capAll {
			return Capabilities{}, Invalid("ambient capability ALL")
		}
		ambient = append(ambient, c)
	}
	slices.Sort(ambient)
	ambient = slices.Compact(ambient)
	return Capabilities{Bounding: sortedUnion(set, ambient), Ambient: ambient}, nil
}

// CapabilityNumbers are the kernel's, of names from CapabilitiesOf.
func CapabilityNumbers(names []string) (out []int) {
	for _, c := range capability.ListKnown() {
		if slices.Contains(names, "CAP_"+strings.ToUpper(c.String())) {
			out = append(out, int(c))
		}
	}
	return out
}

func boundingCaps(s pod.Security) ([]string, error) {
	if s.Privileged {
		return allCaps(), nil
	}
	add, addAll, err := capNames(s.AddCaps)
	if err != nil {
		return nil, err
	}
	drop, dropAll, err := capNames(s.DropCaps)
	if err != nil {
		return nil, err
	}
	set := slices.Clone(defaultCaps)
	if addAll {
		set = allCaps()
	}
	if dropAll {
		set = nil
	}
	set = sortedUnion(set, add)
	return slices.DeleteFunc(set, func(c string) bool { return slices.Contains(drop, c) }), nil
}

const capAll = "ALL"

func capNames(names []string) (out []string, all bool, err error) {
	for _, name := range names {
		c, err := capName(name)
		switch {
		case err != nil:
			return nil, false, err
		case c == capAll:
			all = true
		default:
			out = append(out, c)
		}
	}
	return out, all, nil
}

func capName(name string) (string, error) {
	c := strings.ToUpper(name)
	if c == capAll {
		return capAll, nil
	}
	if !strings.HasPrefix(c, "CAP_") {
		c = "CAP_" + c
	}
	if !slices.Contains(allCaps(), c) {
		return "", Invalid("capability %q: the kernel has none of that name", name)
	}
	return c, nil
}

func sortedUnion(a, b []string) []string {
	out := slices.Concat(a, b)
	slices.Sort(out)
	return slices.Compact(out)
}
