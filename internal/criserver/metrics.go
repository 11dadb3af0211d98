package criserver

import (
	"context"
	"slices"
	"strconv"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/cri"
	"gantry/internal/engine"
	"gantry/internal/network"
	"gantry/internal/pod"
)

// Metrics have the names, labels and meanings of those that kubelet makes itself where
// the runtime gives none, so that dashboards made for these go on. Values are whole
// numbers, as the CRI wants them: seconds are cut off.

// baseLabels are on every metric, in this order.
var baseLabels = []string{"container", "id", "image", "name", "namespace", "pod"}

// podContainer is the label container of what is a pod's and no container's.
const podContainer = "POD"

const counter, gauge = runtimeapi.MetricType_COUNTER, runtimeapi.MetricType_GAUGE

// metric is a family: its descriptor, and how its samples are got of S.
type metric[S any] struct {
	name, help string
	kind       runtimeapi.MetricType
	labels     []string // besides the base ones
	read       func(S) []sample
}

// sample is a value, with one for each of the family's own labels.
type sample struct {
	value  uint64
	labels []string
}

func (m metric[S]) descriptor() *runtimeapi.MetricDescriptor {
	return &runtimeapi.MetricDescriptor{Name: m.name, Help: m.help, LabelKeys: slices.Concat(baseLabels, m.labels)}
}

func (m metric[S]) of(subject S, base []string) (out []*runtimeapi.Metric) {
	for _, s := range m.read(subject) {
		out = append(out, &runtimeapi.Metric{
			Name: m.name, MetricType: m.kind, LabelValues: slices.Concat(base, s.labels), Value: number(s.value),
		})
	}
	return out
}

// measured is an app with what it uses.
type measured struct {
	app pod.AppStatus
	m   engine.Metrics
}

func (s *runtimeService) ListMetricDescriptors(context.Context, *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	resp := &runtimeapi.ListMetricDescriptorsResponse{}
	for _, m := range appMetrics() {
		resp.Descriptors = append(resp.Descriptors, m.descriptor())
	}
	for _, m := range interfaceMetrics() {
		resp.Descriptors = append(resp.Descriptors, m.descriptor())
	}
	return resp, nil
}

// ListPodSandboxMetrics tells of the pods that are ready and of their containers that
// run.
func (s *runtimeService) ListPodSandboxMetrics(ctx context.Context, _ *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	all, err := s.pods()
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ListPodSandboxMetricsResponse{}
	ready := cri.Pods(all, &runtimeapi.PodSandboxFilter{State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}})
	families, interfaces := appMetrics(), interfaceMetrics()
	s.cfg.Engine.MeasureLayers(runningApps(ready...))
	for _, p := range ready {
		one := &runtimeapi.PodSandboxMetrics{PodSandboxId: string(p.ID)}
		stats, err := s.cfg.Engine.PodStats(ctx, p.ID)
		left, err := s.leftOut(ctx, "pod", p.ID, err)
		if err != nil {
			return nil, err
		}
		if left {
			continue
		}
		base := []string{podContainer, stats.Cgroup, "", string(p.ID), p.Namespace, p.Name}
		for _, m := range interfaces {
			one.Metrics = append(one.Metrics, m.of(withoutLoopback(stats.Interfaces), base)...)
		}
		if one.ContainerMetrics, err = s.containerMetrics(ctx, p, families); err != nil {
			return nil, err
		}
		resp.PodMetrics = append(resp.PodMetrics, one)
	}
	return resp, nil
}

func (s *Server) containerMetrics(ctx context.Context, p pod.PodStatus, families []metric[measured]) (out []*runtimeapi.ContainerMetrics, err error) {
	for _, a := range runningApps(p) {
		got, err := s.cfg.Engine.AppMetrics(ctx, a.ID)
		left, err := s.leftOut(ctx, "app", a.ID, err)
		if err != nil {
			return nil, err
		}
		if left {
			continue
		}
		one := &runtimeapi.ContainerMetrics{ContainerId: string(a.ID)}
		base := []string{a.Name, got.Cgroup, a.Image.Name, string(a.ID), p.Namespace, p.Name}
		for _, m := range families {
			one.Metrics = append(one.Metrics, m.of(measured{a, got}, base)...)
		}
		out = append(out, one)
	}
	return out, nil
}

