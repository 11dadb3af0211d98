package cri

import (
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/pod"
)

// An ID in a filter or a request may be cut short, as crictl prints it; labels
// must all be equal.

// Pods selects the pods that a filter wants.
func Pods(in []pod.PodStatus, f *runtimeapi.PodSandboxFilter) []pod.PodStatus {
	var out []pod.PodStatus
	for _, p := range in {
		if strings.HasPrefix(string(p.ID), f.GetId()) && hasLabels(p.Labels, f.GetLabelSelector()) &&
			(f.GetState() == nil || f.State.State == podState(p)) {
			out = append(out, p)
		}
	}
	return out
}

// Apps selects the containers that a filter wants, of the pods given.
func Apps(in []pod.PodStatus, f *runtimeapi.ContainerFilter) []pod.AppStatus {
	var out []pod.AppStatus
	for _, p := range in {
		if !strings.HasPrefix(string(p.ID), f.GetPodSandboxId()) {
			continue
		}
		for _, a := range p.Apps {
			if strings.HasPrefix(string(a.ID), f.GetId()) && hasLabels(a.Labels, f.GetLabelSelector()) &&
				(f.GetState() == nil || f.State.State == State(a.Phase)) {
				out = append(out, a)
			}
		}
	}
	return out
}

func hasLabels(have, want map[string]string) bool {
	for k, v := range want {
		if got, ok := have[k]; !ok || got != v {
			return false
		}
	}
	return true
}
