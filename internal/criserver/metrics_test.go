package criserver

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/pod"
)

// names are those that kubelet makes of cAdvisor's numbers for a stock CRI-O node, and
// that the CRI's own suite asks for.
const names = `container_blkio_device_usage_total container_cpu_cfs_periods_total container_cpu_cfs_throttled_periods_total
container_cpu_cfs_throttled_seconds_total container_cpu_system_seconds_total container_cpu_usage_seconds_total container_cpu_user_seconds_total
container_file_descriptors container_fs_inodes_free container_fs_inodes_total container_fs_limit_bytes container_fs_reads_bytes_total
container_fs_reads_total container_fs_usage_bytes container_fs_writes_bytes_total container_fs_writes_total container_hugetlb_max_usage_bytes
container_hugetlb_usage_bytes container_last_seen container_memory_cache container_memory_failcnt container_memory_failures_total
container_memory_kernel_usage container_memory_mapped_file container_memory_max_usage_bytes container_memory_rss container_memory_swap
container_memory_usage_bytes container_memory_working_set_bytes container_network_receive_bytes_total container_network_receive_errors_total
container_network_receive_packets_dropped_total container_network_receive_packets_total container_network_transmit_bytes_total
container_network_transmit_errors_total container_network_transmit_packets_dropped_total container_network_transmit_packets_total
container_oom_events_total container_pressure_cpu_stalled_seconds_total container_pressure_cpu_waiting_seconds_total
container_pressure_io_stalled_seconds_total container_pressure_io_waiting_seconds_total container_pressure_memory_stalled_seconds_total
container_pressure_memory_waiting_seconds_total container_processes container_sockets container_spec_cpu_period container_spec_cpu_quota
container_spec_cpu_shares container_spec_memory_limit_bytes container_spec_memory_reservation_limit_bytes
container_spec_memory_swap_limit_bytes container_start_time_seconds container_threads container_threads_max container_ulimits_soft`

