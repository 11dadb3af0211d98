package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"gantry/internal/pod"
	"gantry/internal/systemd"
	"gantry/internal/unit"
)

// around is an isolator whose programs may be the main process of an app's unit, with
// the app behind it. What such a program does with a signal is its own business.
type around interface {
	MainIsAround() bool
}

// signalApp sends an app its stop signal. One that has ended needs none.
func (e *Engine) signalApp(ctx context.Context, s pod.AppStatus) error {
	p, err := e.store.ReadPod(s.Pod)
	if err != nil {
		return ignore(err, pod.ErrNotFound)
	}
	if iso, ok := e.iso[p.Isolator].(signaler); ok {
		bounded, cancel := context.WithTimeout(ctx, remoteTime)
		defer cancel()
		if err := iso.Signal(bounded, e.dirs(p.ID, s.ID), s.ID, s.StopSignal, false); err != nil && !errors.Is(err, pod.ErrNotFound) {
			e.log.Warn("an app is not told to stop: it will be killed", "app", s.ID, "err", err)
		}
		return nil
	}
	name := unit.App(string(s.ID))
	if iso, ok := e.iso[p.Isolator].(around); ok && iso.MainIsAround() {
		return e.signalProcess(s.PID, name, s.StopSignal)
	}
	return ignore(e.cfg.Systemd.Kill(ctx, name, "main", s.StopSignal), systemd.ErrNotFound)
}

// signalProcess sends a signal to a process of a unit. A number that is another process's
// by now gets none.
func (e *Engine) signalProcess(pid int, name string, signal int) error {
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return ignore(err, unix.ESRCH)
	}
	defer unix.Close(process)
	group, err := groupOf(e.cfg.Proc, pid)
	if err != nil || !strings.Contains(group, "/"+name) {
		return ignore(ignore(err, os.ErrNotExist), unix.ESRCH)
	}
	if err := unix.PidfdSendSignal(process, unix.Signal(signal), nil, 0); err != nil {
		return ignore(fmt.Errorf("signal process %d: %w", pid, err), unix.ESRCH)
	}
	return nil
}

// groupOf is the cgroup of a process, as the kernel writes it.
func groupOf(proc string, pid int) (string, error) {
	f, err := os.Open(filepath.Join(proc, strconv.Itoa(pid), "cgroup"))
	if err != nil {
		return "", err
	}
	defer f.Close()
	const most = 4096
	data, err := io.ReadAll(io.LimitReader(f, most))
	return string(data), err
}
