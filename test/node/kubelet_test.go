//go:build e2e

package node

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const staticPod = `apiVersion: v1
kind: Pod
metadata: {name: two, namespace: default}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: talker
    image: registry.k8s.io/busybox:1.37
    command: [sh, -c, "echo hello; sleep 1000000"]
  - name: web
    image: docker.io/library/nginx:latest
    readinessProbe: {httpGet: {port: 80}, periodSeconds: 1}
`

// TestStockKubelet runs a static pod of two containers under a kubelet that
// knows nothing of Gantry.
func TestStockKubelet(t *testing.T) {
	guard(t)
	if !exists("/usr/local/bin/kubelet") {
		notRun(t, "there is no kubelet in the VM; put it there with: go run ./test/trial kubelet")
	}
	e := dial(t)
	unit := "trial-kubelet@gantry"
	if os.Getenv("GANTRY_E2E_CRI") != "" {
		unit = "trial-kubelet@containerd"
	}
	const manifest = "/etc/kubernetes/manifests/two.yaml"
	running := func() int {
		resp, err := e.ListContainers(t.Context(), &cri.ListContainersRequest{Filter: &cri.ContainerFilter{
			State:         &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING},
			LabelSelector: map[string]string{"io.kubernetes.pod.namespace": "default"},
		}})
		if err != nil {
			t.Fatal(err)
		}
		return len(resp.Containers)
	}
	t.Cleanup(func() { sh(t, "systemctl stop "+unit+"; rm -f "+manifest) })
	if err := os.WriteFile(manifest, []byte(staticPod), 0o644); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	sh(t, "systemctl start "+unit)
	eventually(t, 20*time.Second, "two containers run", func() bool { return running() == 2 })
	t.Logf("two containers run %.1f s after the start of kubelet", time.Since(start).Seconds())
	eventually(t, 10*time.Second, "kubelet says ready", func() bool {
		out, err := exec.Command("sh", "-c", `curl -sk https://127.0.0.1:10250/pods | jq -r '.items[].status.conditions[]|select(.type=="Ready").status'`).Output()
		return err == nil && strings.TrimSpace(string(out)) == "True"
	})
	if unit == "trial-kubelet@gantry" { // its feature gate PodAndContainerStatsFromCRI is on
		kubeletMeasures(t)
	}
	if err := os.Remove(manifest); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "the pod is gone", func() bool {
		resp, err := e.ListPodSandbox(t.Context(), &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{LabelSelector: map[string]string{"io.kubernetes.pod.namespace": "default"}}})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range resp.Items {
			if p.State == cri.PodSandboxState_SANDBOX_READY {
				return false
			}
		}
		return running() == 0
	})
	sh(t, "systemctl stop "+unit)
	e.removeAll(t, "default")
}

// kubeletMeasures asks kubelet what Gantry told it: what metrics-server reads, and what
// Prometheus does.
func kubeletMeasures(t *testing.T) {
	t.Helper()
	const pod = "two-gantry-trial"
	eventually(t, 30*time.Second, "kubelet's summary has the pod with its network and its containers", func() bool {
		out, err := exec.Command("sh", "-c", `curl -sk https://127.0.0.1:10250/stats/summary | jq -r '.pods[] | select(.podRef.name=="`+pod+`") |
			select(.network.name=="eth0" and .network.txBytes>0 and .process_stats.process_count>0 and .memory.workingSetBytes>0 and .cpu.usageNanoCores != null) |
			.containers[] | select(.cpu.usageCoreNanoSeconds>0 and .memory.workingSetBytes>0 and .rootfs.usedBytes>0) | .name' | sort`).CombinedOutput()
		return err == nil && string(out) == "talker\nweb\n"
	})
	out, err := exec.Command("curl", "-sk", "https://127.0.0.1:10250/metrics/cadvisor").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`container_cpu_usage_seconds_total{container="talker",cpu="total",id="/kubepods.slice/`,
		`container_memory_working_set_bytes{container="web",id="/kubepods.slice/`,
		`container_network_transmit_bytes_total{container="POD",id="/kubepods.slice/`,
		`namespace="default",pod="` + pod + `"}`,
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("kubelet's metrics have no %s", want)
		}
	}
}

// removeAll removes what a kubelet left stopped: it would do so at a time of
// its own choice.
func (e engine) removeAll(t *testing.T, namespace string) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context()) // it is for clean-ups, too
	resp, err := e.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{LabelSelector: map[string]string{"io.kubernetes.pod.namespace": namespace}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range resp.Items {
		pod{engine: e, id: p.Id, config: &cri.PodSandboxConfig{Metadata: p.Metadata}}.remove(t)
	}
}
