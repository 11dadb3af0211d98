package cri

import (
	"maps"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// Disposition is what becomes of a field.
type Disposition int

// The dispositions of fields of requests.
const (
	// Honoured fields have the effect that the CRI describes.
	Honoured Disposition = iota + 1
	// Refused fields are an error when they are set.
	Refused
	// Noted fields are accepted and have nothing to act on; Why tells the reason.
	Noted
)

// The dispositions of fields that are in answers alone.
const (
	// Told fields have a value where there is something to tell.
	Told Disposition = iota + Noted + 1
	// Empty fields are never set; Why tells the reason.
	Empty
)

// Field is a line of the table: a field of a message and what becomes of it.
type Field struct {
	Disposition Disposition
	Why         string // for Refused, Noted and Empty
}

// All stands for all fields of a message in the table.
const All = "all"

const (
	notLinux   = "this node runs Linux"
	noProcess  = "a sandbox has no process of its own, and containers carry their own"
	hint       = "a hint for other runtimes"
	outputOnly = "only meant for answers"
)

// Fields returns the table: message.field -> what becomes of it, for everything that
// requests and answers are made of. A message that is in both stands with what becomes
// of it in a request. The text "as honoured" and "as told" is proved by tests that change
// each field and look for a difference, or look for each in answers.
func Fields() map[string]Field {
	m := requests()
	maps.Copy(m, answers())
	return m
}

// Lookup finds the line of a field.
func Lookup(table map[string]Field, fd protoreflect.FieldDescriptor) (Field, bool) {
	f, ok := table[key(fd)]
	if !ok {
		f, ok = table[string(fd.ContainingMessage().Name())+"."+All]
	}
	return f, ok
}

func key(fd protoreflect.FieldDescriptor) string {
	return string(fd.ContainingMessage().Name()) + "." + string(fd.Name())
}

// lines puts fields of messages into the table.
type lines map[string]Field

func (l lines) honoured(message string, names ...string) { l.put(Field{Honoured, ""}, message, names) }
func (l lines) told(message string, names ...string)     { l.put(Field{Told, ""}, message, names) }

func (l lines) put(f Field, message string, names []string) {
	for _, n := range names {
		l[message+"."+n] = f
	}
}

func requests() map[string]Field {
	m := lines{
		"VersionRequest.version":                      {Noted, "there is one version"},
		"CreateContainerRequest.sandbox_config":       {Noted, "it repeats what RunPodSandbox was given, and the pod's record counts"},
		"PullImageRequest.sandbox_config":             {Noted, "there are no policies by namespace"},
		"UpdateContainerResourcesRequest.annotations": {Noted, "no key of it has a meaning here"},
		"UpdateContainerResourcesRequest.windows":     {Refused, notLinux},
		"PodSandboxConfig.windows":                    {Refused, notLinux},
		"ContainerConfig.windows":                     {Refused, notLinux},
		"ImageSpec.annotations":                       {Noted, hint},
		"ImageSpec.image_ref":                         {Noted, outputOnly},
	}
	for _, name := range []string{
		"WindowsPodSandboxConfig", "WindowsSandboxSecurityContext", "WindowsNamespaceOption", "WindowsContainerConfig",
		"WindowsContainerSecurityContext", "WindowsContainerResources", "WindowsCpuGroupAffinity",
	} {
		m[name+"."+All] = Field{Refused, notLinux}
	}
	m.put(Field{Noted, noProcess}, "LinuxSandboxSecurityContext",
		[]string{"run_as_user", "run_as_group", "readonly_rootfs", "supplemental_groups", "supplemental_groups_policy", "seccomp", "apparmor", "seccomp_profile_path"})
	m.calls()
	m.configurations()
	return m
}

// calls are the requests themselves.
func (l lines) calls() {
	l.honoured("RunPodSandboxRequest", "config", "runtime_handler")
	for _, name := range []string{"StopPodSandboxRequest", "RemovePodSandboxRequest", "PodSandboxStatsRequest"} {
		l.honoured(name, "pod_sandbox_id")
	}
	l.honoured("PodSandboxStatusRequest", "pod_sandbox_id", "verbose")
	l.honoured("UpdatePodSandboxResourcesRequest", "pod_sandbox_id", "overhead", "resources")
	l.honoured("PodSandboxFilter", "id", "state", "label_selector")
	l.honoured("PodSandboxStateValue", "state")
	l.honoured("PodSandboxStatsFilter", "id", "label_selector")
	l.honoured("CreateContainerRequest", "pod_sandbox_id", "config")
	for _, name := range []string{"StartContainerRequest", "RemoveContainerRequest", "ReopenContainerLogRequest", "ContainerStatsRequest"} {
		l.honoured(name, "container_id")
	}
	l.honoured("StopContainerRequest", "container_id", "timeout")
	l.honoured("ContainerStatusRequest", "container_id", "verbose")
	l.honoured("UpdateContainerResourcesRequest", "container_id", "linux")
	l.honoured("CheckpointContainerRequest", "container_id", "location", "timeout")
	l.honoured("ContainerFilter", "id", "state", "pod_sandbox_id", "label_selector")
	l.honoured("ContainerStateValue", "state")
	l.honoured("ContainerStatsFilter", "id", "pod_sandbox_id", "label_selector")
	for _, name := range []string{
		"ListPodSandboxRequest", "StreamPodSandboxesRequest", "ListPodSandboxStatsRequest", "StreamPodSandboxStatsRequest", "ListContainersRequest",
		"StreamContainersRequest", "ListContainerStatsRequest", "StreamContainerStatsRequest", "ListImagesRequest", "StreamImagesRequest",
	} {
		l.honoured(name, "filter")
	}
	l.honoured("ExecSyncRequest", "container_id", "cmd", "timeout")
	l.honoured("ExecRequest", "container_id", "cmd", "tty", "stdin", "stdout", "stderr")
	l.honoured("AttachRequest", "container_id", "stdin", "tty", "stdout", "stderr")
	l.honoured("PortForwardRequest", "pod_sandbox_id", "port")
	l.honoured("ImageFilter", "image")
	l.honoured("ImageStatusRequest", "image", "verbose")
	l.honoured("PullImageRequest", "image", "auth")
	l.honoured("RemoveImageRequest", "image")
	l.honoured("AuthConfig", "username", "password", "auth", "server_address", "identity_token", "registry_token")
	l.honoured("StatusRequest", "verbose")
	l.honoured("UpdateRuntimeConfigRequest", "runtime_config")
	l.honoured("RuntimeConfig", "network_config")
	l.honoured("NetworkConfig", "pod_cidr")
}

// configurations are what PodSandboxConfig and ContainerConfig are made of.
func (l lines) configurations() {
	l.honoured("PodSandboxConfig", "metadata", "hostname", "log_directory", "dns_config", "port_mappings", "labels", "annotations", "linux")
	l.honoured("PodSandboxMetadata", "name", "uid", "namespace", "attempt")
	l.honoured("DNSConfig", "servers", "searches", "options")
	l.honoured("PortMapping", "protocol", "container_port", "host_port", "host_ip")
	l.honoured("LinuxPodSandboxConfig", "cgroup_parent", "security_context", "sysctls", "overhead", "resources")
	l.honoured("LinuxSandboxSecurityContext", "namespace_options", "selinux_options", "privileged")
	l.honoured("SecurityProfile", "profile_type", "localhost_ref")
	l.honoured("SELinuxOption", "user", "role", "type", "level")
	l.honoured("NamespaceOption", "network", "pid", "ipc", "target_id", "userns_options")
	l.honoured("UserNamespace", "mode", "uids", "gids")
	l.honoured("IDMapping", "host_id", "container_id", "length")
	l.honoured("LinuxContainerResources", "cpu_period", "cpu_quota", "cpu_shares", "memory_limit_in_bytes", "oom_score_adj",
		"cpuset_cpus", "cpuset_mems", "hugepage_limits", "unified", "memory_swap_limit_in_bytes")
	l.honoured("HugepageLimit", "page_size", "limit")
	l.honoured("Int64Value", "value")
	l.honoured("ContainerConfig", "metadata", "image", "command", "args", "working_dir", "envs", "mounts", "devices", "labels",
		"annotations", "log_path", "stdin", "stdin_once", "tty", "linux", "stop_signal", "CDI_devices")
	l.honoured("CDIDevice", "name")
	l.honoured("ContainerMetadata", "name", "attempt")
	l.honoured("ImageSpec", "image", "user_specified_image", "runtime_handler")
	l.honoured("KeyValue", "key", "value")
	l.honoured("Mount", "container_path", "host_path", "readonly", "selinux_relabel", "propagation", "uidMappings", "gidMappings",
		"recursive_read_only", "image", "image_sub_path", "mount_options")
	l.honoured("Device", "container_path", "host_path", "permissions")
	l.honoured("LinuxContainerConfig", "resources", "security_context")
	l.honoured("LinuxContainerSecurityContext", "capabilities", "privileged", "namespace_options", "selinux_options", "run_as_user",
		"run_as_group", "run_as_username", "readonly_rootfs", "supplemental_groups", "supplemental_groups_policy", "no_new_privs",
		"masked_paths", "readonly_paths", "seccomp", "apparmor", "apparmor_profile", "seccomp_profile_path")
	l.honoured("Capability", "add_capabilities", "drop_capabilities", "add_ambient_capabilities")
}
