package criserver

import (
	"slices"
	"testing"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestLeavesGarbage looks at all methods there are: what kubelet asks for every
// second must not make the collector run.
func TestLeavesGarbage(t *testing.T) {
	t.Parallel()
	var got []string
	for _, service := range []grpc.ServiceDesc{runtimeapi.RuntimeService_ServiceDesc, runtimeapi.ImageService_ServiceDesc} {
		for _, m := range service.Methods {
			if leavesGarbage(m.MethodName) {
				got = append(got, m.MethodName)
			}
		}
	}
	slices.Sort(got)
	want := []string{
		"CreateContainer", "PullImage", "RemoveContainer", "RemoveImage", "RemovePodSandbox", "RunPodSandbox", "StartContainer",
		"StopContainer", "StopPodSandbox", "UpdateContainerResources", "UpdatePodSandboxResources", "UpdateRuntimeConfig",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
