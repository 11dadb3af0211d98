package recipe

import (
	"slices"
	"strings"

	"gantry/internal/isolator"
	"gantry/internal/pod"
)

// Groups has the primary group too: without it a program that changes its group
// would leave the one that "deny this group" rules are about.
func Groups(s pod.Security) []uint32 {
	out := []uint32{s.GID}
	for _, g := range s.Groups {
		if !slices.Contains(out, g) {
			out = append(out, g)
		}
	}
	return out
}

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Env is the environment: what every app may count on, then the app's own, then
// more. A later value wins and keeps the place of the first.
func Env(in isolator.App, tty bool, more []string) []string {
	base := []string{defaultPath}
	if in.Pod.Hostname != "" {
		base = append(base, "HOSTNAME="+in.Pod.Hostname)
	}
	if tty {
		base = append(base, "TERM=xterm")
	}
	var out []string
	at := map[string]int{}
	for _, e := range slices.Concat(base, in.Secret.Env, more) {
		name, _, _ := strings.Cut(e, "=")
		if i, ok := at[name]; ok {
			out[i] = e
			continue
		}
		at[name] = len(out)
		out = append(out, e)
	}
	return out
}

// Rlimits are all of an app's limits: its own, and the defaults of the rest.
func Rlimits(own []pod.Rlimit) []pod.Rlimit {
	out := slices.Clone(own)
	for _, d := range defaultLimits {
		name := "RLIMIT_" + d.name
		if !slices.ContainsFunc(own, func(l pod.Rlimit) bool { return strings.EqualFold(l.Type, name) }) {
			out = append(out, pod.Rlimit{Type: name, Soft: uint64(d.soft), Hard: uint64(d.hard)})
		}
	}
	return out
}
