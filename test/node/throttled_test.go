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

// TestExecCutOffInAThrottledContainer: what a limit leaves little of the processor needs its
// time to die. Its cgroup goes when it is dead, and not with the container.
func TestExecCutOffInAThrottledContainer(t *testing.T) {
	guard(t)
	needsGantry(t)
	e := dial(t)
	c := e.run(t, onHost(e.podConfig(t, "throttled"))).runScript(t, "app", "exec sleep 1000000")
	group := "/sys/fs/cgroup" + strings.TrimSpace(sh(t, "systemctl show --value -p ControlGroup gantry-app-"+c.id+".service"))
	limit := func(quota int64) {
		t.Helper()
		if _, err := c.UpdateContainerResources(t.Context(), &cri.UpdateContainerResourcesRequest{
			ContainerId: c.id, Linux: &cri.LinuxContainerResources{CpuPeriod: 1000000, CpuQuota: quota},
		}); err != nil {
			t.Fatal(err)
		}
	}
	// They are there before the limit is: each of a dozen is killed with a thousandth of a processor.
	cut := make(chan error, 1)
	go func() {
		_, err := c.ExecSync(t.Context(), &cri.ExecSyncRequest{
			ContainerId: c.id, Timeout: int64(patience(2 * time.Second).Seconds()),
			Cmd: []string{"sh", "-c", "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do (while :; do :; done) & done; touch /began; wait"},
		})
		cut <- err
	}()
	eventually(t, 10*time.Second, "the exec runs", func() bool {
		return sh(t, "test -e /proc/$(systemctl show -P MainPID gantry-app-"+c.id+".service)/root/began && ls -d "+group+"/exec-* | wc -l || true") == "1"
	})
	limit(1000)
	if len(cut) > 0 {
		t.Error("the exec was cut off before there was a limit")
	}
	if err := <-cut; status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("the exec ended with %v", err)
	}
	eventually(t, 60*time.Second, "the exec's cgroup is gone", func() bool {
		return sh(t, "ls -d "+group+"/exec-* 2>/dev/null | wc -l") == "0"
	})
	if c.status(t).State != cri.ContainerState_CONTAINER_RUNNING {
		t.Error("the container has ended")
	}
	limit(-1)
}
