package criserver

import (
	"context"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CheckpointContainer writes the state of a container into an archive. The container
// goes on.
func (s *runtimeService) CheckpointContainer(ctx context.Context, r *runtimeapi.CheckpointContainerRequest) (*runtimeapi.CheckpointContainerResponse, error) {
	limit, err := seconds("timeout", r.GetTimeout())
	if err != nil {
		return nil, err
	}
	a, err := s.findApp(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	// Kubelet leaves the time to the runtime by none.
	if err := s.cfg.Engine.CheckpointApp(ctx, a.ID, r.GetLocation(), max(limit, time.Duration(0))); err != nil {
		return nil, err
	}
	return &runtimeapi.CheckpointContainerResponse{}, nil
}
