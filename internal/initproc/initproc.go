// Package initproc is the code of gantry-init, the small program that systemd
// runs around an app: it starts the OCI runtime and leaves, or becomes the app, and
// it records how the app ended. Its start-up time and memory are charged to every container, so
// it uses the standard library, x/sys and package pod only.
package initproc

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"gantry/internal/namespace"
	"gantry/internal/pod"
)

// The fixed places of the run directory. It is on a tmpfs, made by tmpfiles.d and
// again by whoever starts first.
const (
	RunRoot = "/run/gantry"
	// StateRoot is where the records of pods are.
	StateRoot = "/var/lib/gantry"
	// Exits is the spool of exits: one file for each app that ended, named by its
	// ID. One inotify watch on it tells of every exit on the machine.
	Exits = RunRoot + "/exits"
	// StartFile is the plan's part for gantry-init, in the app's directory.
	StartFile = "start.json"
	// runFile and exitFile are the records of the start and the end.
	runFile, exitFile = "run.json", "exit.json"
	// startErrorFile holds why an app could not be started.
	startErrorFile = "start-error"
	// startDiedFile holds it where the app's process had ended before.
	startDiedFile = "start-died"
	// reserveFile keeps room for the record of the end, should the disk be full then.
	reserveFile = "exit.reserve"
	reserveSize = 4096
)

// Usage is what gantry-init says when it is called by hand.
const Usage = `gantry-init is run by systemd, around the apps of Gantry:

  gantry-init start APPDIR      mounts the rootfs; runs the OCI runtime and leaves, or becomes the app
  gantry-init inside APPDIR     becomes an app, inside of what another program put around it
  gantry-init exec APPDIR PROCESS LOG [CONSOLE]   runs a process in an app of this kind
  gantry-init exited APPDIR     records how the app ended
  gantry-init exited-outside APP   the same, where that was killed
  gantry-init pod-down PODDIR   gives back a pod's network and namespaces
  gantry-init thaw CGROUP       lets the processes of a cgroup go on
  gantry-init host-path PATH USERNS [make]
                                      prints what a path of the host names, and whether it can be ID-mapped;
                                      makes a directory where there is nothing
  gantry-init hold              holds a PID namespace that a pod's apps share
`

var errUsage = errors.New("usage:\n" + strings.TrimSpace(Usage))

// Main runs the command that args (without the program's name) ask for.
func Main(argv0 string, args []string) error {
	if namespace.IsChild([]string{argv0}) {
		return namespace.Child(append([]string{argv0}, args...))
	}
	if len(args) == 1 && args[0] == "hold" {
		return hold()
	}
	switch argv0 {
	case holdStartArg:
		return holdStart()
	case holdArg:
		return holdChild()
	}
	if len(args) > 0 && args[0] == "exec" {
		return execIn(args[1:])
	}
	if make := len(args) == 4 && args[3] == "make"; len(args) > 0 && args[0] == "host-path" && (len(args) == 3 || make) {
		return hostPath(args[1], args[2], make, os.Stdout)
	}
	if len(args) != 2 {
		return errUsage
	}
	switch args[0] {
	case "start":
		return start(args[1])
	case "inside":
		return inside(args[1])
	case "exited":
		return exited(args[1])
	case "exited-outside":
		return exitedOutside(args[1])
	case "pod-down":
		return podDown(args[1])
	case "thaw":
		return thaw(args[1])
	default:
		return fmt.Errorf("command %q: %w", args[0], errUsage)
	}
}

func readStart(dir string) (Start, error) {
	var s Start
	err := readJSON(filepath.Join(dir, StartFile), &s)
	return s, err
}

func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

func bootID() (string, error) {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return string(data[:len(data)-1]), nil
}

// runRecord reads the record of the app's start, nil if it never had a process.
func runRecord(dir string) *pod.Run {
	var r pod.Run
	if readJSON(filepath.Join(dir, runFile), &r) != nil {
		return nil
	}
	return &r
}
