package cli

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"gantry/internal/engine"
	"gantry/internal/image"
	"gantry/internal/manifest"
	"gantry/internal/pod"
)

// specFromFile reads a manifest; policy overrides those of its containers.
func specFromFile(env *Env, path string, policy image.PullPolicy) (*podSpec, error) {
	data, err := readManifest(env, path)
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	p, err := manifest.Parse(data)
	if err != nil {
		return nil, fmt.Errorf("read manifest %s: %w", path, err)
	}
	s, err := specFromManifest(p)
	if err != nil {
		return nil, fmt.Errorf("read manifest %s: %w", path, err)
	}
	for i := range s.Apps {
		if policy != "" {
			s.Apps[i].Pull = policy
		}
	}
	return s, nil
}

func readManifest(env *Env, path string) ([]byte, error) {
	in := env.Stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	return io.ReadAll(io.LimitReader(in, manifest.MaxSize+1))
}

// specFromManifest translates. The manifest was validated.
func specFromManifest(m *manifest.Pod) (*podSpec, error) {
	s := &podSpec{HostDNS: m.Spec.DNSPolicy != "None"}
	s.Pod = podFromManifest(m)
	if u := m.Spec.HostUsers; u != nil && !*u {
		s.OwnUsers = true
	}
	s.FSGroup = m.Spec.SecurityContext.FSGroup
	if m.Spec.RestartPolicy == "" {
		s.Notes = append(s.Notes, "spec.restartPolicy is not set: Kubernetes would take Always, gantry takes Never")
	}
	volumes := map[string]manifest.Volume{}
	for _, v := range m.Spec.Volumes {
		volumes[v.Name] = v
		if v.EmptyDir != nil && v.EmptyDir.Medium == "Memory" {
			return nil, fmt.Errorf("spec.volumes: %s: emptyDir with medium Memory is not built yet: %w", v.Name, pod.ErrUnsupported)
		}
		if v.EmptyDir != nil {
			s.Volumes = append(s.Volumes, volume{Name: v.Name})
		} else {
			s.Volumes = append(s.Volumes, volume{Name: v.Name, HostPath: v.HostPath.Path, Type: v.HostPath.Type})
		}
	}
	for i := range m.Spec.InitContainers {
		a, err := appFromManifest(m, &m.Spec.InitContainers[i], volumes)
		if err != nil {
			return nil, err
		}
		a.Init = true
		a.Annotations = map[string]string{annotationInit: "true"}
		s.Apps = append(s.Apps, a)
	}
	for i := range m.Spec.Containers {
		a, err := appFromManifest(m, &m.Spec.Containers[i], volumes)
		if err != nil {
			return nil, err
		}
		s.Apps = append(s.Apps, a)
	}
	return s, nil
}

func podFromManifest(m *manifest.Pod) pod.Pod {
	p := pod.Pod{
		Owner: pod.OwnerCLI, Name: m.Metadata.Name, Namespace: m.NamespaceOrDefault(),
		Labels: m.Metadata.Labels, Annotations: m.Metadata.Annotations,
		Handler: m.Spec.RuntimeClassName, Hostname: m.Spec.Hostname,
		Namespaces: pod.Namespaces{Network: pod.NamespacePod, PID: pod.NamespaceApp, IPC: pod.NamespacePod},
		Security:   defaultSecurity(),
	}
	if p.Hostname == "" {
		p.Hostname = hostnameOf(p.Name)
	}
	if m.Spec.HostNetwork {
		// The host's name goes with its network.
		p.Namespaces.Network, p.Hostname = pod.NamespaceNode, ""
	}
	switch {
	case m.Spec.HostPID:
		p.Namespaces.PID = pod.NamespaceNode
	case m.Spec.ShareProcessNamespace:
		p.Namespaces.PID = pod.NamespacePod
	}
	if m.Spec.HostIPC {
		p.Namespaces.IPC = pod.NamespaceNode
	}
	if d := m.Spec.DNSConfig; d != nil {
		p.DNS = &pod.DNS{Servers: d.Nameservers, Searches: d.Searches}
		for _, o := range d.Options {
			if o.Value != "" {
				o.Name += ":" + o.Value
			}
			p.DNS.Options = append(p.DNS.Options, o.Name)
		}
	}
	sec := m.Spec.SecurityContext
	for _, c := range sec.Sysctls {
		if p.Sysctls == nil {
			p.Sysctls = map[string]string{}
		}
		p.Sysctls[c.Name] = c.Value
	}
	setProfiles(&p.Security, sec.Seccomp, sec.AppArmor, sec.SELinux)
	for _, c := range m.Spec.Containers {
		p.Security.Privileged = p.Security.Privileged || c.SecurityContext.Privileged
		p.Ports = append(p.Ports, portsFromManifest(c, m.Spec.HostNetwork)...)
	}
	return p
}

