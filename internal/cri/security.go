package cri

import (
	"fmt"
	"path"
	"regexp"
	"strconv"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/pod"
)

var capability = regexp.MustCompile(`^[A-Z][A-Z0-9_]*$`)

// sandboxSecurity reads what a sandbox's security context says of the whole pod. It has no
// process that profiles could confine.
func sandboxSecurity(sc *runtimeapi.LinuxSandboxSecurityContext) pod.Security {
	return pod.Security{Privileged: sc.GetPrivileged(), SELinux: selinux(sc.GetSelinuxOptions())}
}

// Security reads a container's security context, but for whom it runs as.
// Without one, a container gets the defaults of the engine; a context that names
// no masked and read-only paths really wants none.
func Security(field string, sc *runtimeapi.LinuxContainerSecurityContext) (pod.Security, error) {
	if sc == nil {
		return pod.Security{Seccomp: unconfined(), AppArmor: pod.Profile{Kind: pod.ProfileRuntimeDefault}}, nil
	}
	s := pod.Security{
		Privileged:      sc.Privileged,
		ReadOnlyRootfs:  sc.ReadonlyRootfs,
		NoNewPrivileges: sc.NoNewPrivs,
		SELinux:         selinux(sc.SelinuxOptions),
		MaskedPaths:     append([]string{}, sc.MaskedPaths...),
		ReadOnlyPaths:   append([]string{}, sc.ReadonlyPaths...),
	}
	var err error
	for _, c := range []struct {
		field string
		in    []string
		out   *[]string
	}{
		{"add_capabilities", sc.GetCapabilities().GetAddCapabilities(), &s.AddCaps},
		{"drop_capabilities", sc.GetCapabilities().GetDropCapabilities(), &s.DropCaps},
		{"add_ambient_capabilities", sc.GetCapabilities().GetAddAmbientCapabilities(), &s.AmbientCaps},
	} {
		if *c.out, err = capabilities(field+".capabilities."+c.field, c.in); err != nil {
			return pod.Security{}, err
		}
	}
	for _, p := range []struct {
		field string
		paths []string
	}{{"masked_paths", s.MaskedPaths}, {"readonly_paths", s.ReadOnlyPaths}} {
		for i, v := range p.paths {
			if err := absolute(fmt.Sprintf("%s.%s[%d]", field, p.field, i), v); err != nil {
				return pod.Security{}, err
			}
		}
	}
	//nolint:staticcheck // the deprecated forms are still sent by older clients
	if s.Seccomp, err = seccomp(field, sc.Seccomp, sc.SeccompProfilePath); err != nil {
		return pod.Security{}, err
	}
	//nolint:staticcheck // kubelet still sends both
	if s.AppArmor, err = appArmor(field, sc.Apparmor, sc.ApparmorProfile); err != nil {
		return pod.Security{}, err
	}
	if s.Privileged {
		// "Restrictions are not applied" to privileged containers, whatever else
		// the message says: so says the CRI.
		s.Seccomp, s.AppArmor = unconfined(), unconfined()
	}
	return s, nil
}

func unconfined() pod.Profile { return pod.Profile{Kind: pod.ProfileUnconfined} }

func selinux(o *runtimeapi.SELinuxOption) *pod.SELinux {
	if o.GetUser() == "" && o.GetRole() == "" && o.GetType() == "" && o.GetLevel() == "" {
		return nil
	}
	return &pod.SELinux{User: o.User, Role: o.Role, Type: o.Type, Level: o.Level}
}

func capabilities(field string, in []string) ([]string, error) {
	var out []string
	for i, c := range in {
		name := strings.TrimPrefix(strings.ToUpper(c), "CAP_")
		if !capability.MatchString(name) {
			return nil, invalid(fmt.Sprintf("%s[%d]", field, i), "%q is not the name of a capability", c)
		}
		out = append(out, name)
	}
	return out, nil
}

// seccomp reads a profile. None at all is unconfined: the CRI says so, and kubelet
// asks for the default in words.
func seccomp(field string, p *runtimeapi.SecurityProfile, old string) (pod.Profile, error) {
	got, err := profile(field, "seccomp", p, "seccomp_profile_path", old)
	if err != nil {
		return pod.Profile{}, err
	}
	if got.Kind == "" {
		return unconfined(), nil
	}
	if got.Kind == pod.ProfileLocalhost && (!path.IsAbs(got.Localhost) || climbs(got.Localhost)) {
		return pod.Profile{}, invalid(field+".seccomp.localhost_ref", "%q is not the absolute path of a profile", got.Localhost)
	}
	return got, nil
}

