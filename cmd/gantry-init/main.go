// Gantry-init is run by systemd around every app: it starts the OCI runtime and
// leaves, or becomes the app, and it records how the app ended.
package main

import (
	"errors"
	"fmt"
	"os"

	"gantry/internal/initproc"
)

func main() {
	err := initproc.Main(os.Args[0], os.Args[1:])
	if err == nil {
		return
	}
	if !errors.Is(err, initproc.ErrLogged) {
		fmt.Fprintln(os.Stderr, "gantry-init:", err)
	}
	os.Exit(1)
}
