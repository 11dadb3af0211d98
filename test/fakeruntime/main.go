// Command fakeruntime is an OCI runtime that does what a script says before, after
// or instead of what a real one does. See package runtimetest for what it can do,
// and docs/testing.md for how to put it between Gantry and crun.
package main

import (
	"os"

	"gantry/test/fakeruntime/runtimetest"
)

func main() { os.Exit(runtimetest.Main(os.Args, os.Environ())) }
