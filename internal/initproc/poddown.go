package initproc

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"gantry/internal/disk"
	"gantry/internal/namespace"
)

// Teardown is the program that gives a pod's network back; "gantry" knows CNI,
// this program is too small for that.
const Teardown = "/usr/bin/gantry"

// podDown is the end of a pod unit: the network goes first, then the namespaces.
// When the engine has done both already, it finds nothing to do.
func podDown(dir string) error {
	id := filepath.Base(dir)
	// The latter alone is of a pod that is being made.
	if disk.Exists(filepath.Join(dir, "network.json")) || disk.Exists(filepath.Join(dir, "attachment.json")) {
		cmd := exec.Command(Teardown, "internal", "network-down", id)
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("give back the network of pod %s: %w", id, err)
		}
	}
	return namespace.Remove(filepath.Join(RunRoot, "pods", id))
}
