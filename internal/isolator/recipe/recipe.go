// Package recipe is what isolators have in common whose apps are processes of the
// host: the units of a pod and of its apps, their limits, the pod's files, and what
// can be wrong with any pod or app.
//
//	sandbox.go    the pod: its files, its slice, its unit
//	service.go    the app's unit
//	resources.go  limits
//	check.go      what is refused
//	security.go   hidden paths, profiles; with caps.go, seccomp.go, devices.go
//	process.go    environment, groups, limits of a process
//	mounts.go     what an app sees in its file system beside its image
package recipe

import (
	"fmt"

	"gantry/internal/isolator"
	"gantry/internal/pod"
	"gantry/internal/unit"
)

// Recipe is what is fixed per node and isolator.
type Recipe struct {
	// Features are what the isolator honours.
	Features isolator.Features
	// Init is the path of gantry-init.
	Init string
	// StdioSocket is gantry-stdio's; "" leaves apps the unit's stdio (the journal).
	StdioSocket string
}

// Run is a command of gantry-init.
func (r Recipe) Run(args ...string) unit.Command {
	return unit.Command{Path: r.Init, Args: append([]string{r.Init}, args...)}
}

// Invalid is an error that is pod.ErrInvalid.
func Invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, pod.ErrInvalid)...)
}
