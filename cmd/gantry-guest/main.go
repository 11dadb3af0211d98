// Command gantry-guest is the first process of a pod's virtual machine, where it runs the
// pod's apps.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"gantry/internal/guest"
)

// version is set when the program is built.
var version = "unknown"

func main() {
	if guest.IsInside(os.Args) {
		if err := guest.Inside(); err != nil {
			os.Exit(1)
		}
	}
	if os.Getpid() == 1 {
		guest.First(context.Background(), version)
	}
	fmt.Fprintln(os.Stderr, "gantry-guest:", errors.New("it is the first process of a virtual machine, and does nothing elsewhere"))
	os.Exit(1)
}
