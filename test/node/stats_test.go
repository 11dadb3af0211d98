//go:build e2e

package node

import (
	"context"
	"os/exec"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestStats reads what kubelet's eviction manager lives on.
func TestStats(t *testing.T) {
	guard(t)
	e := dial(t)
	config := containerConfig("app", "dd if=/dev/zero of=/file bs=1M count=3 2>/dev/null; i=0; while :; do i=$((i+1)); done")
	config.Linux.Resources.MemoryLimitInBytes = 64 << 20
	c := e.run(t, onHost(e.podConfig(t, "stats"))).create(t, config).start(t)
	var first *cri.ContainerStats
	read := func() *cri.ContainerStats {
		resp, err := e.ListContainerStats(t.Context(), &cri.ListContainerStatsRequest{Filter: &cri.ContainerStatsFilter{Id: c.id}})
		if err != nil || len(resp.Stats) != 1 {
			t.Fatalf("stats %v, error %v", resp, err)
		}
		return resp.Stats[0]
	}
	eventually(t, 10*time.Second, "the file is counted", func() bool {
		first = read()
		return first.WritableLayer.GetUsedBytes().GetValue() >= 3<<20
	})
	eventually(t, 5*time.Second, "CPU time grows", func() bool {
		return read().Cpu.UsageCoreNanoSeconds.Value > first.Cpu.UsageCoreNanoSeconds.Value
	})
	if ours() { // the peers give the images' numbers
		info, err := e.images.ImageFsInfo(t.Context(), &cri.ImageFsInfoRequest{})
		if err != nil || len(info.ContainerFilesystems) != 1 || info.ContainerFilesystems[0].UsedBytes.GetValue() < 3<<20 || info.ContainerFilesystems[0].InodesUsed.GetValue() == 0 {
			t.Errorf("what containers take: %v, %v", info, err)
		}
	}
	m := first.Memory
	if m.WorkingSetBytes.GetValue() == 0 || m.UsageBytes.GetValue() > 64<<20 || m.AvailableBytes.GetValue() == 0 || m.AvailableBytes.GetValue() > 64<<20 {
		t.Errorf("memory: %v", m)
	}
	if dir := first.WritableLayer.FsId.GetMountpoint(); dir == "" || !exists(dir) {
		t.Errorf("writable layer: %v", first.WritableLayer)
	}
	if one, err := e.ContainerStats(t.Context(), &cri.ContainerStatsRequest{ContainerId: c.id}); err != nil || one.Stats.Attributes.Id != c.id {
		t.Errorf("stats of one: %v, %v", one, err)
	}
}

// TestPodStats reads what kubelet lives on with its feature gate
// PodAndContainerStatsFromCRI.
func TestPodStats(t *testing.T) {
	guard(t)
	e := dial(t)
	p := e.run(t, e.podConfig(t, "podstats"))
	c := p.create(t, containerConfig("app", "sleep 1000000")).start(t)
	c.exec(t, "sh", "-c", "echo hello | nc -u -w 1 10.88.0.1 9; dd if=/dev/zero of=/file bs=1M count=3 conv=fsync")
	var got *cri.LinuxPodSandboxStats
	eventually(t, 10*time.Second, "the pod's traffic is counted", func() bool {
		resp, err := e.ListPodSandboxStats(t.Context(), &cri.ListPodSandboxStatsRequest{Filter: &cri.PodSandboxStatsFilter{Id: p.id}})
		if err != nil || len(resp.Stats) != 1 || resp.Stats[0].Attributes.Id != p.id {
			t.Fatalf("stats %v, error %v", resp, err)
		}
		got = resp.Stats[0].Linux
		return got.Network.GetDefaultInterface().GetTxBytes().GetValue() > 0
	})
	if name := got.Network.DefaultInterface.Name; name != "eth0" || got.Network.Timestamp == 0 {
		t.Errorf("network: %v", got.Network)
	}
	if n := got.Process.GetProcessCount().GetValue(); n < 1 || n > 5 {
		out, _ := exec.Command("systemd-cgls", "--no-pager", "--full", "--unit", slice).CombinedOutput() // for the reader only
		t.Errorf("%d processes, of\n%s", n, out)
	}
	if len(got.Containers) != 1 || got.Containers[0].Attributes.Id != c.id || got.Cpu.GetUsageCoreNanoSeconds().GetValue() == 0 || got.Memory.GetUsageBytes().GetValue() == 0 {
		t.Errorf("stats: %v", got)
	}
	if _, err := e.PodSandboxStats(t.Context(), &cri.PodSandboxStatsRequest{}); status.Code(err) != codes.NotFound {
		t.Errorf("kubelet's question whether there are such statistics: %v", err)
	}
}

// TestMetrics: of 56 families all have a value that can have one here, and each sample
// has the labels it should.
func TestMetrics(t *testing.T) {
	guard(t)
	e := dial(t)
	p := e.run(t, e.podConfig(t, "metrics"))
	config := containerConfig("app", "dd if=/dev/zero of=/file bs=1M count=3 conv=fsync; cat /file >/dev/null; sleep 1000000")
	config.Linux.Resources = &cri.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, MemoryLimitInBytes: 64 << 20}
	if ours() { // the kernel counts them where they are limited
		config.Linux.Resources.HugepageLimits = []*cri.HugepageLimit{{PageSize: "2MB", Limit: 2 << 20}}
	}
	c := p.create(t, config).start(t)
	descriptors, err := e.ListMetricDescriptors(t.Context(), &cri.ListMetricDescriptorsRequest{})
	if status.Code(err) == codes.Unimplemented {
		notRun(t, "this engine has no metrics")
	}
	if err != nil {
		t.Fatal(err)
	}
	none := map[string]bool{"container_hugetlb_max_usage_bytes": !ours(), "container_hugetlb_usage_bytes": !ours()}
	var missing []string
	eventually(t, 20*time.Second, "every family has a value", func() bool {
		list, err := e.ListPodSandboxMetrics(t.Context(), &cri.ListPodSandboxMetricsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		samples := map[string][]*cri.Metric{}
		for _, m := range list.PodMetrics {
			if m.PodSandboxId != p.id {
				continue
			}
			all := m.Metrics
			for _, of := range m.ContainerMetrics {
				if of.ContainerId == c.id {
					all = append(all, of.Metrics...)
				}
			}
			for _, s := range all {
				samples[s.Name] = append(samples[s.Name], s)
			}
		}
		missing = nil
		for _, d := range descriptors.Descriptors {
			if len(samples[d.Name]) == 0 && !none[d.Name] {
				missing = append(missing, d.Name)
			}
			for _, s := range samples[d.Name] {
				if len(s.LabelValues) != len(d.LabelKeys) || s.Value == nil {
					t.Errorf("%v, labels %q", s, d.LabelKeys)
				}
			}
		}
		return len(missing) == 0
	})
	if len(missing) > 0 || len(descriptors.Descriptors) != 56 {
		t.Errorf("of %d families these have no value: %q", len(descriptors.Descriptors), missing)
	}
}

// TestContainerEvents hears of the end of a container without asking.
func TestContainerEvents(t *testing.T) {
	guard(t)
	needsGantry(t) // others do not tell from when on they tell
	e := dial(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience(10*time.Second))
	defer cancel()
	in, err := e.GetContainerEvents(ctx, &cri.GetEventsRequest{})
	if err == nil {
		_, err = in.Header()
	}
	if err != nil {
		t.Fatal(err)
	}
	c := e.run(t, onHost(e.podConfig(t, "events"))).create(t, containerConfig("app", "exit 7")).start(t)
	for {
		ev, err := in.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if ev.ContainerId != c.id || ev.ContainerEventType != cri.ContainerEventType_CONTAINER_STOPPED_EVENT {
			continue
		}
		if ev.PodSandboxStatus.GetMetadata().GetName() != "events" || len(ev.ContainersStatuses) != 1 || ev.ContainersStatuses[0].ExitCode != 7 {
			t.Errorf("the end of the container: %v", ev)
		}
		return
	}
}
