//go:build e2e

package cluster

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"gantry/test/machine"
)

// TestMain ends the cluster, which the first test has begun.
func TestMain(m *testing.M) {
	code := machine.Main(m)
	if err := endCluster(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func endCluster() error {
	script := "systemctl stop " + kubeletUnit + " trial-apiserver trial-etcd"
	if _, err := os.Stat(configFile); err == nil {
		script += " && rm -r " + configFile + " " + isolatorDir + " && systemctl try-restart gantry-cri.service"
	}
	if out, err := exec.Command("sh", "-c", script).CombinedOutput(); err != nil {
		return fmt.Errorf("end the cluster: %w: %s", err, out)
	}
	return nil
}

func guard(t *testing.T) { t.Helper(); machine.Guard(t) }

func notRun(t *testing.T, format string, args ...any) { t.Helper(); machine.NotRun(t, format, args...) }

func patience(d time.Duration) time.Duration { return machine.Patience(d) }

func sh(t *testing.T, command string) string { t.Helper(); return machine.Sh(t, command) }

func eventually(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	machine.Eventually(t, limit, what, ok)
}
