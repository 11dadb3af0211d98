package initproc

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// AppArg stands in Start.Around for the command that becomes the app.
const AppArg = "{app}"

// insideFile is what that command is told of the unit, which it may not see any more.
const insideFile = "inside.json"

// hostEnv is the environment of a program of the host that we become.
func hostEnv() []string {
	return []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
}

// outside is what we know before another program is put around the app.
type outside struct {
	Unit unitFacts `json:"unit"`
	// Proc is the device of the host's /proc: every other one has another.
	Proc uint64 `json:"proc"`
}

// runAround mounts the rootfs and becomes the program that is put around the app. It
// returns only if that cannot be.
//
//	mount the rootfs, become the program        the unit's main process, from its first moment on
//	the program runs "gantry-init inside"       as root, with the host's files and /proc
//	    fetch stdio, furnish the rootfs
//	    write exact limits, and run.json        from here on the app has run
//	    drop privileges, READY=1, execve
//
// Until then stderr is the journal: what the program says is no output of the app.
func runAround(s Start, dir string) error {
	u, err := ownUnit()
	if err != nil {
		return err
	}
	proc, err := procDevice()
	if err != nil {
		return err
	}
	known, err := json.Marshal(outside{u, proc})
	if err != nil {
		return fmt.Errorf("write %s: %w", insideFile, err)
	}
	if err := os.WriteFile(filepath.Join(dir, insideFile), known, 0o644); err != nil {
		return err
	}
	if err := prepare(s); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	args := slices.Clone(s.Around)
	if i := slices.Index(args, AppArg); i >= 0 {
		args = slices.Replace(args, i, i+1, self, "inside", dir)
	}
	return executeHost(args, hostEnv())
}

func procDevice() (uint64, error) {
	var stat unix.Stat_t
	if err := unix.Stat("/proc", &stat); err != nil {
		return 0, fmt.Errorf("look at /proc: %w", err)
	}
	return uint64(stat.Dev), nil
}

func executeHost(args, env []string) error {
	if err := executable(args[0]); err != nil {
		return err
	}
	if err := unignoreSignals(); err != nil {
		return err
	}
	return fmt.Errorf("execute %s: %w", args[0], syscall.Exec(args[0], args, env))
}

// inside becomes the app. It is what a program runs that was put around it.
func inside(dir string) error {
	err := becomeInside(dir)
	return errors.Join(err, os.WriteFile(filepath.Join(dir, startErrorFile), []byte(err.Error()), 0o644))
}

// becomeInside returns only if it fails.
func becomeInside(dir string) error {
	s, err := readStart(dir)
	if err == nil && (s.Self == nil || len(s.Around) == 0) {
		err = errors.New("nothing is put around this app")
	}
	if err != nil {
		return fmt.Errorf("read plan: %w", err)
	}
	var p Process
	if err := readJSON(filepath.Join(dir, ProcessFile), &p); err != nil {
		return fmt.Errorf("read plan: %w", err)
	}
	var out outside
	if err := readJSON(filepath.Join(dir, insideFile), &out); err != nil {
		return fmt.Errorf("read what is around: %w", err)
	}
	pid, err := pidOnHost(out)
	if err != nil {
		return err
	}
	if err := protectProgram(p); err != nil {
		return err
	}
	stdio, err := fetchStdio(s.Stdio, dir, out.Unit)
	if err != nil {
		return fmt.Errorf("fetch stdio: %w", err)
	}
	return settle(s, p, settling{dir: dir, unit: out.Unit, pid: pid, stdio: stdio})
}

// pidOnHost is our number as the host counts.
func pidOnHost(out outside) (int, error) {
	proc, err := procDevice()
	if err != nil {
		return 0, err
	}
	if proc != out.Proc {
		return 0, errors.New("what is around the app has mounted another /proc: leave the host's, the app is given its own")
	}
	link, err := os.Readlink("/proc/self")
	if err != nil {
		return 0, fmt.Errorf("find own process: %w", err)
	}
	return strconv.Atoi(link)
}

// runProgram becomes a program of the host that is all of the app. It returns only if
// that cannot be.
func runProgram(s Start, dir string) error {
	var p Process
	if err := readJSON(filepath.Join(dir, ProcessFile), &p); err != nil {
		return fmt.Errorf("read plan: %w", err)
	}
	u, err := ownUnit()
	if err != nil {
		return err
	}
	stdio, err := fetchStdio(s.Stdio, dir, u)
	if err != nil {
		return fmt.Errorf("fetch stdio: %w", err)
	}
	if err := prepare(s); err != nil {
		return err
	}
	if stdio.console != "" {
		if stdio.files, err = hostTerminal(s, p, stdio.console); err != nil {
			return fmt.Errorf("make a terminal: %w", err)
		}
	}
	if err := writeCgroup(u.Cgroup, s.Cgroup); err != nil {
		return fmt.Errorf("set cgroup limits: %w", err)
	}
	if err := executable(p.Args[0]); err != nil {
		return err
	}
	conn, err := notifySocket(u.Notify)
	if err != nil {
		return fmt.Errorf("tell systemd: %w", err)
	}
	defer conn.Close()
	if err := writeRun(dir, u, os.Getpid()); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("READY=1")); err != nil {
		return fmt.Errorf("tell systemd: %w", err)
	}
	return executeWith(stdio.files, p)
}

// hostTerminal makes a terminal of the host's.
func hostTerminal(s Start, p Process, console string) ([]*os.File, error) {
	host, err := openRootfs("/")
	if err != nil {
		return nil, err
	}
	defer host.close()
	files, err := host.terminal(p, console)
	if err != nil {
		return nil, err
	}
	return files, awaitConsole(s.Stdio, s.App)
}

// executeWith keeps our own stderr, for what there is to say if it fails.
func executeWith(files []*os.File, p Process) error {
	own, err := unix.FcntlInt(2, unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return fmt.Errorf("keep stderr: %w", err)
	}
	defer unix.Close(own)
	for i, f := range files {
		if err := unix.Dup3(int(f.Fd()), i, 0); err != nil {
			return fmt.Errorf("hand over stdio: %w", err)
		}
	}
	return errors.Join(executeHost(p.Args, append(hostEnv(), p.Env...)), unix.Dup3(own, 2, 0))
}
