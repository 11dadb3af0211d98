package oci

import (
	"fmt"
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

func hiddenPaths(s pod.Security) (masked, readOnly []string, err error) {
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
			return nil, nil, invalid("security: masked or read-only path %q is not absolute", p)
		}
	}
	return masked, readOnly, nil
}

// unconfined is said, not left out: else the app would keep the profile of the
// runtime's own program, which distributions load.
const unconfined = "unconfined"

// apparmor is the profile's name. A privileged app has none unless it names one.
func (o *OCI) apparmor(s pod.Security) (string, error) {
	switch s.AppArmor.Kind {
	case pod.ProfileUnconfined:
		return unconfined, nil
	case "", pod.ProfileRuntimeDefault:
		if s.Privileged {
			return unconfined, nil
		}
		return or(o.cfg.AppArmorDefault, unconfined), nil
	case pod.ProfileLocalhost:
		name := s.AppArmor.Localhost
		if name == "" || strings.ContainsFunc(name, func(c rune) bool { return c <= ' ' }) {
			return "", invalid("security.appArmor: profile name %q", name)
		}
		return name, nil
	default:
		return "", invalid("security.appArmor: profile kind %q", s.AppArmor.Kind)
	}
}

// selinux is the label that holds for the app: its own, else the pod's.
func (o *OCI) selinux(in isolator.App) *pod.SELinux {
	if !o.cfg.SELinux {
		return nil
	}
	if l := in.App.Security.SELinux; l != nil {
		return l
	}
	return in.Pod.Security.SELinux
}

// The parts of a label that were not given are those of the targeted policy.
func (o *OCI) processLabel(in isolator.App) string {
	l := o.selinux(in)
	if l == nil {
		return ""
	}
	kind := "container_t"
	if in.App.Security.Privileged {
		kind = "spc_t"
	}
	return label(or(l.User, "system_u"), or(l.Role, "system_r"), or(l.Type, kind), or(l.Level, "s0"))
}

func (o *OCI) mountLabel(in isolator.App) string {
	l := o.selinux(in)
	if l == nil || in.App.Security.Privileged {
		return ""
	}
	return label(or(l.User, "system_u"), "object_r", "container_file_t", or(l.Level, "s0"))
}

func label(parts ...string) string { return strings.Join(parts, ":") }

func or(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}

// checkSELinux keeps a part of a label from being read as several, or as another
// mount option.
func checkSELinux(l *pod.SELinux) error {
	if l == nil {
		return nil
	}
	for _, part := range []string{l.User, l.Role, l.Type} {
		if strings.ContainsFunc(part, func(c rune) bool { return !isWord(c) }) {
			return invalid("security.selinux: %q", part)
		}
	}
	if strings.ContainsFunc(l.Level, func(c rune) bool { return !isWord(c) && !strings.ContainsRune(":,-", c) }) {
		return invalid("security.selinux: level %q", l.Level)
	}
	return nil
}

func isWord(c rune) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '.'
}

func checkSecurity(in isolator.App) error {
	for _, l := range []*pod.SELinux{in.App.Security.SELinux, in.Pod.Security.SELinux} {
		if err := checkSELinux(l); err != nil {
			return err
		}
	}
	s := in.App.Security
	if s.Seccomp.Kind == pod.ProfileLocalhost && len(in.SeccompProfile) == 0 && !s.Privileged {
		return fmt.Errorf("security.seccomp: profile %q: no content: %w", s.Seccomp.Localhost, pod.ErrInvalid)
	}
	return nil
}
