package criserver

import (
	"context"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/cri"
	"gantry/internal/pod"
)

// Events are what differs between two lists: so they never say anything else than the
// lists do, and nothing is lost between a list and the next event. What happened
// between two looks is told in order, but not each detour.

// GetContainerEvents tells what changes from now on. The header is sent when the
// client may rely on that.
func (s *runtimeService) GetContainerEvents(_ *runtimeapi.GetEventsRequest, out grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
	if err := s.untilReady(out.Context()); err != nil {
		return err
	}
	before, err := s.pods()
	if err != nil {
		return err
	}
	if err := out.SendHeader(nil); err != nil {
		return err
	}
	for {
		changed := s.cfg.Engine.Changed()
		// Without a list there is nothing to tell: when there is one again, all is.
		if now, err := s.pods(); err == nil {
			for _, ev := range differences(before, now) {
				if err := out.Send(ev); err != nil {
					return err
				}
			}
			before = now
		}
		select {
		case <-changed:
		case <-out.Context().Done():
			return out.Context().Err()
		case <-s.closing:
			return errClosing
		}
	}
}

// untilReady waits while the pods are loaded: kubelet asks for events five times in its
// life, one after the other, and does without them after that.
func (s *Server) untilReady(ctx context.Context) error {
	for {
		changed := s.cfg.Engine.Changed()
		if s.cfg.Engine.Ready() == nil {
			return nil
		}
		select {
		case <-changed: // whether all pods are known is such a change
		case <-ctx.Done():
			return ctx.Err()
		case <-s.closing:
			return errClosing
		}
	}
}

var errClosing = fmt.Errorf("the server is being stopped: %w", pod.ErrUnavailable)

func differences(before, now []pod.PodStatus) (events []*runtimeapi.ContainerEventResponse) {
	old := map[pod.ID]pod.PodStatus{}
	for _, p := range before {
		old[p.ID] = p
	}
	for _, p := range now {
		was, known := old[p.ID]
		delete(old, p.ID)
		if !known {
			events = append(events, event(p, p.ID, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT))
		}
		if p.Ready && !was.Ready {
			events = append(events, event(p, p.ID, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT))
		}
		events = append(events, appDifferences(p, was.Apps)...)
		if was.Ready && !p.Ready {
			events = append(events, event(p, p.ID, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT))
		}
	}
	for _, p := range before {
		if _, gone := old[p.ID]; gone {
			events = append(events, farewell(p)...)
		}
	}
	return events
}

// farewell is for a pod that is gone, with what it had.
func farewell(p pod.PodStatus) (events []*runtimeapi.ContainerEventResponse) {
	apps := p.Apps
	p.Apps = nil
	ready := p.Ready
	p.Ready = false
	events = appDifferences(p, apps)
	if ready {
		events = append(events, event(p, p.ID, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT))
	}
	return append(events, event(p, p.ID, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT))
}

func appDifferences(p pod.PodStatus, before []pod.AppStatus) (events []*runtimeapi.ContainerEventResponse) {
	find := func(all []pod.AppStatus, id pod.ID) int {
		return slices.IndexFunc(all, func(a pod.AppStatus) bool { return a.ID == id })
	}
	for _, a := range p.Apps {
		reached := 0
		if i := find(before, a.ID); i >= 0 {
			reached = progress(before[i])
		}
		for step := reached + 1; step <= progress(a); step++ {
			if step == stepStarted && a.Started.IsZero() {
				continue // it ended before it ran
			}
			events = append(events, event(p, a.ID, eventOf(step)))
		}
	}
	for _, a := range before {
		if find(p.Apps, a.ID) < 0 {
			if progress(a) == stepStarted { // its end was not seen, and is what kubelet acts on
				events = append(events, event(p, a.ID, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT))
			}
			events = append(events, event(p, a.ID, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT))
		}
	}
	return events
}

// Steps of an app's life; 0 is not to be there.
const stepCreated, stepStarted, stepEnded = 1, 2, 3

func eventOf(step int) runtimeapi.ContainerEventType {
	switch step {
	case stepCreated:
		return runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT
	case stepStarted:
		return runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT
	default:
		return runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT
	}
}

func progress(a pod.AppStatus) int {
	switch a.Phase {
	case pod.Prepared:
		return stepCreated
	case pod.Exited:
		return stepEnded
	default:
		return stepStarted
	}
}

func event(p pod.PodStatus, of pod.ID, kind runtimeapi.ContainerEventType) *runtimeapi.ContainerEventResponse {
	return &runtimeapi.ContainerEventResponse{
		ContainerId: string(of), ContainerEventType: kind, CreatedAt: time.Now().UnixNano(),
		PodSandboxStatus: cri.FromPodStatus(p), ContainersStatuses: statuses(p),
	}
}

// statuses are those of all containers of a pod.
func statuses(p pod.PodStatus) (out []*runtimeapi.ContainerStatus) {
	for _, a := range p.Apps {
		out = append(out, cri.FromAppStatus(a))
	}
	return out
}
