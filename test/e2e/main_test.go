//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"gantry/internal/guest"
	"gantry/internal/network/networktest"
	"gantry/test/fakeruntime/runtimetest"
	"gantry/test/machine"
)

// TestMain lets the test binary be a CNI plugin, an OCI runtime and an app of a virtual
// machine as well.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == runtimetest.Name {
		os.Exit(runtimetest.Main(os.Args, os.Environ()))
	}
	if guest.IsInside(os.Args) {
		_ = guest.Inside() // it has said why
		os.Exit(1)
	}
	if guest.IsHolder(os.Args) {
		if guest.Hold() != nil {
			os.Exit(1)
		}
		return
	}
	if os.Getenv("CNI_COMMAND") != "" {
		os.Exit(networktest.Main())
	}
	os.Exit(machine.Main(m))
}

func guard(t *testing.T) { t.Helper(); machine.Guard(t) }

func notRun(t *testing.T, format string, args ...any) { t.Helper(); machine.NotRun(t, format, args...) }

// onlyLong is for tests that measure, which is no reason to hold up everybody.
func onlyLong(t *testing.T) {
	t.Helper()
	if !machine.Long() {
		machine.LeftOut(t, "it measures, and takes minutes; trial test --long runs it")
	}
}

func patience(d time.Duration) time.Duration { return machine.Patience(d) }

func sh(t *testing.T, command string) string { t.Helper(); return machine.Sh(t, command) }

func eventually(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	machine.Eventually(t, limit, what, ok)
}