// value makes a family of one sample.
func value[S any](name string, kind runtimeapi.MetricType, help string, read func(S) uint64) metric[S] {
	return metric[S]{name, help, kind, nil, func(s S) []sample { return []sample{{value: read(s)}} }}
}

func appMetrics() []metric[measured] {
	return slices.Concat(cpuMetrics(), memoryMetrics(), pressureMetrics(), processMetrics(), diskMetrics(), specMetrics())
}

func cpuMetrics() []metric[measured] {
	return []metric[measured]{
		{"container_cpu_usage_seconds_total", "CPU time consumed, in seconds", counter, []string{"cpu"}, func(s measured) []sample {
			return []sample{{wholeSeconds(s.m.CPUNanos), []string{"total"}}}
		}},
		value("container_cpu_user_seconds_total", counter, "CPU time consumed in user mode, in seconds", func(s measured) uint64 { return wholeSeconds(s.m.CPUUserNanos) }),
		value("container_cpu_system_seconds_total", counter, "CPU time consumed in the kernel, in seconds", func(s measured) uint64 { return wholeSeconds(s.m.CPUSystemNanos) }),
		value("container_cpu_cfs_periods_total", counter, "Periods of the CPU limit that have passed", func(s measured) uint64 { return s.m.Periods }),
		value("container_cpu_cfs_throttled_periods_total", counter, "Periods in which the CPU limit was reached", func(s measured) uint64 { return s.m.ThrottledPeriods }),
		value("container_cpu_cfs_throttled_seconds_total", counter, "Time held back by the CPU limit, in seconds", func(s measured) uint64 { return wholeSeconds(s.m.ThrottledNanos) }),
	}
}

func memoryMetrics() []metric[measured] {
	return []metric[measured]{
		value("container_memory_usage_bytes", gauge, "Memory in use, whatever for", func(s measured) uint64 { return s.m.MemoryUsage }),
		value("container_memory_working_set_bytes", gauge, "Memory in use that could not be taken back at once", func(s measured) uint64 { return s.m.MemoryWorkingSet }),
		value("container_memory_rss", gauge, "Anonymous memory", func(s measured) uint64 { return s.m.MemoryRSS }),
		value("container_memory_cache", gauge, "Page cache", func(s measured) uint64 { return s.m.MemoryCache }),
		value("container_memory_mapped_file", gauge, "Files mapped into memory", func(s measured) uint64 { return s.m.MemoryMapped }),
		value("container_memory_kernel_usage", gauge, "Memory of the kernel on the container's behalf", func(s measured) uint64 { return s.m.MemoryKernel }),
		value("container_memory_swap", gauge, "Swap in use", func(s measured) uint64 { return s.m.SwapUsage }),
		value("container_memory_max_usage_bytes", gauge, "The most memory that was in use", func(s measured) uint64 { return s.m.MemoryPeak }),
		value("container_memory_failcnt", counter, "How often the memory limit was reached", func(s measured) uint64 { return s.m.MemoryLimitHits }),
		value("container_oom_events_total", counter, "Processes killed for want of memory", func(s measured) uint64 { return s.m.OOMKills }),
		{"container_memory_failures_total", "Page faults, minor and major", counter, []string{"failure_type", "scope"}, pageFaults},
		{"container_hugetlb_usage_bytes", "Huge pages in use", gauge, []string{"pagesize"}, hugepages(func(h engine.HugepageUsage) uint64 { return h.Bytes })},
		{"container_hugetlb_max_usage_bytes", "The most huge pages in use that were read since gantry-cri started", gauge, []string{"pagesize"}, hugepages(func(h engine.HugepageUsage) uint64 { return h.Peak })},
	}
}

// pageFaults has two scopes: those of the container alone and those with cgroups
// below it. The kernel counts the latter only, and what is below is the container's.
func pageFaults(s measured) (out []sample) {
	for _, scope := range []string{"container", "hierarchy"} {
		out = append(out, sample{s.m.PageFaults, []string{"pgfault", scope}}, sample{s.m.MajorPageFaults, []string{"pgmajfault", scope}})
	}
	return out
}

