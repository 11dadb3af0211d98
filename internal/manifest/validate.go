package manifest

import (
	"fmt"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strings"
)

// adder takes a problem at a path.
type adder func(path, format string, args ...any)

func validate(p *Pod, add adder) {
	validateMetadata(p.Metadata, add)
	validateSpec(&p.Spec, add)
	validateSecurity(p.Spec.SecurityContext, add)
	volumes := validateVolumes(p.Spec.Volumes, add)
	names, hostPorts := map[string]bool{}, map[string]bool{}
	for _, set := range []struct {
		field string
		list  []Container
	}{{"spec.initContainers", p.Spec.InitContainers}, {"spec.containers", p.Spec.Containers}} {
		for i := range set.list {
			c := &set.list[i]
			at := fmt.Sprintf("%s[%d]", set.field, i)
			if names[c.Name] {
				add(at+".name", "%q is taken by another container", c.Name)
			}
			names[c.Name] = true
			validateContainer(c, at, volumes, add)
			validatePorts(c, at, p.Spec.HostNetwork, hostPorts, add)
			if set.field == "spec.initContainers" {
				refuseHostPorts(c, at, add)
			}
			validateEnv(p, c, at, add)
		}
	}
}

func validateMetadata(m Metadata, add adder) {
	if m.Name == "" {
		add("metadata.name", "is missing")
	} else if !IsSubdomain(m.Name) {
		add("metadata.name", "%q: want at most 253 of a-z, 0-9, - and ., in words that begin and end with a letter or a digit", m.Name)
	}
	if m.Namespace != "" && !IsLabel(m.Namespace) {
		add("metadata.namespace", "%q: want at most 63 of a-z, 0-9 and -", m.Namespace)
	}
}

func validateSpec(s *Spec, add adder) {
	if len(s.Containers) == 0 {
		add("spec.containers", "is empty: want at least one container")
	}
	switch s.RestartPolicy {
	case "", "Never":
	case "Always", "OnFailure":
		add("spec.restartPolicy", "%s is not supported: nothing stays behind to restart containers; say Never, or run the pod under a kubelet, or run gantry in a systemd unit with Restart=", s.RestartPolicy)
	default:
		add("spec.restartPolicy", "%q: want Never", s.RestartPolicy)
	}
	if g := s.TerminationGracePeriodSeconds; g != nil && (*g < 0 || *g > 1<<31) {
		add("spec.terminationGracePeriodSeconds", "%d: want 0 or more seconds", *g)
	}
	if s.Hostname != "" && !IsLabel(s.Hostname) {
		add("spec.hostname", "%q: want at most 63 of a-z, 0-9 and -", s.Hostname)
	}
	if s.Hostname != "" && s.HostNetwork {
		add("spec.hostname", "cannot be combined with hostNetwork: the host's name goes with its network")
	}
	if s.HostPID && s.ShareProcessNamespace {
		add("spec.shareProcessNamespace", "cannot be combined with hostPID")
	}
	if u := s.HostUsers; u != nil && !*u && (s.HostNetwork || s.HostPID || s.HostIPC) {
		add("spec.hostUsers", "false cannot be combined with hostNetwork, hostPID or hostIPC")
	}
	validateDNS(s, add)
	if e := s.EnableServiceLinks; e != nil && *e {
		add("spec.enableServiceLinks", "true is not supported: %s", needsCluster)
	}
	if a := s.AutomountServiceAccountToken; a != nil && *a {
		add("spec.automountServiceAccountToken", "true is not supported: %s", needsCluster)
	}
	if s.OS.Name != "" && s.OS.Name != "linux" {
		add("spec.os.name", "%q: this is linux", s.OS.Name)
	}
}

func validateDNS(s *Spec, add adder) {
	switch s.DNSPolicy {
	case "", "Default":
	case "None":
		if s.DNSConfig == nil || len(s.DNSConfig.Nameservers) == 0 {
			add("spec.dnsConfig.nameservers", "is empty: dnsPolicy None needs at least one")
		}
	case "ClusterFirst", "ClusterFirstWithHostNet":
		add("spec.dnsPolicy", "%s is not supported: %s; say Default or None", s.DNSPolicy, needsCluster)
	default:
		add("spec.dnsPolicy", "%q: want Default or None", s.DNSPolicy)
	}
	if s.DNSConfig == nil {
		return
	}
	for i, server := range s.DNSConfig.Nameservers {
		if _, err := netip.ParseAddr(server); err != nil {
			add(fmt.Sprintf("spec.dnsConfig.nameservers[%d]", i), "%q: want an IP address", server)
		}
	}
	for i, o := range s.DNSConfig.Options {
		if o.Name == "" || strings.ContainsAny(o.Name+o.Value, " \t\r\n") {
			add(fmt.Sprintf("spec.dnsConfig.options[%d]", i), "want a name, and no blanks")
		}
	}
	for i, s := range s.DNSConfig.Searches {
		if s == "" || strings.ContainsAny(s, " \t\r\n") {
			add(fmt.Sprintf("spec.dnsConfig.searches[%d]", i), "%q: want a domain", s)
		}
	}
}

