package recipe

import (
	"cmp"
	"path"
	"slices"
	"strings"

	"gantry/internal/isolator"
	"gantry/internal/pod"
)

// defaultMasked and defaultReadOnly hide what of /proc and /sys tells of the
// host, or changes it.
var (
	defaultMasked = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
		"/sys/devices/virtual/powercap", "/sys/firmware",
	}
	defaultReadOnly = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// HiddenPaths are those of /proc and /sys that an app does not see, or not write to.
func HiddenPaths(s pod.Security) (masked, readOnly []string, err error) {
	if s.Privileged {
		return nil, nil, nil
	}
	masked, readOnly = s.MaskedPaths, s.ReadOnlyPaths
	if masked == nil {
		masked = defaultMasked
	}
	if readOnly == nil {
		readOnly = defaultReadOnly
	}
	for _, p := range slices.Concat(masked, readOnly) {
		if !path.IsAbs(p) || strings.ContainsRune(p, 0) {
			return nil, nil, Invalid("security: masked or read-only path %q is not absolute", p)
		}
	}
	return masked, readOnly, nil
}

// Unconfined is said, not left out: else the app would keep the profile of the
// runtime's own program, which distributions load.
const Unconfined = "unconfined"

// AppArmor is the profile's name. A privileged app has none unless it names one; byDefault
// is that of apps that ask for the node's.
func AppArmor(s pod.Security, byDefault string) (string, error) {
	switch s.AppArmor.Kind {
	case pod.ProfileUnconfined:
		return Unconfined, nil
	case "", pod.ProfileRuntimeDefault:
		if s.Privileged {
			return Unconfined, nil
		}
		return cmp.Or(byDefault, Unconfined), nil
	case pod.ProfileLocalhost:
		name := s.AppArmor.Localhost
		if name == "" || strings.ContainsFunc(name, func(c rune) bool { return c <= ' ' }) {
			return "", Invalid("security.appArmor: profile name %q", name)
		}
		return name, nil
	default:
		return "", Invalid("security.appArmor: profile kind %q", s.AppArmor.Kind)
	}
}

func checkSecurity(in isolator.App) error {
	for _, l := range []*pod.SELinux{in.App.Security.SELinux, in.Pod.Security.SELinux} {
		if err := checkSELinux(l); err != nil {
			return err
		}
	}
	return nil
}

// checkSELinux keeps a part of a label from being read as several, or as another
// mount option.
func checkSELinux(l *pod.SELinux) error {
	if l == nil {
		return nil
	}
	for _, part := range []string{l.User, l.Role, l.Type} {
		if strings.ContainsFunc(part, func(c rune) bool { return !isWord(c) }) {
			return Invalid("security.selinux: %q", part)
		}
	}
	if strings.ContainsFunc(l.Level, func(c rune) bool { return !isWord(c) && !strings.ContainsRune(":,-", c) }) {
		return Invalid("security.selinux: level %q", l.Level)
	}
	return nil
}

func isWord(c rune) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '.'
}
