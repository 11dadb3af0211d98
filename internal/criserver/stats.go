package criserver

import (
	"context"
	"errors"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/cri"
	"gantry/internal/engine"
	"gantry/internal/network"
	"gantry/internal/pod"
)

func (s *runtimeService) ContainerStats(ctx context.Context, r *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	a, err := s.findApp(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	got, err := s.cfg.Engine.AppStats(ctx, a.ID)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ContainerStatsResponse{Stats: fromStats(a, got, s.cfg.Images.Mountpoint())}, nil
}

// ListContainerStats tells of the containers that run.
func (s *runtimeService) ListContainerStats(ctx context.Context, r *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	all, err := s.pods()
	if err != nil {
		return nil, err
	}
	f := r.GetFilter()
	apps := cri.Apps(all, &runtimeapi.ContainerFilter{
		Id: f.GetId(), PodSandboxId: f.GetPodSandboxId(), LabelSelector: f.GetLabelSelector(),
		State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING},
	})
	stats, err := s.containerStats(ctx, apps)
	return &runtimeapi.ListContainerStatsResponse{Stats: stats}, err
}

// containerStats looks at apps that run. One that ends meanwhile is left out; one that
// cannot be read does not hide the others.
func (s *Server) containerStats(ctx context.Context, apps []pod.AppStatus) (out []*runtimeapi.ContainerStats, err error) {
	mountpoint := s.cfg.Images.Mountpoint()
	s.cfg.Engine.MeasureLayers(apps)
	for _, a := range apps {
		got, err := s.cfg.Engine.AppStats(ctx, a.ID)
		left, err := s.leftOut(ctx, "app", a.ID, err)
		if err != nil {
			return nil, err
		}
		if !left {
			out = append(out, fromStats(a, got, mountpoint))
		}
	}
	return out, nil
}

// leftOut tells whether a list goes without something that could not be read; only the
// end of the request ends the list.
func (s *Server) leftOut(ctx context.Context, kind string, id pod.ID, err error) (bool, error) {
	switch {
	case err == nil:
		return false, nil
	case ctx.Err() != nil:
		return false, ctx.Err()
	case !errors.Is(err, pod.ErrNotFound) && !errors.Is(err, pod.ErrState):
		s.log.Warn("statistics are missing", kind, id, "err", err)
	}
	return true, nil
}

// PodSandboxStats tells of one pod with its containers.
func (s *runtimeService) PodSandboxStats(ctx context.Context, r *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	p, err := s.findPod(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	stats, err := s.sandboxStats(ctx, p)
	return &runtimeapi.PodSandboxStatsResponse{Stats: stats}, err
}

// ListPodSandboxStats tells of the pods that are ready.
func (s *runtimeService) ListPodSandboxStats(ctx context.Context, r *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	all, err := s.pods()
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ListPodSandboxStatsResponse{}
	ready := cri.Pods(all, &runtimeapi.PodSandboxFilter{
		Id: r.GetFilter().GetId(), LabelSelector: r.GetFilter().GetLabelSelector(),
		State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY},
	})
	s.cfg.Engine.MeasureLayers(runningApps(ready...))
	for _, p := range ready {
		stats, err := s.sandboxStats(ctx, p)
		left, err := s.leftOut(ctx, "pod", p.ID, err)
		if err != nil {
			return nil, err
		}
		if !left {
			resp.Stats = append(resp.Stats, stats)
		}
	}
	return resp, nil
}

func runningApps(pods ...pod.PodStatus) (out []pod.AppStatus) {
	for _, p := range pods {
		for _, a := range p.Apps {
			if a.Phase == pod.Running {
				out = append(out, a)
			}
		}
	}
	return out
}

func (s *Server) sandboxStats(ctx context.Context, p pod.PodStatus) (*runtimeapi.PodSandboxStats, error) {
	got, err := s.cfg.Engine.PodStats(ctx, p.ID)
	if err != nil {
		return nil, err
	}
	containers, err := s.containerStats(ctx, runningApps(p))
	if err != nil {
		return nil, err
	}
	st := got.Stats
	cpu := cpuUsage(st)
	cpu.UsageNanoCores = s.rates.of(p.ID, st.Time, st.CPUNanos, p.Created)
	return &runtimeapi.PodSandboxStats{
		Attributes: &runtimeapi.PodSandboxAttributes{
			Id: string(p.ID), Metadata: cri.FromPod(p).Metadata, Labels: p.Labels, Annotations: p.Annotations,
		},
		Linux: &runtimeapi.LinuxPodSandboxStats{
			Cpu: cpu, Memory: memoryUsage(st), Io: ioUsage(st), Network: networkUsage(got),
			Process:    &runtimeapi.ProcessUsage{Timestamp: st.Time.UnixNano(), ProcessCount: number(got.Processes)},
			Containers: containers,
		},
	}, nil
}