func TestMetricDescriptors(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	r, err := b.ListMetricDescriptors(t.Context(), &runtimeapi.ListMetricDescriptorsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range r.Descriptors {
		got = append(got, d.Name)
		if d.Help == "" || len(d.LabelKeys) < len(baseLabels) {
			t.Errorf("%v", d)
		}
	}
	slices.Sort(got)
	if want := strings.Fields(names); !slices.Equal(got, want) {
		t.Errorf("%d names, want %d:\n%q", len(got), len(want), got)
	}
}

// TestMetrics: every sample has a descriptor, all of its labels and a value; kubelet
// breaks on one that has not.
func TestMetrics(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	ctx := t.Context()
	sandbox, down := b.run(t, "a"), b.run(t, "down")
	app := b.start(t, sandbox, func(c *runtimeapi.ContainerConfig) {
		c.Linux = &runtimeapi.LinuxContainerConfig{Resources: &runtimeapi.LinuxContainerResources{CpuQuota: 20000, CpuShares: 512}}
	})
	ended := b.start(t, sandbox, func(c *runtimeapi.ContainerConfig) { c.Metadata.Name = "ended" })
	b.engine.End(pod.ID(ended), 0, 0, pod.ReasonCompleted)
	if _, err := b.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: down}); err != nil {
		t.Fatal(err)
	}
	descriptors, err := b.ListMetricDescriptors(ctx, &runtimeapi.ListMetricDescriptorsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string][]string{}
	for _, d := range descriptors.Descriptors {
		keys[d.Name] = d.LabelKeys
	}
	list, err := b.ListPodSandboxMetrics(ctx, &runtimeapi.ListPodSandboxMetricsRequest{})
	if err != nil || len(list.PodMetrics) != 1 || len(list.PodMetrics[0].ContainerMetrics) != 1 {
		t.Fatalf("list: %v, %v", list, err)
	}
	p := list.PodMetrics[0]
	if p.PodSandboxId != sandbox || p.ContainerMetrics[0].ContainerId != app {
		t.Errorf("of pod %s, app %s", p.PodSandboxId, p.ContainerMetrics[0].ContainerId)
	}
	got := map[string]uint64{}
	for _, m := range slices.Concat(p.Metrics, p.ContainerMetrics[0].Metrics) {
		if len(m.LabelValues) != len(keys[m.Name]) || m.Value == nil || m.Timestamp != 0 {
			t.Errorf("%v, labels %q", m, keys[m.Name])
			continue
		}
		if slices.Contains(m.LabelValues, "lo") {
			t.Errorf("the loopback is counted: %v", m)
		}
		got[labelled(m, keys[m.Name])] = m.Value.Value
	}
	ofApp := `{container="web",id="/pod.slice/` + app + `",image="web:1",name="` + app + `",namespace="default",pod="a"`
	ofPod := `{container="POD",id="/pod.slice",image="",name="` + sandbox + `",namespace="default",pod="a"`
	for want, value := range map[string]uint64{
		"container_cpu_usage_seconds_total" + ofApp + `,cpu="total"}`:                                               5,
		"container_cpu_cfs_throttled_seconds_total" + ofApp + "}":                                                   7,
		"container_memory_working_set_bytes" + ofApp + "}":                                                          2 << 20,
		"container_memory_failures_total" + ofApp + `,failure_type="pgmajfault",scope="hierarchy"}`:                 0,
		"container_memory_max_usage_bytes" + ofApp + "}":                                                            14,
		"container_hugetlb_usage_bytes" + ofApp + `,pagesize="2MB"}`:                                                4 << 20,
		"container_hugetlb_max_usage_bytes" + ofApp + `,pagesize="2MB"}`:                                            6 << 20,
		"container_pressure_cpu_waiting_seconds_total" + ofApp + "}":                                                0,
		"container_sockets" + ofApp + "}":                                                                           19,
		"container_ulimits_soft" + ofApp + `,ulimit="max_open_files"}`:                                              1024,
		"container_fs_usage_bytes" + ofApp + `,device="/dev/vda"}`:                                                  4096,
		"container_fs_writes_total" + ofApp + `,device="/dev/vda"}`:                                                 23,
		"container_blkio_device_usage_total" + ofApp + `,device="/dev/vda",major="254",minor="1",operation="Read"}`: 20,
		"container_spec_cpu_quota" + ofApp + "}":                                                                    20000,
		"container_spec_cpu_shares" + ofApp + "}":                                                                   512,
		"container_spec_cpu_period" + ofApp + "}":                                                                   100000,
		"container_spec_memory_limit_bytes" + ofApp + "}":                                                           8 << 20,
		"container_network_receive_packets_dropped_total" + ofPod + `,interface="eth0"}`:                            4,
		"container_network_transmit_bytes_total" + ofPod + `,interface="eth0"}`:                                     50,
		"container_network_receive_bytes_total" + ofPod + `,interface="net1"}`:                                      1,
	} {
		if n, ok := got[want]; !ok || n != value {
			t.Errorf("%s is %d (%v), want %d", want, n, ok, value)
		}
	}
	if _, ok := got["container_pressure_memory_waiting_seconds_total"+ofApp+"}"]; ok {
		t.Error("there is a value of what the kernel does not tell")
	}
	in, err := b.StreamPodSandboxMetrics(ctx, &runtimeapi.StreamPodSandboxMetricsRequest{})
	drain(t, in, err, func(m *runtimeapi.StreamPodSandboxMetricsResponse) {
		if len(m.PodSandboxMetrics) != 1 || m.PodSandboxMetrics[0].PodSandboxId != sandbox {
			t.Errorf("streamed: %v", m)
		}
	})
}

// labelled writes a sample's name as Prometheus does.
func labelled(m *runtimeapi.Metric, keys []string) string {
	var pairs []string
	for i, k := range keys {
		pairs = append(pairs, fmt.Sprintf("%s=%q", k, m.LabelValues[i]))
	}
	return m.Name + "{" + strings.Join(pairs, ",") + "}"
}
