//go:build e2e

package node

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"gantry/test/machine"
)

func TestMain(m *testing.M) {
	if err := exec.Command("systemctl", "start", slice).Run(); err != nil {
		fmt.Fprintln(os.Stderr, "start "+slice+":", err)
		os.Exit(2)
	}
	os.Exit(machine.Main(m))
}

func guard(t *testing.T) { t.Helper(); machine.Guard(t) }

func notRun(t *testing.T, format string, args ...any) { t.Helper(); machine.NotRun(t, format, args...) }

func patience(d time.Duration) time.Duration { return machine.Patience(d) }

func sh(t *testing.T, command string) string { t.Helper(); return machine.Sh(t, command) }

func eventually(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	machine.Eventually(t, limit, what, ok)
}

func machineLeft(t *testing.T, before machine.Traces, but ...string) {
	t.Helper()
	machine.Left(t, before, but...)
}

// withConfig restarts the server with some configuration, until the end of the test.
func withConfig(t *testing.T, text string) {
	t.Helper()
	const file = "/etc/gantry/config.d/94-e2e.toml"
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(file); err != nil {
			t.Error(err)
		}
		sh(t, "systemctl restart gantry-cri.service")
	})
	sh(t, "systemctl restart gantry-cri.service")
}
