package cri

import (
	"encoding/json"
	"fmt"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/pod"
)

func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func podState(p pod.PodStatus) runtimeapi.PodSandboxState {
	if p.Ready {
		return runtimeapi.PodSandboxState_SANDBOX_READY
	}
	return runtimeapi.PodSandboxState_SANDBOX_NOTREADY
}

func podMetadata(p *pod.Pod) *runtimeapi.PodSandboxMetadata {
	return &runtimeapi.PodSandboxMetadata{Name: p.Name, Uid: p.UID, Namespace: p.Namespace, Attempt: p.Attempt}
}

// FromPod makes the line of a list.
func FromPod(p pod.PodStatus) *runtimeapi.PodSandbox {
	return &runtimeapi.PodSandbox{
		Id:             string(p.ID),
		Metadata:       podMetadata(p.Pod),
		State:          podState(p),
		CreatedAt:      nanos(p.Created),
		Labels:         p.Labels,
		Annotations:    p.Annotations,
		RuntimeHandler: p.Handler,
	}
}

// FromPodStatus tells all of a pod. A pod in the host's network has no address of
// its own; kubelet knows the host's.
func FromPodStatus(p pod.PodStatus) *runtimeapi.PodSandboxStatus {
	network := &runtimeapi.PodSandboxNetworkStatus{}
	if !p.HostNetwork() && len(p.IPs) > 0 {
		network.Ip = p.IPs[0]
		for _, ip := range p.IPs[1:] {
			network.AdditionalIps = append(network.AdditionalIps, &runtimeapi.PodIP{Ip: ip})
		}
	}
	return &runtimeapi.PodSandboxStatus{
		Id:             string(p.ID),
		Metadata:       podMetadata(p.Pod),
		State:          podState(p),
		CreatedAt:      nanos(p.Created),
		Network:        network,
		Linux:          &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{Options: FromNamespaces(p.Namespaces)}},
		Labels:         p.Labels,
		Annotations:    p.Annotations,
		RuntimeHandler: p.Handler,
	}
}

// State is the CRI's word for a phase.
func State(p pod.Phase) runtimeapi.ContainerState {
	switch p {
	case pod.Prepared:
		return runtimeapi.ContainerState_CONTAINER_CREATED
	case pod.Running:
		return runtimeapi.ContainerState_CONTAINER_RUNNING
	case pod.Exited:
		return runtimeapi.ContainerState_CONTAINER_EXITED
	}
	return runtimeapi.ContainerState_CONTAINER_UNKNOWN
}

func imageSpec(i pod.Image) *runtimeapi.ImageSpec {
	name := i.Name
	if name == "" {
		name = i.ID
	}
	return &runtimeapi.ImageSpec{Image: name, UserSpecifiedImage: i.Name}
}

// imageRef is the digested name of an image; one without a digest has its ID.
func imageRef(i pod.Image) string {
	if i.Ref != "" {
		return i.Ref
	}
	return i.ID
}

// FromApp makes the line of a list.
func FromApp(a pod.AppStatus) *runtimeapi.Container {
	return &runtimeapi.Container{
		Id:           string(a.ID),
		PodSandboxId: string(a.Pod),
		Metadata:     &runtimeapi.ContainerMetadata{Name: a.Name, Attempt: a.Attempt},
		Image:        imageSpec(a.Image),
		ImageRef:     imageRef(a.Image),
		ImageId:      a.Image.ID,
		State:        State(a.Phase),
		CreatedAt:    nanos(a.Created),
		Labels:       a.Labels,
		Annotations:  a.Annotations,
	}
}

// FromAppStatus tells all of a container.
func FromAppStatus(a pod.AppStatus) *runtimeapi.ContainerStatus {
	s := &runtimeapi.ContainerStatus{
		Id:          string(a.ID),
		Metadata:    &runtimeapi.ContainerMetadata{Name: a.Name, Attempt: a.Attempt},
		State:       State(a.Phase),
		CreatedAt:   nanos(a.Created),
		StartedAt:   nanos(a.Started),
		Image:       imageSpec(a.Image),
		ImageRef:    imageRef(a.Image),
		ImageId:     a.Image.ID,
		Labels:      a.Labels,
		Annotations: a.Annotations,
		Mounts:      FromMounts(a.Mounts),
		LogPath:     a.LogPath,
		Resources:   &runtimeapi.ContainerResources{Linux: FromResources(a.Current)},
		User:        &runtimeapi.ContainerUser{Linux: user(a.Security)},
		StopSignal:  FromStopSignal(a.StopSignal),
	}
	if a.Phase == pod.Exited {
		exited(s, a)
	}
	return s
}

// exited fills in the end. Kubelet takes a finished container without a time for
// one that never ran, so there always is one.
func exited(s *runtimeapi.ContainerStatus, a pod.AppStatus) {
	s.Reason, s.FinishedAt = pod.ReasonUnknown, nanos(a.Finished)
	s.ExitCode = pod.ExitCodeUnknown
	if e := a.Exit; e != nil {
		s.ExitCode, s.Reason, s.Message = int32(e.Code), e.Reason, e.Message
		if s.FinishedAt == 0 {
			s.FinishedAt = nanos(e.Finished)
		}
	}
	if s.FinishedAt == 0 {
		s.FinishedAt = max(s.StartedAt, s.CreatedAt) + 1
	}
}

func user(s pod.Security) *runtimeapi.LinuxContainerUser {
	u := &runtimeapi.LinuxContainerUser{Uid: int64(s.UID), Gid: int64(s.GID)}
	for _, g := range s.Groups {
		u.SupplementalGroups = append(u.SupplementalGroups, int64(g))
	}
	return u
}

// PodInfo is the "info" that verbose status calls get: for people, in no fixed form.
func PodInfo(p pod.PodStatus) (map[string]string, error) {
	return info(struct {
		*pod.Pod
		Ready bool     `json:"ready"`
		IPs   []string `json:"ips,omitempty"`
	}{p.Pod, p.Ready, p.IPs})
}

// AppInfo is the "info" that verbose status calls get.
func AppInfo(a pod.AppStatus) (map[string]string, error) {
	return info(struct {
		*pod.App
		Phase pod.Phase `json:"phase"`
		PID   int       `json:"pid"`
		Exit  *pod.Exit `json:"exit,omitempty"`
	}{a.App, a.Phase, a.PID, a.Exit})
}

// info packs a value where crictl and others look for it.
func info(v any) (map[string]string, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode info: %w", err)
	}
	return map[string]string{"info": string(b)}, nil
}
