// Command gantry-guest is the first process of a pod's virtual machine, where it runs the
// pod's apps. On the host it prepares the machine, and stands for each app and exec.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"gantry/internal/guest"
	"gantry/internal/machine"
)

// version is set when the program is built.
var version = "unknown"

const usage = `gantry-guest is run by systemd, around virtual machines of Gantry:

  gantry-guest files PODDIR SERVER ARGUMENT...   makes what the machine needs, and becomes its file server
  gantry-guest compose              makes what machines boot, as the JSON on its input says
  gantry-guest await PODDIR SECONDS   waits until the machine's agent answers, and connects the pod's network
  gantry-guest down PODDIR STAGE   notes why a program of the machine's has ended
  gantry-guest release RUNDIR      takes off the host what the machine shared
  gantry-guest app APPDIR          runs an app in the machine, and stands for it
  gantry-guest ended APPDIR RESULT ends the app that such a process stood for, unless another will
  gantry-guest machine-ended PODDIR UNIT   records how the machine ended
  gantry-guest exec APPDIR PROCESS LOG [CONSOLE]   the same for a process in an app

As the first process of a machine it runs the pod's apps there.`

var errUsage = errors.New("usage:\n" + strings.TrimSpace(usage))

func main() {
	if guest.IsInside(os.Args) {
		if err := guest.Inside(); err != nil {
			os.Exit(1)
		}
	}
	if guest.IsHolder(os.Args) { // it is PID 1, too
		if err := guest.Hold(); err != nil {
			os.Exit(1)
		}
		return
	}
	logrus.SetOutput(io.Discard) // the transport's, of which a hostile machine could have lines without end
	ctx := context.Background()
	if os.Getpid() == 1 {
		guest.First(ctx, version)
	}
	code, err := run(ctx, os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "gantry-guest:", err)
		code = 1
		if errors.Is(err, machine.ErrGoesOn) {
			code = machine.GoesOn
		}
	}
	os.Exit(code)
}

// outcome is what systemd says of the unit that has ended: this one, or the one for whose
// failure this one was started.
func outcome() machine.Outcome {
	of := ""
	if os.Getenv("MONITOR_SERVICE_RESULT") != "" {
		of = "MONITOR_"
	}
	return machine.Outcome{Result: os.Getenv(of + "SERVICE_RESULT"), Code: os.Getenv(of + "EXIT_CODE"), Status: os.Getenv(of + "EXIT_STATUS")}
}

func run(ctx context.Context, args []string) (code int, err error) {
	switch {
	case len(args) == 1 && args[0] == "compose":
		return 0, machine.Compose(ctx, os.Stdin)
	case len(args) >= 3 && args[0] == "files":
		return 0, told(ctx, args[1], machine.StageFiles, machine.ServeFiles(ctx, args[1], args[2:]))
	case len(args) == 2 && args[0] == "release":
		return 0, machine.Release(args[1])
	case len(args) == 3 && args[0] == "down":
		return 0, machine.Down(ctx, args[1], args[2])
	case len(args) == 3 && args[0] == "await":
		return 0, told(ctx, args[1], machine.StageBoot, await(ctx, args[1], args[2]))
	case len(args) == 2 && args[0] == "app":
		return 0, machine.RunApp(ctx, args[1])
	case len(args) == 3 && args[0] == "ended":
		return 0, machine.EndApp(ctx, args[1], args[2])
	case len(args) == 3 && args[0] == "machine-ended":
		return 0, machine.RecordEnd(ctx, args[1], args[2], outcome())
	case len(args) == 4 && args[0] == "exec":
		return exec(ctx, args[1:], "")
	case len(args) == 5 && args[0] == "exec":
		return exec(ctx, args[1:4], args[4])
	}
	return 0, errUsage
}

// told leaves an error of a machine's start where the engine finds it.
func told(ctx context.Context, podDir, stage string, err error) error {
	if err == nil {
		return nil
	}
	return machine.NotUp(ctx, podDir, stage, err)
}

// mainPID is the main process of the unit that we run for, 0 if nobody says.
func mainPID() int {
	pid, err := strconv.Atoi(os.Getenv("MAINPID"))
	if err != nil {
		return 0
	}
	return pid
}

func await(ctx context.Context, podDir, seconds string) error {
	patience, err := strconv.Atoi(seconds)
	if err != nil {
		return errUsage
	}
	info, err := machine.Await(ctx, podDir, mainPID(), time.Duration(patience)*time.Second)
	if err != nil {
		return err
	}
	fmt.Printf("the machine is up: kernel %s, agent %s\n", info.Kernel, info.Version)
	return nil
}

// exec says in a log why a process cannot be run: its standard error is the process's.
func exec(ctx context.Context, args []string, console string) (int, error) {
	code, err := machine.RunExec(ctx, args[0], args[1], console)
	if err != nil {
		return 1, errors.Join(err, os.WriteFile(args[2], []byte(err.Error()), 0o600))
	}
	return code, nil
}
