// Gantry-init is run by systemd around every app: it starts the OCI runtime and
// leaves, and it records how the app ended.
package main

import (
	"fmt"
	"os"

	"gantry/internal/initproc"
)

func main() {
	if err := initproc.Main(os.Args[0], os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "gantry-init:", err)
		os.Exit(1)
	}
}