// networkUsage is nil for a pod of the host's network: what passes there is not its own.
func networkUsage(st engine.PodStats) *runtimeapi.NetworkUsage {
	if len(st.Interfaces) == 0 || st.Interfaces[0].Name == network.Loopback {
		return nil // kubelet wants a default interface
	}
	out := &runtimeapi.NetworkUsage{Timestamp: st.Time.UnixNano()}
	for _, i := range st.Interfaces {
		u := &runtimeapi.NetworkInterfaceUsage{
			Name:    i.Name,
			RxBytes: number(i.Received.Bytes), RxErrors: number(i.Received.Errors),
			TxBytes: number(i.Sent.Bytes), TxErrors: number(i.Sent.Errors),
		}
		if i.Name == network.InterfaceName {
			out.DefaultInterface = u
		} else {
			out.Interfaces = append(out.Interfaces, u)
		}
	}
	if out.DefaultInterface == nil { // an app renamed it; kubelet breaks on none
		out.DefaultInterface, out.Interfaces = out.Interfaces[0], out.Interfaces[1:]
	}
	return out
}

func fromStats(a pod.AppStatus, st engine.Stats, mountpoint string) *runtimeapi.ContainerStats {
	at := st.Time.UnixNano()
	out := &runtimeapi.ContainerStats{
		Attributes: &runtimeapi.ContainerAttributes{
			Id:          string(a.ID),
			Metadata:    &runtimeapi.ContainerMetadata{Name: a.Name, Attempt: a.Attempt},
			Labels:      a.Labels,
			Annotations: a.Annotations,
		},
		Cpu:    cpuUsage(st),
		Memory: memoryUsage(st),
		Swap:   &runtimeapi.SwapUsage{Timestamp: at, SwapUsageBytes: number(st.SwapUsage)},
		Io:     ioUsage(st),
		WritableLayer: &runtimeapi.FilesystemUsage{
			Timestamp:  at,
			FsId:       &runtimeapi.FilesystemIdentifier{Mountpoint: mountpoint},
			UsedBytes:  number(st.RootfsBytes),
			InodesUsed: number(st.RootfsInodes),
		},
	}
	if st.SwapLimit > 0 {
		out.Swap.SwapAvailableBytes = number(st.SwapLimit - min(st.SwapLimit, st.SwapUsage))
	}
	return out
}

func cpuUsage(st engine.Stats) *runtimeapi.CpuUsage {
	return &runtimeapi.CpuUsage{Timestamp: st.Time.UnixNano(), UsageCoreNanoSeconds: number(st.CPUNanos), Psi: pressure(st.CPUPressure)}
}

func memoryUsage(st engine.Stats) *runtimeapi.MemoryUsage {
	out := &runtimeapi.MemoryUsage{
		Timestamp:       st.Time.UnixNano(),
		WorkingSetBytes: number(st.MemoryWorkingSet),
		UsageBytes:      number(st.MemoryUsage),
		RssBytes:        number(st.MemoryRSS),
		PageFaults:      number(st.PageFaults),
		MajorPageFaults: number(st.MajorPageFaults),
		Psi:             pressure(st.MemoryPressure),
	}
	if st.MemoryLimit > 0 {
		out.AvailableBytes = number(st.MemoryLimit - min(st.MemoryLimit, st.MemoryWorkingSet))
	}
	return out
}

func ioUsage(st engine.Stats) *runtimeapi.IoUsage {
	return &runtimeapi.IoUsage{Timestamp: st.Time.UnixNano(), Psi: pressure(st.IOPressure)}
}

func number(n uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: n} }

func pressure(p *engine.Pressure) *runtimeapi.PsiStats {
	if p == nil {
		return nil
	}
	line := func(l engine.PressureLine) *runtimeapi.PsiData {
		return &runtimeapi.PsiData{Total: l.Total, Avg10: l.Avg10, Avg60: l.Avg60, Avg300: l.Avg300}
	}
	return &runtimeapi.PsiStats{Some: line(p.Some), Full: line(p.Full)}
}
