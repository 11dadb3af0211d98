package cri

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/cri/critest"
	"gantry/internal/pod"
)

func TestPod(t *testing.T) {
	t.Parallel()
	got, err := Pod(critest.Sandbox(), "oci")
	if err != nil {
		t.Fatal(err)
	}
	limits := pod.Resources{
		CPUPeriod: 100000, CPUQuota: 50000, CPUShares: 512, CPUSet: "0-1", MemorySet: "0", Memory: 64 << 20, MemorySwap: 128 << 20,
		OOMScoreAdj: 900, Hugepages: []pod.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}}, Unified: map[string]string{"memory.oom.group": "1"},
	}
	want := pod.Pod{
		Owner: pod.OwnerCRI, Name: "web", Namespace: "default", UID: "uid-1", Attempt: 2, Handler: "oci",
		Labels: map[string]string{"app": "web"}, Annotations: map[string]string{"note": "text"},
		Hostname: "web", LogDirectory: "/var/log/pods/default_web_uid-1",
		DNS:          &pod.DNS{Servers: []string{"10.0.0.10"}, Searches: []string{"svc.local"}, Options: []string{"ndots:5"}},
		Ports:        []pod.Port{{Protocol: pod.TCP, PodPort: 80, HostPort: 8080, HostIP: "127.0.0.1"}},
		CgroupParent: "/kubepods.slice/kubepods-pod1.slice",
		Namespaces: pod.Namespaces{Network: pod.NamespacePod, PID: pod.NamespaceApp, IPC: pod.NamespacePod, User: &pod.UserNS{
			UIDs: []pod.IDMap{{Host: 65536, Length: 65536}}, GIDs: []pod.IDMap{{Host: 65536, Length: 65536}},
		}},
		Sysctls: map[string]string{"net.core.somaxconn": "1024"},
		Security: pod.Security{
			SELinux: &pod.SELinux{User: "system_u", Role: "system_r", Type: "container_t", Level: "s0:c1,c2"},
		},
		PodResources: pod.PodResources{Resources: &limits, Overhead: &limits},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestPodOfAnEmptyRequest(t *testing.T) {
	t.Parallel()
	got, err := Pod(&runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "a", Namespace: "b", Uid: "c"}}, "")
	if err != nil {
		t.Fatal(err)
	}
	want := pod.Pod{
		Owner: pod.OwnerCRI, Name: "a", Namespace: "b", UID: "c",
		Namespaces: pod.Namespaces{Network: pod.NamespacePod, PID: pod.NamespacePod, IPC: pod.NamespacePod},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestPodRefuses(t *testing.T) {
	t.Parallel()
	ns := func(c *runtimeapi.PodSandboxConfig) *runtimeapi.NamespaceOption {
		return c.Linux.SecurityContext.NamespaceOptions
	}
	node := runtimeapi.NamespaceMode_NODE
	for name, c := range map[string]struct {
		change func(*runtimeapi.PodSandboxConfig)
		want   string
	}{
		"no name":      {func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Name = "" }, "config.metadata.name"},
		"no namespace": {func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Namespace = "" }, "config.metadata.namespace"},
		"no uid":       {func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Uid = "" }, "config.metadata.uid"},
		"no metadata":  {func(c *runtimeapi.PodSandboxConfig) { c.Metadata = nil }, "config.metadata.name"},
		"a hostname in the host's network": {func(c *runtimeapi.PodSandboxConfig) {
			ns(c).Network, ns(c).UsernsOptions, c.Linux.Sysctls = node, nil, nil
		}, "config.hostname"},
		"a long hostname":      {func(c *runtimeapi.PodSandboxConfig) { c.Hostname = strings.Repeat("a", 65) }, "config.hostname"},
		"a hostname of a path": {func(c *runtimeapi.PodSandboxConfig) { c.Hostname = "a/b" }, "config.hostname"},
		"a relative log path":  {func(c *runtimeapi.PodSandboxConfig) { c.LogDirectory = "a" }, "config.log_directory"},
		"a climbing log path":  {func(c *runtimeapi.PodSandboxConfig) { c.LogDirectory = "/a/../b" }, "config.log_directory"},
		"cgroupfs":             {func(c *runtimeapi.PodSandboxConfig) { c.Linux.CgroupParent = "/kubepods/pod1" }, "config.linux.cgroup_parent"},
		"two lines in dns":     {func(c *runtimeapi.PodSandboxConfig) { c.DnsConfig.Options[0] = "a\nb" }, "config.dns_config.options[0]"},
		"port 0":               {func(c *runtimeapi.PodSandboxConfig) { c.PortMappings[0].ContainerPort = 0 }, "config.port_mappings[0].container_port"},
		"host port 65536":      {func(c *runtimeapi.PodSandboxConfig) { c.PortMappings[0].HostPort = 65536 }, "config.port_mappings[0].host_port"},
		"host ip":              {func(c *runtimeapi.PodSandboxConfig) { c.PortMappings[0].HostIp = "x" }, "config.port_mappings[0].host_ip"},
		"net sysctl of the host": {
			func(c *runtimeapi.PodSandboxConfig) { ns(c).Network, ns(c).UsernsOptions, c.Hostname = node, nil, "" },
			"config.linux.sysctls",
		},
		"ipc sysctl of the host": {func(c *runtimeapi.PodSandboxConfig) {
			ns(c).Ipc, ns(c).UsernsOptions, c.Linux.Sysctls = node, nil, map[string]string{"kernel.shmmax": "1"}
		}, "config.linux.sysctls"},
		"target":                 {func(c *runtimeapi.PodSandboxConfig) { ns(c).Pid = runtimeapi.NamespaceMode_TARGET }, "namespace_options.target_id"},
		"a network of its own":   {func(c *runtimeapi.PodSandboxConfig) { ns(c).Network = runtimeapi.NamespaceMode_CONTAINER }, "namespace_options.network"},
		"user ns and host pid":   {func(c *runtimeapi.PodSandboxConfig) { ns(c).Pid = node }, "namespace_options.userns_options"},
		"user ns without root":   {func(c *runtimeapi.PodSandboxConfig) { both(c, func(m *runtimeapi.IDMapping) { m.ContainerId = 1 }) }, "container_id"},
		"user ns of length 0":    {func(c *runtimeapi.PodSandboxConfig) { both(c, func(m *runtimeapi.IDMapping) { m.Length = 0 }) }, "userns_options.uids"},
		"user ns past the end":   {func(c *runtimeapi.PodSandboxConfig) { both(c, func(m *runtimeapi.IDMapping) { m.HostId = 1<<32 - 1 }) }, "userns_options.uids"},
		"user ns with two maps":  {func(c *runtimeapi.PodSandboxConfig) { u := ns(c).UsernsOptions; u.Uids = append(u.Uids, u.Uids[0]) }, "userns_options"},
		"user ns with no maps":   {func(c *runtimeapi.PodSandboxConfig) { ns(c).UsernsOptions.Uids, ns(c).UsernsOptions.Gids = nil, nil }, "userns_options"},
		"mapped user ns of node": {func(c *runtimeapi.PodSandboxConfig) { ns(c).UsernsOptions.Mode = node }, "userns_options.uids"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config := critest.Sandbox()
			c.change(config)
			_, err := Pod(config, "")
			if !errors.Is(err, pod.ErrInvalid) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %s refused", err, c.want)
			}
		})
	}
}

