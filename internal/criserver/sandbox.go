package criserver

import (
	"context"
	"fmt"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/cri"
	"gantry/internal/pod"
)

func (s *runtimeService) RunPodSandbox(ctx context.Context, r *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	if r.GetConfig() == nil {
		return nil, fmt.Errorf("config: must not be empty: %w", pod.ErrInvalid)
	}
	if err := s.knows("runtime_handler", r.RuntimeHandler); err != nil {
		return nil, err
	}
	p, err := cri.Pod(r.Config, r.RuntimeHandler)
	if err != nil {
		return nil, err
	}
	made, err := s.cfg.Engine.CreatePod(ctx, p)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: string(made.ID)}, nil
}

func (s *runtimeService) StopPodSandbox(ctx context.Context, r *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	p, err := s.findPod(r.GetPodSandboxId())
	if err == nil {
		err = s.cfg.Engine.StopPod(ctx, p.ID)
	}
	if err := s.gonePod(err, r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

func (s *runtimeService) RemovePodSandbox(ctx context.Context, r *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	p, err := s.findPod(r.GetPodSandboxId())
	if err == nil {
		err = s.cfg.Engine.RemovePod(ctx, p.ID)
	}
	if err := s.gonePod(err, r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

// UpdatePodSandboxResources is told the new sizes of a pod before kubelet changes its
// cgroup; if it fails the resize is rejected.
func (s *runtimeService) UpdatePodSandboxResources(ctx context.Context, r *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	unlimited(r.GetResources())
	update, err := cri.PodResources("", r.GetResources(), r.GetOverhead())
	if err != nil {
		return nil, err
	}
	p, err := s.findPod(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if err := s.cfg.Engine.UpdatePod(ctx, p.ID, update); err != nil {
		return nil, err
	}
	return &runtimeapi.UpdatePodSandboxResourcesResponse{}, nil
}

// unlimited makes -1 of what is less than nothing: kubelet takes a pod's overhead from
// its limits also where there is none, which it has as -1.
func unlimited(r *runtimeapi.LinuxContainerResources) {
	if r == nil {
		return
	}
	r.CpuQuota, r.MemoryLimitInBytes = max(r.CpuQuota, -1), max(r.MemoryLimitInBytes, -1)
}

func (s *runtimeService) PodSandboxStatus(_ context.Context, r *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	p, err := s.findPod(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	// The latter two are for a kubelet that goes by events: they are as of one moment.
	resp := &runtimeapi.PodSandboxStatusResponse{
		Status: cri.FromPodStatus(p), ContainersStatuses: statuses(p), Timestamp: time.Now().UnixNano(),
	}
	if r.Verbose {
		resp.Info, err = cri.PodInfo(p)
	}
	return resp, err
}

func (s *runtimeService) ListPodSandbox(_ context.Context, r *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	all, err := s.pods()
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ListPodSandboxResponse{}
	for _, p := range cri.Pods(all, r.GetFilter()) {
		resp.Items = append(resp.Items, cri.FromPod(p))
	}
	return resp, nil
}
