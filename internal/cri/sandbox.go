package cri

import (
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/pod"
)

// hostnameMax is HOST_NAME_MAX of Linux.
const hostnameMax = 64

// Pod translates the request for a sandbox. The engine adds the ID, the time, the
// isolator and the slice.
func Pod(config *runtimeapi.PodSandboxConfig, handler string) (pod.Pod, error) {
	m := config.GetMetadata()
	for _, f := range []struct{ name, value string }{
		{"name", m.GetName()}, {"namespace", m.GetNamespace()}, {"uid", m.GetUid()},
	} {
		if f.value == "" {
			return pod.Pod{}, invalid("config.metadata."+f.name, "must not be empty")
		}
	}
	p := pod.Pod{
		Owner:        pod.OwnerCRI,
		Name:         m.Name,
		Namespace:    m.Namespace,
		UID:          m.Uid,
		Attempt:      m.Attempt,
		Labels:       config.Labels,
		Annotations:  config.Annotations,
		Handler:      handler,
		Hostname:     config.Hostname,
		LogDirectory: config.LogDirectory,
		CgroupParent: config.GetLinux().GetCgroupParent(),
		Sysctls:      config.GetLinux().GetSysctls(),
	}
	if p.LogDirectory != "" {
		if err := absolute("config.log_directory", p.LogDirectory); err != nil {
			return pod.Pod{}, err
		}
	}
	if p.CgroupParent != "" && (climbs(p.CgroupParent) || !strings.HasSuffix(path.Base(p.CgroupParent), ".slice")) {
		return pod.Pod{}, invalid("config.linux.cgroup_parent", "%q does not end in a slice (is kubelet's cgroupDriver systemd?)", p.CgroupParent)
	}
	for _, fill := range []func(*pod.Pod, *runtimeapi.PodSandboxConfig) error{
		fillNamespaces, fillHostname, fillDNS, fillPorts, fillSysctls, fillSecurity, fillResources,
	} {
		if err := fill(&p, config); err != nil {
			return pod.Pod{}, err
		}
	}
	return p, nil
}

func fillNamespaces(p *pod.Pod, c *runtimeapi.PodSandboxConfig) (err error) {
	p.Namespaces, err = sandboxNamespaces("config.linux.security_context.namespace_options", c.GetLinux().GetSecurityContext().GetNamespaceOptions())
	return err
}

func fillHostname(p *pod.Pod, c *runtimeapi.PodSandboxConfig) error {
	switch {
	case p.Hostname == "":
		return nil
	case p.HostNetwork():
		return invalid("config.hostname", "%q: a sandbox in the host's network has the host's name", p.Hostname)
	case len(p.Hostname) > hostnameMax:
		return invalid("config.hostname", "%q is longer than %d bytes", p.Hostname, hostnameMax)
	case strings.ContainsAny(p.Hostname, " \t\n/"):
		return invalid("config.hostname", "%q is not a host's name", p.Hostname)
	}
	return nil
}

// fillDNS takes the resolver's configuration. An empty one is as none: the pod
// gets the host's.
func fillDNS(p *pod.Pod, c *runtimeapi.PodSandboxConfig) error {
	d := c.GetDnsConfig()
	if len(d.GetServers())+len(d.GetSearches())+len(d.GetOptions()) == 0 {
		return nil
	}
	p.DNS = &pod.DNS{Servers: d.Servers, Searches: d.Searches, Options: d.Options}
	for _, l := range []struct {
		name   string
		values []string
	}{{"servers", d.Servers}, {"searches", d.Searches}, {"options", d.Options}} {
		for i, v := range l.values {
			if v == "" || strings.ContainsAny(v, " \t\n\r;#") {
				return invalid(fmt.Sprintf("config.dns_config.%s[%d]", l.name, i), "%q cannot stand in resolv.conf", v)
			}
		}
	}
	return nil
}

func fillPorts(p *pod.Pod, c *runtimeapi.PodSandboxConfig) error {
	for i, m := range c.GetPortMappings() {
		field := fmt.Sprintf("config.port_mappings[%d]", i)
		if m.GetContainerPort() < 1 || m.GetContainerPort() > 65535 {
			return invalid(field+".container_port", "%d is not in 1..65535", m.GetContainerPort())
		}
		if m.HostPort < 0 || m.HostPort > 65535 {
			return invalid(field+".host_port", "%d is not in 0..65535", m.HostPort)
		}
		if m.HostIp != "" {
			if _, err := netip.ParseAddr(m.HostIp); err != nil {
				return invalid(field+".host_ip", "%q is not an address", m.HostIp)
			}
		}
		p.Ports = append(p.Ports, pod.Port{
			Protocol: pod.Protocol(strings.ToLower(m.Protocol.String())),
			PodPort:  m.ContainerPort,
			HostPort: m.HostPort,
			HostIP:   m.HostIp,
		})
	}
	return nil
}

// fillSysctls refuses what would change the host: these are namespaced, but only if the
// pod has a namespace of that kind.
func fillSysctls(p *pod.Pod, c *runtimeapi.PodSandboxConfig) error {
	const field = "config.linux.sysctls"
	ipc := []string{"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced"}
	for name := range c.GetLinux().GetSysctls() {
		dotted := strings.ReplaceAll(name, "/", ".")
		switch {
		case strings.HasPrefix(dotted, "net.") && !strings.Contains(dotted, ".."):
			if p.HostNetwork() {
				return invalid(field, "%s would change the host: the sandbox is in its network", name)
			}
		case slices.Contains(ipc, dotted) || strings.HasPrefix(dotted, "fs.mqueue."):
			if p.Namespaces.IPC == pod.NamespaceNode {
				return invalid(field, "%s would change the host: the sandbox is in its IPC namespace", name)
			}
		default: // of a kernel: isolators that give the pod one of its own take it, the others refuse it
		}
	}
	return nil
}

func fillSecurity(p *pod.Pod, c *runtimeapi.PodSandboxConfig) error {
	p.Security = sandboxSecurity(c.GetLinux().GetSecurityContext())
	return nil
}

func fillResources(p *pod.Pod, c *runtimeapi.PodSandboxConfig) (err error) {
	p.PodResources, err = PodResources("config.linux.", c.GetLinux().GetResources(), c.GetLinux().GetOverhead())
	return err
}

// roundedUp has the least quota there is where kubelet asks a pod for less: it takes the
// overhead off what it has rounded up itself.
func roundedUp(r *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	if r.CpuQuota <= 0 || r.CpuQuota >= leastQuota {
		return r
	}
	r = proto.CloneOf(r)
	r.CpuQuota = leastQuota
	return r
}

// PodResources checks the sizes of a pod; field is what the names of their fields begin
// with.
func PodResources(field string, resources, overhead *runtimeapi.LinuxContainerResources) (out pod.PodResources, err error) {
	for _, r := range []struct {
		name string
		in   *runtimeapi.LinuxContainerResources
		out  **pod.Resources
	}{
		{"overhead", overhead, &out.Overhead},
		{"resources", resources, &out.Resources},
	} {
		if r.in == nil {
			continue
		}
		got, err := Resources(field+r.name, roundedUp(r.in))
		if err != nil {
			return pod.PodResources{}, err
		}
		*r.out = &got
	}
	return out, nil
}
