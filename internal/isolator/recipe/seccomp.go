package recipe

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"gantry/internal/isolator"
	"gantry/internal/pod"
)

// Seccomp is a seccomp profile before it is resolved: rules may depend on the
// architecture and on the app's capabilities. A minKernel that a rule names is
// taken as reached: Gantry needs a newer one than any profile asks for.
type Seccomp struct{ *seccomp.Seccomp }

// DefaultSeccomp is the profile in data, or if that is nil the one that all engines have.
func DefaultSeccomp(data []byte) (Seccomp, error) {
	if data == nil {
		return Seccomp{seccomp.DefaultProfile()}, nil
	}
	return ParseSeccomp(data)
}

// ParseSeccomp reads a profile, in Docker's or the OCI's JSON.
func ParseSeccomp(data []byte) (Seccomp, error) {
	var p seccomp.Seccomp
	if err := json.Unmarshal(data, &p); err != nil {
		return Seccomp{}, Invalid("read seccomp profile: %v", err)
	}
	if p.DefaultAction == "" {
		return Seccomp{}, Invalid("seccomp profile has no defaultAction")
	}
	if len(p.Architectures) > 0 && len(p.ArchMap) > 0 {
		return Seccomp{}, Invalid("seccomp profile has both architectures and archMap")
	}
	if p.ListenerPath != "" || p.DefaultAction == specs.ActNotify {
		return Seccomp{}, fmt.Errorf("seccomp profile asks for a listener: %w", pod.ErrUnsupported)
	}
	for _, rule := range p.Syscalls {
		if rule == nil || rule.Action == "" || rule.Name == "" && len(rule.Names) == 0 {
			return Seccomp{}, Invalid("seccomp profile has a rule without names or action")
		}
		if rule.Action == specs.ActNotify {
			return Seccomp{}, fmt.Errorf("seccomp profile asks for a listener: %w", pod.ErrUnsupported)
		}
	}
	return Seccomp{&p}, nil
}

// For picks an app's profile, with p for who asks for the node's default or says
// nothing; nil is none. goarch is the machine's architecture, in Go's words.
func (p Seccomp) For(in isolator.App, goarch string, caps []string) (*specs.LinuxSeccomp, error) {
	s := in.App.Security
	if s.Privileged {
		return nil, nil
	}
	switch s.Seccomp.Kind {
	case pod.ProfileUnconfined:
		return nil, nil
	case "", pod.ProfileRuntimeDefault:
		return p.Resolve(goarch, caps), nil
	case pod.ProfileLocalhost:
		if len(in.SeccompProfile) == 0 {
			return nil, Invalid("profile %q: no content", s.Seccomp.Localhost)
		}
		own, err := ParseSeccomp(in.SeccompProfile)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.Seccomp.Localhost, err)
		}
		return own.Resolve(goarch, caps), nil
	default:
		return nil, Invalid("seccomp profile kind %q", s.Seccomp.Kind)
	}
}

// Resolve keeps the rules that hold for an architecture and capabilities.
func (p Seccomp) Resolve(goarch string, caps []string) *specs.LinuxSeccomp {
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
