//go:build e2e

package node

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// flyConfig is a pod of the host's network in a namespace that may choose the isolator
// fly, or in one that may not.
func (e engine) flyConfig(t *testing.T, namespace string) *cri.PodSandboxConfig {
	t.Helper()
	return asFly(e.podConfig(t, "agent"), namespace)
}

func asFly(config *cri.PodSandboxConfig, namespace string) *cri.PodSandboxConfig {
	onHost(config)
	config.Metadata.Namespace = namespace
	config.Annotations["gantry.io/isolator"] = "fly"
	return config
}

// TestFly: a pod of two containers which are the host's own processes, as kubelet asks
// for it and looks at it.
func TestFly(t *testing.T) {
	guard(t)
	needsGantry(t)
	e := dial(t)
	p := e.run(t, e.flyConfig(t, "fly"))
	if n := p.status(t).Linux.Namespaces.Options; n.Network != cri.NamespaceMode_NODE || n.Pid != cri.NamespaceMode_NODE || n.Ipc != cri.NamespaceMode_NODE {
		t.Errorf("the status says %v", n)
	}
	first := p.runScript(t, "first", "trap 'exit 42' TERM; echo up; while :; do sleep 0.2; done")
	second := p.runScript(t, "second", "cat /proc/1/comm; sleep 1000000")
	eventually(t, 10*time.Second, "both speak", func() bool {
		return texts(first.logFile(t), "stdout") == "up\n" && texts(second.logFile(t), "stdout") == "systemd\n"
	})
	if out, errOut, code := second.exec(t, "sh", "-c", "echo out; echo err >&2; exit 7"); out != "out\n" || errOut != "err\n" || code != 7 {
		t.Errorf("exec: got %q, %q, %d", out, errOut, code)
	}
	ctx := t.Context()
	stats, err := e.ContainerStats(ctx, &cri.ContainerStatsRequest{ContainerId: second.id})
	if err != nil || stats.Stats.Memory.GetWorkingSetBytes().GetValue() == 0 || stats.Stats.Cpu.GetUsageCoreNanoSeconds().GetValue() == 0 {
		t.Errorf("stats: %v, %v", stats, err)
	}
	if _, err := e.UpdateContainerResources(ctx, &cri.UpdateContainerResourcesRequest{
		ContainerId: second.id, Linux: &cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20},
	}); err != nil {
		t.Errorf("resize: %v", err)
	}
	if got := second.status(t).Resources.GetLinux().GetMemoryLimitInBytes(); got != 64<<20 {
		t.Errorf("the limit is %d", got)
	}
	first.stop(t, 60)
	if s := first.wait(t, 10*time.Second); s.ExitCode != 42 {
		t.Errorf("the first ended with %d %s", s.ExitCode, s.Reason)
	}
	if s := second.status(t); s.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the second is %s", s.State)
	}
}

// TestFlyNeedsTheOperator: who makes a pod does not decide that it is isolated less.
func TestFlyNeedsTheOperator(t *testing.T) {
	guard(t)
	needsGantry(t)
	e := dial(t)
	_, err := e.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: e.flyConfig(t, "e2e")})
	if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "isolator.weaker-namespaces") {
		t.Errorf("in a namespace that may not: %v", err)
	}
	own := e.flyConfig(t, "fly")
	own.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_POD
	if _, err := e.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: own}); err == nil || !strings.Contains(err.Error(), "network") {
		t.Errorf("with a network of its own: %v", err)
	}
	s, err := e.Status(t.Context(), &cri.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range s.RuntimeHandlers {
		if h.Name == "fly" && !h.Features.UserNamespaces && h.Features.RecursiveReadOnlyMounts {
			return
		}
	}
	t.Errorf("the node's handlers are %v", s.RuntimeHandlers)
}
