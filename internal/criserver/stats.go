package criserver

import (
	"context"
	"errors"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/cri"
	"gantry/internal/engine"
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
	return &runtimeapi.ContainerStatsResponse{Stats: fromStats(a, got, s.mountpoint())}, nil
}

// ListContainerStats tells of the containers that run. One that ends meanwhile is
// left out; one that cannot be read does not hide the others.
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
	mountpoint := s.mountpoint()
	resp := &runtimeapi.ListContainerStatsResponse{}
	for _, a := range apps {
		got, err := s.cfg.Engine.AppStats(ctx, a.ID)
		switch {
		case err == nil:
			resp.Stats = append(resp.Stats, fromStats(a, got, mountpoint))
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, pod.ErrNotFound) || errors.Is(err, pod.ErrState):
		default:
			s.log.Warn("stats of a container are missing", "app", a.ID, "err", err)
		}
	}
	return resp, nil
}

// mountpoint names the file system of writable layers and images.
func (s *Server) mountpoint() string {
	info, err := s.cfg.Images.Info()
	if err != nil {
		s.log.Warn("file system of images is unknown", "err", err)
	}
	return info.Mountpoint
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
		Cpu: &runtimeapi.CpuUsage{Timestamp: at, UsageCoreNanoSeconds: number(st.CPUNanos), Psi: pressure(st.CPUPressure)},
		Memory: &runtimeapi.MemoryUsage{
			Timestamp:       at,
			WorkingSetBytes: number(st.MemoryWorkingSet),
			UsageBytes:      number(st.MemoryUsage),
			RssBytes:        number(st.MemoryRSS),
			PageFaults:      number(st.PageFaults),
			MajorPageFaults: number(st.MajorPageFaults),
			Psi:             pressure(st.MemoryPressure),
		},
		Swap: &runtimeapi.SwapUsage{Timestamp: at, SwapUsageBytes: number(st.SwapUsage)},
		Io:   &runtimeapi.IoUsage{Timestamp: at, Psi: pressure(st.IOPressure)},
		WritableLayer: &runtimeapi.FilesystemUsage{
			Timestamp:  at,
			FsId:       &runtimeapi.FilesystemIdentifier{Mountpoint: mountpoint},
			UsedBytes:  number(st.RootfsBytes),
			InodesUsed: number(st.RootfsInodes),
		},
	}
	if st.MemoryLimit > 0 {
		out.Memory.AvailableBytes = number(st.MemoryLimit - min(st.MemoryLimit, st.MemoryWorkingSet))
	}
	if st.SwapLimit > 0 {
		out.Swap.SwapAvailableBytes = number(st.SwapLimit - min(st.SwapLimit, st.SwapUsage))
	}
	return out
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
