package enginetest

import (
	"context"

	"gantry/internal/engine"
	"gantry/internal/network"
	"gantry/internal/pod"
)

// MeasureLayers does nothing: a fake's numbers are there at once.
func (f *Fake) MeasureLayers([]pod.AppStatus) {}

// LayersUsed is what the apps of a fake have written.
func (f *Fake) LayersUsed(context.Context) (bytes, inodes uint64) { return 20, 4 }

// AppMetrics implements engine.API.
func (f *Fake) AppMetrics(ctx context.Context, id pod.ID) (engine.Metrics, error) {
	s, err := f.AppStats(ctx, id)
	if err != nil {
		return engine.Metrics{}, err
	}
	return engine.Metrics{
		Stats: s, Cgroup: "/pod.slice/" + string(id), CPUUserNanos: 3e9, CPUSystemNanos: 2e9, Periods: 10, ThrottledPeriods: 4, ThrottledNanos: 7e9,
		MemoryCache: 11, MemoryKernel: 12, MemoryMapped: 13, MemoryPeak: 14, MemoryLimitHits: 15, OOMKills: 16,
		PidsLimit: 100, Processes: 17, Files: 18, Sockets: 19, OpenFilesLimit: 1024,
		Devices:   []engine.DeviceIO{{Device: "/dev/vda", Major: 254, Minor: 1, ReadBytes: 20, WrittenBytes: 21, Reads: 22, Writes: 23}},
		Hugepages: []engine.HugepageUsage{{Size: "2MB", Bytes: 4 << 20, Peak: 6 << 20}},
		Rootfs:    engine.Filesystem{Device: "/dev/vda", Bytes: 1 << 40, Inodes: 1000, FreeInodes: 900},
	}, nil
}

// PodStats implements engine.API.
func (f *Fake) PodStats(_ context.Context, id pod.ID) (engine.PodStats, error) {
	if err := f.op("PodStats %s", id); err != nil {
		return engine.PodStats{}, err
	}
	p, err := f.Pod(id)
	if err != nil {
		return engine.PodStats{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	out := engine.PodStats{Cgroup: "/pod.slice", Processes: 3, Stats: engine.Stats{
		Time: f.now(), CPUNanos: 6e9, MemoryUsage: 4 << 20, MemoryWorkingSet: 3 << 20, MemoryRSS: 2 << 20, Pids: 9,
		IOPressure: &engine.Pressure{Full: engine.PressureLine{Total: 2000, Avg60: 1.5}},
	}}
	f.change(&out.Stats)
	if !p.HostNetwork() {
		out.Interfaces = []network.InterfaceUsage{
			{Name: "net1", Received: network.Traffic{Bytes: 1}},
			{Name: network.InterfaceName, Received: network.Traffic{Bytes: 10, Packets: 2, Errors: 3, Dropped: 4}, Sent: network.Traffic{Bytes: 50, Packets: 6, Errors: 7, Dropped: 8}},
			{Name: network.Loopback, Received: network.Traffic{Bytes: 2}},
		}
	}
	return out, nil
}

// AppStats implements engine.API.
func (f *Fake) AppStats(_ context.Context, id pod.ID) (engine.Stats, error) {
	if err := f.op("AppStats %s", id); err != nil {
		return engine.Stats{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, err := f.app(id); err != nil {
		return engine.Stats{}, err
	}
	out := engine.Stats{
		Time: f.now(), CPUNanos: 5e9, MemoryUsage: 3 << 20, MemoryWorkingSet: 2 << 20, MemoryRSS: 1 << 20,
		MemoryLimit: 8 << 20, Pids: 2, RootfsBytes: 4096, RootfsInodes: 3,
		CPUPressure: &engine.Pressure{Some: engine.PressureLine{Total: 1000, Avg10: 0.5}},
	}
	f.change(&out)
	return out, nil
}

func (f *Fake) change(s *engine.Stats) {
	if f.Stats != nil {
		f.Stats(s)
	}
}