// portsFromManifest: without a port of the host nothing has to be mapped, and in
// the host's network there is nothing to map.
func portsFromManifest(c manifest.Container, hostNetwork bool) []pod.Port {
	var out []pod.Port
	for _, p := range c.Ports {
		if p.HostPort == 0 || hostNetwork {
			continue
		}
		protocol := pod.Protocol(strings.ToLower(p.Protocol))
		if protocol == "" {
			protocol = pod.TCP
		}
		out = append(out, pod.Port{Protocol: protocol, PodPort: p.ContainerPort, HostPort: p.HostPort, HostIP: p.HostIP})
	}
	return out
}

func setProfiles(s *pod.Security, seccomp, appArmor *manifest.Profile, label *manifest.SELinux) {
	if seccomp != nil {
		s.Seccomp = profileFromManifest(seccomp)
	}
	if appArmor != nil {
		s.AppArmor = profileFromManifest(appArmor)
	}
	if label != nil {
		s.SELinux = &pod.SELinux{User: label.User, Role: label.Role, Type: label.Type, Level: label.Level}
	}
}

func profileFromManifest(p *manifest.Profile) pod.Profile {
	switch p.Type {
	case "Unconfined":
		return pod.Profile{Kind: pod.ProfileUnconfined}
	case "Localhost":
		return pod.Profile{Kind: pod.ProfileLocalhost, Localhost: p.LocalhostProfile}
	}
	return pod.Profile{Kind: pod.ProfileRuntimeDefault}
}

const defaultGrace = 30 // seconds, as Kubernetes has it

func appFromManifest(m *manifest.Pod, c *manifest.Container, volumes map[string]manifest.Volume) (appSpec, error) {
	cmd := m.Expand(c)
	grace := int64(defaultGrace)
	if g := m.Spec.TerminationGracePeriodSeconds; g != nil {
		grace = max(*g, 1)
	}
	a := appSpec{AppSpec: engine.AppSpec{
		Name: c.Name, Image: c.Image, UserImage: c.Image,
		Command: cmd.Command, Args: cmd.Args, Env: cmd.Env, WorkDir: c.WorkingDir,
		Stdin: c.Stdin, StdinOnce: c.StdinOnce, TTY: c.TTY,
		StopTimeout: time.Duration(grace) * time.Second,
	}, Pull: pullFromManifest(c)}
	userFromManifest(&a, m.Spec.SecurityContext, c.SecurityContext)
	a.Security = securityFromManifest(m.Spec.SecurityContext, c.SecurityContext)
	var err error
	if a.Resources, err = resourcesFromManifest(c.Resources); err != nil {
		return a, fmt.Errorf("container %s: %w", c.Name, err)
	}
	for _, vm := range c.VolumeMounts {
		mount := mountFromManifest(vm)
		if h := volumes[vm.Name].HostPath; h != nil {
			mount.HostPath = h.Path
			a.Mounts = append(a.Mounts, mount)
			continue
		}
		a.VolumeMounts = append(a.VolumeMounts, volumeMount{vm.Name, mount})
	}
	return a, nil
}

// pullFromManifest applies Kubernetes' default: always for the tag latest.
func pullFromManifest(c *manifest.Container) image.PullPolicy {
	switch c.ImagePullPolicy {
	case "Always":
		return image.Always
	case "Never":
		return image.Never
	case "IfNotPresent":
		return image.IfMissing
	}
	if strings.Contains(c.Image, "@") {
		return image.IfMissing
	}
	last := c.Image[strings.LastIndexByte(c.Image, '/')+1:]
	if _, tag, ok := strings.Cut(last, ":"); ok && tag != "latest" {
		return image.IfMissing
	}
	return image.Always
}