// appArmor reads a profile. None at all is the default one.
func appArmor(field string, p *runtimeapi.SecurityProfile, old string) (pod.Profile, error) {
	got, err := profile(field, "apparmor", p, "apparmor_profile", old)
	if err != nil {
		return pod.Profile{}, err
	}
	if got.Kind == "" {
		return pod.Profile{Kind: pod.ProfileRuntimeDefault}, nil
	}
	if got.Kind == pod.ProfileLocalhost && strings.ContainsAny(got.Localhost, " \t\n") {
		return pod.Profile{}, invalid(field+".apparmor.localhost_ref", "%q is not the name of a profile", got.Localhost)
	}
	return got, nil
}

// profile reads the two forms of a profile. The newer one counts; both at once
// must say the same.
func profile(field, name string, p *runtimeapi.SecurityProfile, oldName, old string) (pod.Profile, error) {
	was, err := oldProfile(field+"."+oldName, old)
	if err != nil || p == nil {
		return was, err
	}
	now := pod.Profile{Localhost: p.LocalhostRef}
	switch p.ProfileType {
	case runtimeapi.SecurityProfile_RuntimeDefault:
		now.Kind = pod.ProfileRuntimeDefault
	case runtimeapi.SecurityProfile_Unconfined:
		now.Kind = pod.ProfileUnconfined
	case runtimeapi.SecurityProfile_Localhost:
		now.Kind = pod.ProfileLocalhost
	}
	if (now.Kind == pod.ProfileLocalhost) != (now.Localhost != "") {
		return pod.Profile{}, invalid(field+"."+name+".localhost_ref", "%q does not go with the type %s", p.LocalhostRef, p.ProfileType)
	}
	if was.Kind != "" && was != now {
		return pod.Profile{}, invalid(field+"."+oldName, "%q contradicts the field %s", old, name)
	}
	return now, nil
}

func oldProfile(field, s string) (pod.Profile, error) {
	switch {
	case s == "":
		return pod.Profile{}, nil
	case s == "runtime/default" || s == "docker/default":
		return pod.Profile{Kind: pod.ProfileRuntimeDefault}, nil
	case s == "unconfined":
		return unconfined(), nil
	case strings.HasPrefix(s, "localhost/") && s != "localhost/":
		return pod.Profile{Kind: pod.ProfileLocalhost, Localhost: strings.TrimPrefix(s, "localhost/")}, nil
	}
	return pod.Profile{}, invalid(field, "%q is not runtime/default, unconfined or localhost/PROFILE", s)
}

// Identity is as whom a container runs, as the caller said it: names are looked up
// in the image by the engine.
type Identity struct {
	User, Group  string // name or number; number
	Groups       []uint32
	GroupsStrict bool
}

// RunAs reads as whom a container runs.
func RunAs(field string, sc *runtimeapi.LinuxContainerSecurityContext) (Identity, error) {
	who := Identity{GroupsStrict: sc.GetSupplementalGroupsPolicy() == runtimeapi.SupplementalGroupsPolicy_Strict}
	name, number := sc.GetRunAsUsername(), sc.GetRunAsUser()
	switch {
	case name != "" && number != nil:
		return Identity{}, invalid(field+".run_as_username", "is set together with run_as_user")
	case strings.Contains(name, ":"):
		return Identity{}, invalid(field+".run_as_username", "%q is not the name of a user", name)
	case number != nil:
		uid, err := id32(field+".run_as_user", number.Value)
		if err != nil {
			return Identity{}, err
		}
		who.User = strconv.FormatUint(uint64(uid), 10)
	default:
		who.User = name
	}
	if g := sc.GetRunAsGroup(); g != nil {
		if who.User == "" {
			return Identity{}, invalid(field+".run_as_group", "needs run_as_user or run_as_username")
		}
		gid, err := id32(field+".run_as_group", g.Value)
		if err != nil {
			return Identity{}, err
		}
		who.Group = strconv.FormatUint(uint64(gid), 10)
	}
	var err error
	who.Groups, err = ids32(field+".supplemental_groups", sc.GetSupplementalGroups())
	return who, err
}
