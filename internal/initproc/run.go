package initproc

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/disk"
	"gantry/internal/pod"
)

// start brings an app up and leaves. Systemd sees it as the service's main
// process until the app's own process takes that place:
//
//	fetch stdio, mount the rootfs, "crun create"   the app's process exists, and waits
//	write exact limits, and run.json               from here on the app has run
//	MAINPID=, READY=1, barrier                     PID 1 watches the app's process
//	"crun start"                                   the app runs
//
// Its process is a child of PID 1 from the moment "crun create" left, and PID 1
// knows it before it may run: no exit, however early, is missed.
func start(dir string) error {
	liftCPU()
	// An app may run without: then a disk that is full when it ends costs its record.
	if err := disk.Reserve(filepath.Join(dir, reserveFile), reserveSize, 0o644); err != nil {
		fmt.Fprintln(os.Stderr, "gantry-init:", err)
	}
	pid, err := startApp(dir)
	if err == nil {
		return nil
	}
	file := startErrorFile
	if pid > 0 && ended(pid) {
		file = startDiedFile
	}
	err = errors.Join(err, os.WriteFile(filepath.Join(dir, file), []byte(err.Error()), 0o644))
	if file == startErrorFile && pid > 0 {
		// It waits to be started, for ever, and may be the unit's main process already.
		err = errors.Join(err, unix.Kill(pid, unix.SIGKILL))
	}
	return err
}

// ended tells whether the app's process is no more, so that how it ended says more
// than that the runtime could not start it: it was killed while it waited.
func ended(pid int) bool {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return errors.Is(err, unix.ESRCH)
	}
	defer unix.Close(fd)
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return err == nil && n == 1
}

// startApp returns the app's process as soon as there is one, whatever happens
// then.
func startApp(dir string) (int, error) {
	s, err := readStart(dir)
	if err != nil {
		return 0, fmt.Errorf("read plan: %w", err)
	}
	switch {
	case s.Program:
		return 0, runProgram(s, dir)
	case len(s.Around) > 0:
		return 0, runAround(s, dir)
	case s.Self != nil:
		return 0, runSelf(s, dir)
	}
	u, err := ownUnit()
	if err != nil {
		return 0, err
	}
	stdio, err := fetchStdio(s.Stdio, dir, u)
	if err != nil {
		return 0, fmt.Errorf("fetch stdio: %w", err)
	}
	if err := prepare(s); err != nil {
		return 0, err
	}
	room, err := makeRoom(s)
	if err != nil {
		return 0, fmt.Errorf("make room for the app's cgroup: %w", err)
	}
	pid, err := create(s, stdio)
	if err != nil {
		return 0, fmt.Errorf("create container: %w", err)
	}
	stdio.close()
	return pid, letGo(s, dir, u, pid, stdio.console != "", room)
}

// letGo hands the app's process, which waits, over to PID 1 and lets it run.
func letGo(s Start, dir string, u unitFacts, pid int, console bool, room *room) error {
	if console {
		if err := awaitConsole(s.Stdio, s.App); err != nil {
			return err
		}
	}
	if err := writeCgroup(u.Cgroup, s.Cgroup); err != nil {
		return fmt.Errorf("set cgroup limits: %w", err)
	}
	if err := room.limit(); err != nil {
		return fmt.Errorf("set cgroup limits: %w", err)
	}
	if err := writeRun(dir, u, pid); err != nil {
		return err
	}
	if err := notifyMain(pid); err != nil {
		return fmt.Errorf("tell systemd the main process: %w", err)
	}
	if err := runtimeOf(s).run(s.atMost(startTime), nil, "start", s.App); err != nil {
		return fmt.Errorf("start container: %w", err)
	}
	return room.close()
}

func prepare(s Start) error {
	if s.Rootfs.Shared {
		if err := leaveHost(s.Rootfs.Target); err != nil {
			return fmt.Errorf("leave the host's mount namespace: %w", err)
		}
	}
	if err := relabel(s.Relabel); err != nil {
		return err
	}
	if err := mountTrees(s.Trees); err != nil {
		return fmt.Errorf("mount image volumes: %w", err)
	}
	if err := mountRootfs(s.Rootfs); err != nil {
		return fmt.Errorf("mount rootfs: %w", err)
	}
	return nil
}

func create(s Start, io stdioFiles) (int, error) {
	pidFile := filepath.Join(s.Bundle, "pid")
	args := []string{"create", "--bundle", s.Bundle, "--pid-file", pidFile}
	if io.console != "" {
		args = append(args, "--console-socket", io.console)
	}
	if err := runtimeOf(s).run(s.atMost(createTime), io.files, append(args, s.App)...); err != nil {
		return 0, err
	}
	data, err := os.ReadFile(pidFile)
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || pid < 2 {
		return 0, fmt.Errorf("the runtime's pid file says %.20q", data)
	}
	return pid, nil
}

// unitFacts are what is known of the unit that we run in, also by who cannot see it any
// more: in other namespaces and with another environment.
type unitFacts struct {
	Invocation string `json:"invocation"`
	Cgroup     string `json:"cgroup"` // its directory
	Notify     string `json:"notify"` // the socket of systemd
}

func ownUnit() (unitFacts, error) {
	dir, err := unitCgroup()
	return unitFacts{os.Getenv("INVOCATION_ID"), dir, os.Getenv("NOTIFY_SOCKET")}, err
}

func writeRun(dir string, u unitFacts, pid int) error {
	boot, err := bootID()
	if err != nil {
		return err
	}
	record, err := json.Marshal(pod.Run{
		BootID: boot, Unit: filepath.Base(u.Cgroup), InvocationID: u.Invocation, PID: pid, Started: time.Now(),
	})
	if err != nil {
		return fmt.Errorf("write run record: %w", err)
	}
	return disk.WriteFile(filepath.Join(dir, runFile), record, 0o644)
}