func hugepages(read func(engine.HugepageUsage) uint64) func(measured) []sample {
	return func(s measured) (out []sample) {
		for _, h := range s.m.Hugepages {
			out = append(out, sample{read(h), []string{h.Size}})
		}
		return out
	}
}

// pressureMetrics have no value on a kernel without PSI.
func pressureMetrics() (all []metric[measured]) {
	for _, r := range []struct {
		name string
		of   func(measured) *engine.Pressure
	}{
		{"cpu", func(s measured) *engine.Pressure { return s.m.CPUPressure }},
		{"memory", func(s measured) *engine.Pressure { return s.m.MemoryPressure }},
		{"io", func(s measured) *engine.Pressure { return s.m.IOPressure }},
	} {
		family := func(suffix, help string, line func(*engine.Pressure) engine.PressureLine) metric[measured] {
			return metric[measured]{"container_pressure_" + r.name + suffix, help + r.name + ", in seconds", counter, nil, func(s measured) []sample {
				p := r.of(s)
				if p == nil {
					return nil
				}
				return []sample{{value: wholeSeconds(line(p).Total)}}
			}}
		}
		all = append(all,
			family("_waiting_seconds_total", "Time in which some task waited for ", func(p *engine.Pressure) engine.PressureLine { return p.Some }),
			family("_stalled_seconds_total", "Time in which all tasks waited for ", func(p *engine.Pressure) engine.PressureLine { return p.Full }))
	}
	return all
}

func processMetrics() []metric[measured] {
	return []metric[measured]{
		value("container_processes", gauge, "Processes", func(s measured) uint64 { return s.m.Processes }),
		value("container_threads", gauge, "Threads", func(s measured) uint64 { return s.m.Pids }),
		value("container_threads_max", gauge, "Threads that there may be; 0 for no limit", func(s measured) uint64 { return s.m.PidsLimit }),
		value("container_file_descriptors", gauge, "Open file descriptors", func(s measured) uint64 { return s.m.Files }),
		value("container_sockets", gauge, "Open sockets", func(s measured) uint64 { return s.m.Sockets }),
		{"container_ulimits_soft", "Soft limits of the container's first process, where there are some", gauge, []string{"ulimit"}, func(s measured) []sample {
			if s.m.OpenFilesLimit == 0 {
				return nil
			}
			return []sample{{s.m.OpenFilesLimit, []string{"max_open_files"}}}
		}},
	}
}

func diskMetrics() []metric[measured] {
	device := []string{"device"}
	rootfs := func(read func(measured) uint64) func(measured) []sample {
		return func(s measured) []sample { return []sample{{read(s), []string{s.m.Rootfs.Device}}} }
	}
	return []metric[measured]{
		{"container_fs_usage_bytes", "What the writable layer takes", gauge, device, rootfs(func(s measured) uint64 { return s.m.RootfsBytes })},
		{"container_fs_limit_bytes", "Size of the file system of the writable layer", gauge, device, rootfs(func(s measured) uint64 { return s.m.Rootfs.Bytes })},
		{"container_fs_inodes_total", "Inodes of the file system of the writable layer", gauge, device, rootfs(func(s measured) uint64 { return s.m.Rootfs.Inodes })},
		{"container_fs_inodes_free", "Free inodes of the file system of the writable layer", gauge, device, rootfs(func(s measured) uint64 { return s.m.Rootfs.FreeInodes })},
		{"container_fs_reads_bytes_total", "Bytes read from a device", counter, device, deviceIO(func(d engine.DeviceIO) uint64 { return d.ReadBytes })},
		{"container_fs_writes_bytes_total", "Bytes written to a device", counter, device, deviceIO(func(d engine.DeviceIO) uint64 { return d.WrittenBytes })},
		{"container_fs_reads_total", "Reads from a device", counter, device, deviceIO(func(d engine.DeviceIO) uint64 { return d.Reads })},
		{"container_fs_writes_total", "Writes to a device", counter, device, deviceIO(func(d engine.DeviceIO) uint64 { return d.Writes })},
		{"container_blkio_device_usage_total", "Bytes that passed between a device and the container", counter, []string{"device", "major", "minor", "operation"}, deviceUsage},
	}
}

func deviceIO(read func(engine.DeviceIO) uint64) func(measured) []sample {
	return func(s measured) (out []sample) {
		for _, d := range s.m.Devices {
			out = append(out, sample{read(d), []string{d.Device}})
		}
		return out
	}
}