func both(c *runtimeapi.PodSandboxConfig, f func(*runtimeapi.IDMapping)) {
	u := c.Linux.SecurityContext.NamespaceOptions.UsernsOptions
	f(u.Uids[0])
	f(u.Gids[0])
}

func TestNamespacesThereAndBack(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]*runtimeapi.NamespaceOption{
		"the pod's":   {},
		"the host's":  {Network: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_NODE, Ipc: runtimeapi.NamespaceMode_NODE},
		"kubelet's":   {Pid: runtimeapi.NamespaceMode_CONTAINER},
		"user's, too": critest.Sandbox().Linux.SecurityContext.NamespaceOptions,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ns, err := sandboxNamespaces("f", o)
			if err != nil {
				t.Fatal(err)
			}
			if got := FromNamespaces(ns); got.String() != o.String() {
				t.Errorf("got %v, want %v", got, o)
			}
		})
	}
}

func TestNamespacesOfAContainer(t *testing.T) {
	t.Parallel()
	const id = pod.ID("aaaaaaaaaaaaaaaaaaaaaaaa")
	own := pod.Namespaces{Network: pod.NamespacePod, PID: pod.NamespaceApp, IPC: pod.NamespacePod}
	shared := pod.Namespaces{Network: pod.NamespacePod, PID: pod.NamespacePod, IPC: pod.NamespacePod}
	host := pod.Namespaces{Network: pod.NamespaceNode, PID: pod.NamespaceNode, IPC: pod.NamespaceNode}
	with := func(ns pod.Namespaces, pid pod.NamespaceMode, target pod.ID) pod.Namespaces {
		ns.PID, ns.Target = pid, target
		return ns
	}
	mode := func(n string) runtimeapi.NamespaceMode {
		return runtimeapi.NamespaceMode(runtimeapi.NamespaceMode_value[n])
	}
	for name, c := range map[string]struct {
		in   *runtimeapi.NamespaceOption
		of   pod.Namespaces
		want pod.Namespaces
		err  string
	}{
		"none":                   {nil, host, pod.Namespaces{}, ""},
		"as the pod":             {&runtimeapi.NamespaceOption{}, shared, shared, ""},
		"as the pod in the host": {&runtimeapi.NamespaceOption{}, host, host, ""},
		"its own PIDs":           {&runtimeapi.NamespaceOption{Pid: mode("CONTAINER")}, shared, own, ""},
		"another's PIDs":         {&runtimeapi.NamespaceOption{Pid: mode("TARGET"), TargetId: string(id)}, own, with(own, pod.NamespaceTarget, id), ""},
		"nobody's PIDs":          {&runtimeapi.NamespaceOption{Pid: mode("TARGET")}, own, pod.Namespaces{}, "target_id"},
		"a target unasked":       {&runtimeapi.NamespaceOption{TargetId: string(id)}, own, pod.Namespaces{}, "target_id"},
		"the host's PIDs":        {&runtimeapi.NamespaceOption{Pid: mode("NODE")}, own, pod.Namespaces{}, "pid"},
		"the host's network":     {&runtimeapi.NamespaceOption{Network: mode("NODE")}, own, pod.Namespaces{}, "network"},
		"a network of its own":   {&runtimeapi.NamespaceOption{Network: mode("CONTAINER")}, own, pod.Namespaces{}, "network"},
		"the host's IPC":         {&runtimeapi.NamespaceOption{Ipc: mode("NODE")}, own, pod.Namespaces{}, "ipc"},
		"all of the host":        {FromNamespaces(host), host, host, ""},
		"users of its own":       {&runtimeapi.NamespaceOption{UsernsOptions: critest.Sandbox().Linux.SecurityContext.NamespaceOptions.UsernsOptions}, own, pod.Namespaces{}, "userns_options"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := Namespaces("f", c.in, c.of)
			if c.err != "" {
				if !errors.Is(err, pod.ErrInvalid) || !strings.HasPrefix(err.Error(), "f."+c.err+":") {
					t.Errorf("got %v, want %s refused", err, c.err)
				}
				return
			}
			if diff := cmp.Diff(c.want, got); err != nil || diff != "" {
				t.Errorf("%v (-want +got)\n%s", err, diff)
			}
		})
	}
}