func validateVolumes(list []Volume, add adder) map[string]bool {
	names := map[string]bool{}
	for i, v := range list {
		at := fmt.Sprintf("spec.volumes[%d]", i)
		if !IsLabel(v.Name) {
			add(at+".name", "%q: want at most 63 of a-z, 0-9 and -", v.Name)
		}
		if names[v.Name] {
			add(at+".name", "%q is taken by another volume", v.Name)
		}
		names[v.Name] = true
		switch {
		case v.EmptyDir == nil && v.HostPath == nil:
			add(at, "has no source: want emptyDir: {} or hostPath")
		case v.EmptyDir != nil && v.HostPath != nil:
			add(at, "has two sources: want one of emptyDir and hostPath")
		case v.EmptyDir != nil:
			validateEmptyDir(v.EmptyDir, at+".emptyDir", add)
		default:
			validateHostPath(v.HostPath, at+".hostPath", add)
		}
	}
	return names
}

func validateEmptyDir(e *EmptyDir, at string, add adder) {
	if e.Medium != "" && e.Medium != "Memory" {
		add(at+".medium", "%q is not supported: want Memory, or nothing for the disk", e.Medium)
	}
	if e.SizeLimit != nil && e.Medium != "Memory" {
		add(at+".sizeLimit", "is not supported on the disk: %s; it is with medium: Memory", needsKubelet)
	}
	if e.SizeLimit != nil && e.SizeLimit.Value() <= 0 {
		add(at+".sizeLimit", "%s: want more than 0", e.SizeLimit)
	}
}

// hostPathTypes are the values of a hostPath volume's type.
var hostPathTypes = []string{"", "DirectoryOrCreate", "Directory", "FileOrCreate", "File", "Socket", "CharDevice", "BlockDevice"}

func validateHostPath(h *HostPath, at string, add adder) {
	if !path.IsAbs(h.Path) || slices.Contains(strings.Split(h.Path, "/"), "..") {
		add(at+".path", "%q: want an absolute path without ..", h.Path)
	}
	if !slices.Contains(hostPathTypes, h.Type) {
		add(at+".type", "%q: want one of %s", h.Type, strings.Join(hostPathTypes[1:], ", "))
	}
}

func validateContainer(c *Container, at string, volumes map[string]bool, add adder) {
	if !IsLabel(c.Name) {
		add(at+".name", "%q: want at most 63 of a-z, 0-9 and -", c.Name)
	}
	if c.Image == "" {
		add(at+".image", "is missing")
	}
	if !slices.Contains([]string{"", "Always", "IfNotPresent", "Never"}, c.ImagePullPolicy) {
		add(at+".imagePullPolicy", "%q: want Always, IfNotPresent or Never", c.ImagePullPolicy)
	}
	switch {
	case c.RestartPolicy == "Always" && strings.HasPrefix(at, "spec.initContainers"):
		add(at+".restartPolicy", "Always (a sidecar) is not supported: %s", needsKubelet)
	case c.RestartPolicy != "" && c.RestartPolicy != "Never":
		add(at+".restartPolicy", "%q is not supported: want Never", c.RestartPolicy)
	}
	if c.WorkingDir != "" && !path.IsAbs(c.WorkingDir) {
		add(at+".workingDir", "%q: want an absolute path", c.WorkingDir)
	}
	targets := map[string]bool{}
	for i, m := range c.VolumeMounts {
		validateMount(m, fmt.Sprintf("%s.volumeMounts[%d]", at, i), volumes, targets, add)
	}
	validateResources(c.Resources, at+".resources", add)
	validateContainerSecurity(c.SecurityContext, at+".securityContext", add)
}

