// Command fakecni is a CNI plugin that does what the JSON file beside it says.
// See package networktest for what it can do, and docs/networking.md for how to
// put it between the plugins of a network.
package main

import (
	"os"

	"gantry/internal/network/networktest"
)

func main() { os.Exit(networktest.Main()) }