func deviceUsage(s measured) (out []sample) {
	for _, d := range s.m.Devices {
		for _, o := range []struct {
			name  string
			bytes uint64
		}{{"Read", d.ReadBytes}, {"Write", d.WrittenBytes}, {"Discard", d.DiscardedBytes}} {
			out = append(out, sample{o.bytes, []string{d.Device, strconv.Itoa(int(d.Major)), strconv.Itoa(int(d.Minor)), o.name}})
		}
	}
	return out
}

func specMetrics() []metric[measured] {
	resources := func(read func(pod.Resources) int64) func(measured) uint64 {
		return func(s measured) uint64 { return uint64(max(read(s.app.Current), 0)) }
	}
	return []metric[measured]{
		value("container_start_time_seconds", gauge, "When the container was started, in seconds since 1970", func(s measured) uint64 { return uint64(max(s.app.Started.Unix(), 0)) }),
		value("container_last_seen", gauge, "When the container was looked at, in seconds since 1970", func(s measured) uint64 { return uint64(s.m.Time.Unix()) }),
		value("container_spec_cpu_period", gauge, "Period of the CPU limit, in microseconds", resources(cpuPeriod)),
		{"container_spec_cpu_quota", "CPU time in a period, in microseconds, where there is a limit", gauge, nil, func(s measured) []sample {
			if s.app.Current.CPUQuota <= 0 {
				return nil
			}
			return []sample{{value: uint64(s.app.Current.CPUQuota)}}
		}},
		value("container_spec_cpu_shares", gauge, "Share of the CPU, where it is scarce", resources(func(r pod.Resources) int64 { return r.CPUShares })),
		value("container_spec_memory_limit_bytes", gauge, "Limit of memory; 0 for none", func(s measured) uint64 { return s.m.MemoryLimit }),
		value("container_spec_memory_swap_limit_bytes", gauge, "Limit of swap; 0 for none", func(s measured) uint64 { return s.m.SwapLimit }),
		value("container_spec_memory_reservation_limit_bytes", gauge, "Memory reserved; the CRI has no such setting, so 0", func(measured) uint64 { return 0 }),
	}
}

// cpuPeriod is the kernel's own where none is given.
func cpuPeriod(r pod.Resources) int64 {
	if r.CPUPeriod == 0 {
		return (100 * time.Millisecond).Microseconds()
	}
	return r.CPUPeriod
}

// withoutLoopback leaves out what kubelet's own metrics do not count either.
func withoutLoopback(all []network.InterfaceUsage) []network.InterfaceUsage {
	return slices.DeleteFunc(slices.Clone(all), func(u network.InterfaceUsage) bool { return u.Name == network.Loopback })
}

func interfaceMetrics() (all []metric[[]network.InterfaceUsage]) {
	for _, way := range []struct {
		name, verb string
		of         func(network.InterfaceUsage) network.Traffic
	}{
		{"receive", "received", func(u network.InterfaceUsage) network.Traffic { return u.Received }},
		{"transmit", "sent", func(u network.InterfaceUsage) network.Traffic { return u.Sent }},
	} {
		for _, what := range []struct {
			name, help string
			of         func(network.Traffic) uint64
		}{
			{"bytes", "Bytes " + way.verb, func(t network.Traffic) uint64 { return t.Bytes }},
			{"packets", "Packets " + way.verb, func(t network.Traffic) uint64 { return t.Packets }},
			{"packets_dropped", "Packets dropped that were to be " + way.verb, func(t network.Traffic) uint64 { return t.Dropped }},
			{"errors", "Packets that were not " + way.verb + " for an error", func(t network.Traffic) uint64 { return t.Errors }},
		} {
			all = append(all, metric[[]network.InterfaceUsage]{
				"container_network_" + way.name + "_" + what.name + "_total", what.help, counter,
				[]string{"interface"},
				func(interfaces []network.InterfaceUsage) (out []sample) {
					for _, u := range interfaces {
						out = append(out, sample{what.of(way.of(u)), []string{u.Name}})
					}
					return out
				},
			})
		}
	}
	return all
}

func wholeSeconds(nanos uint64) uint64 { return nanos / uint64(time.Second) }