func userFromManifest(a *appSpec, p manifest.PodSecurity, c manifest.ContainerSecurity) {
	user, group, nonRoot := firstID(c.RunAsUser, p.RunAsUser), firstID(c.RunAsGroup, p.RunAsGroup), p.RunAsNonRoot
	if c.RunAsNonRoot != nil {
		nonRoot = c.RunAsNonRoot
	}
	a.NonRoot = nonRoot != nil && *nonRoot
	if user != nil {
		a.User = strconv.FormatInt(*user, 10)
	}
	if group != nil {
		a.Group = strconv.FormatInt(*group, 10)
	}
	for _, g := range p.SupplementalGroups {
		a.Groups = append(a.Groups, uint32(g))
	}
	if p.FSGroup != nil {
		a.Groups = append(a.Groups, uint32(*p.FSGroup))
	}
	a.GroupsStrict = p.SupplementalGroupsPolicy == "Strict"
}

func firstID(ids ...*int64) *int64 {
	for _, id := range ids {
		if id != nil {
			return id
		}
	}
	return nil
}

func securityFromManifest(p manifest.PodSecurity, c manifest.ContainerSecurity) pod.Security {
	s := defaultSecurity()
	setProfiles(&s, p.Seccomp, p.AppArmor, p.SELinux)
	s.Privileged, s.ReadOnlyRootfs = c.Privileged, c.ReadOnlyRootFilesystem
	s.NoNewPrivileges = c.AllowPrivilegeEscalation != nil && !*c.AllowPrivilegeEscalation
	s.AddCaps, s.DropCaps = capNames(c.Capabilities.Add), capNames(c.Capabilities.Drop)
	if c.Privileged {
		s.Seccomp.Kind, s.AppArmor.Kind = pod.ProfileUnconfined, pod.ProfileUnconfined
	}
	if c.ProcMount == "Unmasked" {
		s.MaskedPaths, s.ReadOnlyPaths = []string{}, []string{}
	}
	setProfiles(&s, c.Seccomp, c.AppArmor, c.SELinux)
	return s
}

var errPageSize = errors.New("want a page size such as 2Mi or 1Gi")

func resourcesFromManifest(m manifest.Resources) (pod.Resources, error) {
	var r pod.Resources
	if q, ok := m.Limits["memory"]; ok {
		r.Memory, r.MemorySwap = q.Value(), q.Value()
	}
	limit, request := m.Limits["cpu"], m.Requests["cpu"]
	if _, ok := m.Requests["cpu"]; !ok {
		request = limit
	}
	setCPU(&r, limit.MilliValue(), request.MilliValue())
	for _, name := range slices.Sorted(maps.Keys(m.Limits)) {
		q := m.Limits[name]
		page, ok := strings.CutPrefix(name, "hugepages-")
		if !ok {
			continue
		}
		word, err := pageSize(page)
		if err != nil {
			return r, err
		}
		r.Hugepages = append(r.Hugepages, pod.HugepageLimit{PageSize: word, Limit: uint64(q.Value())})
	}
	return r, nil
}

// pageSize spells a size as the kernel's cgroup files do.
func pageSize(s string) (string, error) {
	q, err := manifest.ParseQuantity(s)
	if err != nil || q.Value() <= 0 {
		return "", fmt.Errorf("hugepages-%s: %w: %w", s, errPageSize, pod.ErrInvalid)
	}
	for _, u := range []struct {
		name  string
		bytes int64
	}{{"GB", 1 << 30}, {"MB", 1 << 20}, {"KB", 1 << 10}} {
		if n := q.Value(); n%u.bytes == 0 {
			return fmt.Sprintf("%d%s", n/u.bytes, u.name), nil
		}
	}
	return "", fmt.Errorf("hugepages-%s: %w: %w", s, errPageSize, pod.ErrInvalid)
}

func mountFromManifest(vm manifest.VolumeMount) pod.Mount {
	m := pod.Mount{Path: vm.MountPath, ReadOnly: vm.ReadOnly}
	m.RecursiveReadOnly = vm.RecursiveReadOnly == "Enabled" || vm.RecursiveReadOnly == "IfPossible"
	switch vm.MountPropagation {
	case "HostToContainer":
		m.Propagation = pod.PropagationSlave
	case "Bidirectional":
		m.Propagation = pod.PropagationShared
	}
	return m
}
