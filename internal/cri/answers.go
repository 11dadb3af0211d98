package cri

// answers are messages that no request is made of.
func answers() map[string]Field {
	m := lines{
		"PodSandboxStats.windows":    {Empty, notLinux},
		"ContainerResources.windows": {Empty, notLinux},
		"Metric.timestamp":           {Empty, "all is as of the answer, but for the size of a large writable layer, which may be older"},
	}
	for _, name := range []string{
		"WindowsPodSandboxStats", "WindowsCpuUsage", "WindowsMemoryUsage", "WindowsNetworkUsage", "WindowsNetworkInterfaceUsage",
		"WindowsProcessUsage", "WindowsContainerStats", "WindowsFilesystemUsage",
	} {
		m[name+"."+All] = Field{Empty, notLinux}
	}
	m.ofPods()
	m.ofContainers()
	m.ofTheNode()
	m.ofNumbers()
	return m
}

func (l lines) ofPods() {
	l.told("RunPodSandboxResponse", "pod_sandbox_id")
	l.told("PodSandboxStatusResponse", "status", "info", "containers_statuses", "timestamp")
	l.told("PodSandboxStatus", "id", "metadata", "state", "created_at", "network", "linux", "labels", "annotations", "runtime_handler")
	l.told("PodSandboxNetworkStatus", "ip", "additional_ips")
	l.told("PodIP", "ip")
	l.told("LinuxPodSandboxStatus", "namespaces")
	l.told("Namespace", "options")
	l.told("ListPodSandboxResponse", "items")
	l.told("StreamPodSandboxesResponse", "pod_sandboxes")
	l.told("PodSandbox", "id", "metadata", "state", "created_at", "labels", "annotations", "runtime_handler")
	l.told("ContainerEventResponse", "container_id", "container_event_type", "created_at", "pod_sandbox_status", "containers_statuses")
}

func (l lines) ofContainers() {
	l.told("CreateContainerResponse", "container_id")
	l.told("ListContainersResponse", "containers")
	l.told("StreamContainersResponse", "containers")
	l.told("Container", "id", "pod_sandbox_id", "metadata", "image", "image_ref", "state", "created_at", "labels", "annotations", "image_id")
	l.told("ContainerStatusResponse", "status", "info")
	l.told("ContainerStatus", "id", "metadata", "state", "created_at", "started_at", "finished_at", "exit_code", "image", "image_ref", "reason",
		"message", "labels", "annotations", "mounts", "log_path", "resources", "image_id", "user", "stop_signal")
	l.told("ContainerResources", "linux")
	l.told("ContainerUser", "linux")
	l.told("LinuxContainerUser", "uid", "gid", "supplemental_groups")
	l.told("ExecSyncResponse", "stdout", "stderr", "exit_code")
	for _, name := range []string{"ExecResponse", "AttachResponse", "PortForwardResponse"} {
		l.told(name, "url")
	}
}

func (l lines) ofTheNode() {
	l.told("VersionResponse", "version", "runtime_name", "runtime_version", "runtime_api_version")
	l.told("StatusResponse", "status", "info", "runtime_handlers", "features")
	l.told("RuntimeStatus", "conditions")
	l.told("RuntimeCondition", "type", "status", "reason", "message")
	l.told("RuntimeHandler", "name", "features")
	l.told("RuntimeHandlerFeatures", "recursive_read_only_mounts", "user_namespaces")
	l.told("RuntimeFeatures", "supplemental_groups_policy", "user_namespaces_host_network", "mount_options")
	l.told("RuntimeConfigResponse", "linux")
	l.told("LinuxRuntimeConfiguration", "cgroup_driver")
	l.told("PullImageResponse", "image_ref")
	l.told("ImageStatusResponse", "image", "info")
	l.told("ListImagesResponse", "images")
	l.told("StreamImagesResponse", "images")
	l.told("Image", "id", "repo_tags", "repo_digests", "size", "uid", "username", "spec", "pinned")
	l.told("ImageFsInfoResponse", "image_filesystems", "container_filesystems")
}

func (l lines) ofNumbers() {
	l.told("ContainerStatsResponse", "stats")
	l.told("ListContainerStatsResponse", "stats")
	l.told("StreamContainerStatsResponse", "container_stats")
	l.told("ContainerStats", "attributes", "cpu", "memory", "writable_layer", "swap", "io")
	l.told("ContainerAttributes", "id", "metadata", "labels", "annotations")
	l.told("PodSandboxStatsResponse", "stats")
	l.told("ListPodSandboxStatsResponse", "stats")
	l.told("StreamPodSandboxStatsResponse", "pod_sandbox_stats")
	l.told("PodSandboxStats", "attributes", "linux")
	l.told("PodSandboxAttributes", "id", "metadata", "labels", "annotations")
	l.told("LinuxPodSandboxStats", "cpu", "memory", "network", "process", "containers", "io")
	l.told("NetworkUsage", "timestamp", "default_interface", "interfaces")
	l.told("NetworkInterfaceUsage", "name", "rx_bytes", "rx_errors", "tx_bytes", "tx_errors")
	l.told("ProcessUsage", "timestamp", "process_count")
	l.told("CpuUsage", "timestamp", "usage_core_nano_seconds", "usage_nano_cores", "psi")
	l.told("MemoryUsage", "timestamp", "working_set_bytes", "available_bytes", "usage_bytes", "rss_bytes", "page_faults", "major_page_faults", "psi")
	l.told("IoUsage", "timestamp", "psi")
	l.told("SwapUsage", "timestamp", "swap_available_bytes", "swap_usage_bytes")
	l.told("PsiStats", "Full", "Some")
	l.told("PsiData", "Total", "Avg10", "Avg60", "Avg300")
	l.told("FilesystemUsage", "timestamp", "fs_id", "used_bytes", "inodes_used")
	l.told("FilesystemIdentifier", "mountpoint")
	l.told("UInt64Value", "value")
	l.told("ListMetricDescriptorsResponse", "descriptors")
	l.told("MetricDescriptor", "name", "help", "label_keys")
	l.told("ListPodSandboxMetricsResponse", "pod_metrics")
	l.told("StreamPodSandboxMetricsResponse", "pod_sandbox_metrics")
	l.told("PodSandboxMetrics", "pod_sandbox_id", "metrics", "container_metrics")
	l.told("ContainerMetrics", "container_id", "metrics")
	l.told("Metric", "name", "metric_type", "label_values", "value")
}
