package oci

import (
	"fmt"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"gantry/internal/isolator"
	"gantry/internal/pod"
)

func (o *OCI) seccompOf(in isolator.App, caps []string) (*specs.LinuxSeccomp, error) {
	s, err := o.seccomp.For(in, o.cfg.Arch, caps)
	if s != nil && in.App.Security.Seccomp.Kind == pod.ProfileLocalhost {
		s = apart(s)
	}
	return s, err
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