func validateMount(m VolumeMount, at string, volumes, targets map[string]bool, add adder) {
	if !volumes[m.Name] {
		add(at+".name", "there is no volume %q", m.Name)
	}
	if !path.IsAbs(m.MountPath) || strings.ContainsAny(m.MountPath, ":\x00") {
		add(at+".mountPath", "%q: want an absolute path without a colon", m.MountPath)
	}
	if targets[path.Clean(m.MountPath)] {
		add(at+".mountPath", "%q is mounted twice", m.MountPath)
	}
	targets[path.Clean(m.MountPath)] = true
	if !slices.Contains([]string{"", "None", "HostToContainer", "Bidirectional"}, m.MountPropagation) {
		add(at+".mountPropagation", "%q: want None, HostToContainer or Bidirectional", m.MountPropagation)
	}
	switch m.RecursiveReadOnly {
	case "", "Disabled":
	case "IfPossible", "Enabled":
		if !m.ReadOnly {
			add(at+".recursiveReadOnly", "needs readOnly: true")
		}
	default:
		add(at+".recursiveReadOnly", "%q: want Disabled, IfPossible or Enabled", m.RecursiveReadOnly)
	}
}

func validateResources(r Resources, at string, add adder) {
	for _, set := range []struct {
		field string
		list  map[string]Quantity
	}{{".limits", r.Limits}, {".requests", r.Requests}} {
		for _, name := range slices.Sorted(maps.Keys(set.list)) {
			if q := set.list[name]; name != "cpu" && !q.Whole() {
				add(join(at+set.field, name), "%s is a fraction of a byte: want a size such as 64M or 64Mi", q)
			}
			switch {
			case name == "cpu", name == "memory":
			case strings.HasPrefix(name, "hugepages-") && set.field == ".limits":
				if _, err := ParseQuantity(strings.TrimPrefix(name, "hugepages-")); err != nil {
					add(join(at+set.field, name), "want a page size such as hugepages-2Mi")
				}
			case strings.HasPrefix(name, "hugepages-"):
			case name == "ephemeral-storage":
				add(join(at+set.field, name), "is not supported: %s", needsKubelet)
			default:
				add(join(at+set.field, name), "is not supported: want cpu, memory or hugepages-SIZE")
			}
		}
	}
	for _, name := range []string{"cpu", "memory"} {
		limit, limited := r.Limits[name]
		request, requested := r.Requests[name]
		if limited && requested && request.value.Cmp(&limit.value) > 0 {
			add(at+".requests."+name, "%s is more than the limit %s", request, limit)
		}
	}
}

func validatePorts(c *Container, at string, hostNetwork bool, hostPorts map[string]bool, add adder) {
	for i, p := range c.Ports {
		at := fmt.Sprintf("%s.ports[%d]", at, i)
		if p.ContainerPort < 1 || p.ContainerPort > 65535 {
			add(at+".containerPort", "%d: want 1 to 65535", p.ContainerPort)
		}
		if !slices.Contains([]string{"", "TCP", "UDP", "SCTP"}, p.Protocol) {
			add(at+".protocol", "%q: want TCP, UDP or SCTP", p.Protocol)
		}
		if p.HostIP != "" {
			if _, err := netip.ParseAddr(p.HostIP); err != nil {
				add(at+".hostIP", "%q: want an IP address", p.HostIP)
			}
		}
		if p.HostPort == 0 {
			continue
		}
		key := fmt.Sprint(p.HostIP, " ", p.HostPort, " ", p.Protocol)
		switch {
		case p.HostPort < 1 || p.HostPort > 65535:
			add(at+".hostPort", "%d: want 1 to 65535", p.HostPort)
		case hostNetwork && p.HostPort != p.ContainerPort:
			add(at+".hostPort", "%d: with hostNetwork it must equal containerPort", p.HostPort)
		case hostPorts[key]:
			add(at+".hostPort", "%d is taken by another container", p.HostPort)
		}
		hostPorts[key] = true
	}
}

// refuseHostPorts of an init container: nothing maps them.
func refuseHostPorts(c *Container, at string, add adder) {
	for i, p := range c.Ports {
		if p.HostPort != 0 {
			add(fmt.Sprintf("%s.ports[%d].hostPort", at, i), "an init container gets no port of the host")
		}
	}
}

// IsLabel tells whether s is a DNS label (RFC 1123).
func IsLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// IsSubdomain tells whether s is a DNS subdomain (RFC 1123).
func IsSubdomain(s string) bool {
	if len(s) > 253 {
		return false
	}
	for part := range strings.SplitSeq(s, ".") {
		if len(part) > 63 || !IsLabel(part) {
			return false
		}
	}
	return true
}
