package manifest

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

const maxID = 1<<31 - 1

func validateSecurity(s PodSecurity, add adder) {
	at := "spec.securityContext"
	validateID(s.RunAsUser, at+".runAsUser", add)
	validateID(s.RunAsGroup, at+".runAsGroup", add)
	validateID(s.FSGroup, at+".fsGroup", add)
	for i := range s.SupplementalGroups {
		validateID(&s.SupplementalGroups[i], fmt.Sprintf("%s.supplementalGroups[%d]", at, i), add)
	}
	if !slices.Contains([]string{"", "Merge", "Strict"}, s.SupplementalGroupsPolicy) {
		add(at+".supplementalGroupsPolicy", "%q: want Merge or Strict", s.SupplementalGroupsPolicy)
	}
	for i, c := range s.Sysctls {
		if c.Name == "" || strings.ContainsAny(c.Name, " \t\n=") || strings.Contains(c.Name, "..") {
			add(fmt.Sprintf("%s.sysctls[%d].name", at, i), "%q: want a name such as net.core.somaxconn", c.Name)
		}
	}
	validateProfile(s.Seccomp, at+".seccompProfile", add)
	validateProfile(s.AppArmor, at+".appArmorProfile", add)
}

func validateContainerSecurity(s ContainerSecurity, at string, add adder) {
	validateID(s.RunAsUser, at+".runAsUser", add)
	validateID(s.RunAsGroup, at+".runAsGroup", add)
	if s.Privileged && s.AllowPrivilegeEscalation != nil && !*s.AllowPrivilegeEscalation {
		add(at+".allowPrivilegeEscalation", "false cannot be combined with privileged")
	}
	if !slices.Contains([]string{"", "Default", "Unmasked"}, s.ProcMount) {
		add(at+".procMount", "%q: want Default or Unmasked", s.ProcMount)
	}
	validateProfile(s.Seccomp, at+".seccompProfile", add)
	validateProfile(s.AppArmor, at+".appArmorProfile", add)
}

func validateID(id *int64, at string, add adder) {
	if id != nil && (*id < 0 || *id > maxID) {
		add(at, "%d: want 0 to %d", *id, maxID)
	}
}

func validateProfile(p *Profile, at string, add adder) {
	if p == nil {
		return
	}
	switch p.Type {
	case "RuntimeDefault", "Unconfined":
		if p.LocalhostProfile != "" {
			add(at+".localhostProfile", "needs type: Localhost")
		}
	case "Localhost":
		switch {
		case p.LocalhostProfile == "":
			add(at+".localhostProfile", "is missing")
		case strings.HasSuffix(at, "seccompProfile") && !path.IsAbs(p.LocalhostProfile):
			add(at+".localhostProfile", "%q: want the profile's absolute path: there is no kubelet directory to look in", p.LocalhostProfile)
		}
	default:
		add(at+".type", "%q: want RuntimeDefault, Unconfined or Localhost", p.Type)
	}
}
