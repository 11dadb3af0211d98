//go:build e2e

package node

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestExactLimitsAfterDaemonReload: systemd knows whole percents of a CPU only, and
// writes these at each daemon-reload; gantry-cri writes the exact limit again.
func TestExactLimitsAfterDaemonReload(t *testing.T) {
	guard(t)
	needsGantry(t)
	e := dial(t)
	config := containerConfig("app", "sleep 1000000")
	config.Linux.Resources = &cri.LinuxContainerResources{CpuPeriod: 1000000, CpuQuota: 5000} // 5m
	c := e.run(t, onHost(e.podConfig(t, "reload"))).create(t, config).start(t)
	limit := func() string {
		t.Helper()
		return strings.TrimSpace(sh(t, "cat /sys/fs/cgroup/$(systemctl show --value -p ControlGroup gantry-app-"+c.id+".service)/cpu.max"))
	}
	const want = "5000 1000000"
	if got := limit(); got != want {
		t.Fatalf("before a daemon-reload the limit is %q, want %q", got, want)
	}
	for range 3 {
		sh(t, "systemctl daemon-reload")
		eventually(t, 5*time.Second, "the limit is exact again", func() bool { return limit() == want })
	}
	// A change later on starts from the limits that are in force.
	if _, err := e.UpdateContainerResources(t.Context(), &cri.UpdateContainerResourcesRequest{
		ContainerId: c.id, Linux: &cri.LinuxContainerResources{CpuQuota: 15500},
	}); err != nil {
		t.Fatal(err)
	}
	sh(t, "systemctl daemon-reload")
	eventually(t, 5*time.Second, "the new limit is exact", func() bool { return limit() == "15500 1000000" })
}

// TestExecOfAKilledServer: nobody waits for what it ran. A daemon that an exec left
// in the container stays.
func TestExecOfAKilledServer(t *testing.T) {
	guard(t)
	needsGantry(t)
	e := dial(t)
	c := e.run(t, onHost(e.podConfig(t, "orphan"))).runScript(t, "app", "sleep 1000000")
	c.exec(t, "sh", "-c", "sleep 1000005 >/dev/null 2>&1 </dev/null &")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := e.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"sleep", "1000004"}})
		ended <- err
	}()
	defer func() { cancel(); <-ended }()
	count := func(what string) string {
		ctx, cancel := context.WithTimeout(t.Context(), patience(30*time.Second))
		defer cancel()
		resp, err := e.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"sh", "-c", "ps | grep -c '[s]leep " + what + "'"}}, grpc.WaitForReady(true))
		if err != nil {
			return err.Error()
		}
		return strings.TrimSpace(string(resp.Stdout))
	}
	eventually(t, 10*time.Second, "the exec runs", func() bool { return count("1000004") == "1" })
	sh(t, "systemctl kill -s KILL --kill-whom=main gantry-cri.service")
	eventually(t, 10*time.Second, "the exec of the killed server is gone", func() bool { return count("1000004") == "0" })
	if got := count("1000005"); got != "1" {
		t.Errorf("of the daemon that an exec left there are %s, want 1", got)
	}
}
