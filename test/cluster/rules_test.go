//go:build !e2e

package cluster

import (
	"testing"

	"gantry/test/machine"
)

// TestEveryTestIsGuarded is the one test here that runs anywhere.
func TestEveryTestIsGuarded(t *testing.T) {
	t.Parallel()
	machine.CheckGuarded(t)
}
