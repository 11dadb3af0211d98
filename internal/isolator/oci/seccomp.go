package oci

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"gantry/internal/isolator"
	"gantry/internal/pod"
)

// profile is a seccomp profile before it is resolved: rules may depend on the
// architecture and on the app's capabilities. A minKernel that a rule names is
// taken as reached: Gantry needs a newer one than any profile asks for.
type profile struct{ *seccomp.Seccomp }

func defaultProfile(data []byte) (profile, error) {
	if data == nil {
		return profile{seccomp.DefaultProfile()}, nil
	}
	return parseProfile(data)
}

func parseProfile(data []byte) (profile, error) {
	var p seccomp.Seccomp
	if err := json.Unmarshal(data, &p); err != nil {
		return profile{}, invalid("read seccomp profile: %v", err)
	}
	if p.DefaultAction == "" {
		return profile{}, invalid("seccomp profile has no defaultAction")
	}
	if len(p.Architectures) > 0 && len(p.ArchMap) > 0 {
		return profile{}, invalid("seccomp profile has both architectures and archMap")
	}
	if p.ListenerPath != "" || p.DefaultAction == specs.ActNotify {
		return profile{}, fmt.Errorf("seccomp profile asks for a listener: %w", pod.ErrUnsupported)
	}
	for _, rule := range p.Syscalls {
		if rule == nil || rule.Action == "" || rule.Name == "" && len(rule.Names) == 0 {
			return profile{}, invalid("seccomp profile has a rule without names or action")
		}
		if rule.Action == specs.ActNotify {
			return profile{}, fmt.Errorf("seccomp profile asks for a listener: %w", pod.ErrUnsupported)
		}
	}
	return profile{&p}, nil
}

// seccompOf picks the app's profile; nil is none. Who says nothing gets the
// runtime's default.
func (o *OCI) seccompOf(in isolator.App, caps []string) (*specs.LinuxSeccomp, error) {
	s := in.App.Security
	if s.Privileged {
		return nil, nil
	}
	switch s.Seccomp.Kind {
	case pod.ProfileUnconfined:
		return nil, nil
	case "", pod.ProfileRuntimeDefault:
		return o.seccomp.resolve(o.cfg.Arch, caps), nil
	case pod.ProfileLocalhost:
		p, err := parseProfile(in.SeccompProfile)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.Seccomp.Localhost, err)
		}
		return apart(p.resolve(o.cfg.Arch, caps)), nil
	default:
		return nil, invalid("seccomp profile kind %q", s.Seccomp.Kind)
	}
}

// resolve keeps the rules that hold for an architecture and capabilities.
func (p profile) resolve(goarch string, caps []string) *specs.LinuxSeccomp {
	arch := archs[goarch]
	out := &specs.LinuxSeccomp{
		DefaultAction: p.DefaultAction, DefaultErrnoRet: p.DefaultErrnoRet,
		Architectures: slices.Clone(p.Architectures), Flags: p.Flags,
	}
	for _, a := range p.ArchMap {
		if a.Arch == arch.spec {
			out.Architectures = append(append(out.Architectures, a.Arch), a.SubArches...)
			break
		}
	}
	for _, rule := range p.Syscalls {
		if !applies(rule, arch.name, caps) {
			continue
		}
		call := rule.LinuxSyscall
		if rule.Name != "" {
			call.Names = append([]string{rule.Name}, call.Names...)
		}
		out.Syscalls = append(out.Syscalls, call)
	}
	return out
}

// apart makes profiles differ for crun that differ in error numbers only. crun (seen
// with 1.21) compiles a profile once and finds it again by a hash in which those
// numbers are missing, so that an app would get another app's. A name that no
// system call has changes the hash; runtimes ignore it.
func apart(s *specs.LinuxSeccomp) *specs.LinuxSeccomp {
	name := func(errno *uint) string { return fmt.Sprintf("gantry_errno_%d", *errno) }
	for i, rule := range s.Syscalls {
		if rule.ErrnoRet != nil {
			s.Syscalls[i].Names = append(slices.Clone(rule.Names), name(rule.ErrnoRet))
		}
	}
	if s.DefaultErrnoRet != nil {
		s.Syscalls = append(s.Syscalls, specs.LinuxSyscall{Names: []string{name(s.DefaultErrnoRet)}, Action: s.DefaultAction})
	}
	return s
}

func applies(rule *seccomp.Syscall, arch string, caps []string) bool {
	if f := rule.Excludes; f != nil {
		excluded := slices.Contains(f.Arches, arch) || f.MinKernel != nil ||
			slices.ContainsFunc(f.Caps, func(c string) bool { return slices.Contains(caps, c) })
		if excluded {
			return false
		}
	}
	f := rule.Includes
	return f == nil || (len(f.Arches) == 0 || slices.Contains(f.Arches, arch)) &&
		!slices.ContainsFunc(f.Caps, func(c string) bool { return !slices.Contains(caps, c) })
}

// archs maps Go's names of architectures to those of profiles.
var archs = map[string]struct {
	name string
	spec specs.Arch
}{
	"amd64":   {"amd64", specs.ArchX86_64},
	"arm64":   {"arm64", specs.ArchAARCH64},
	"loong64": {"loongarch64", specs.ArchLOONGARCH64},
	"ppc64le": {"ppc64le", specs.ArchPPC64LE},
	"riscv64": {"riscv64", specs.ArchRISCV64},
	"s390x":   {"s390x", specs.ArchS390X},
}
