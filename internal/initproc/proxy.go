package initproc

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"gantry/internal/disk"
	"gantry/internal/pod"
)

// What a process needs that stands for an app of a machine of its own: it is that
// app's unit, its stdio and its records.

// FetchStdio asks gantry-stdio for the app's stdin, stdout and stderr. Of an app with a
// terminal it returns the socket that the master is to be sent to instead.
func FetchStdio(s Stdio, dir string) (files []*os.File, console string, err error) {
	u, err := ownUnit()
	if err != nil {
		return nil, "", err
	}
	got, err := fetchStdio(s, dir, u)
	if err == nil && got.console != "" {
		got.close()
		return nil, got.console, nil
	}
	return got.files, "", err
}

// GiveTerminal sends the master of a terminal to who holds the app's stdio, and waits
// until that has it safe.
func GiveTerminal(s Stdio, app, console string, master *os.File) error {
	if err := sendTerminal(console, master); err != nil {
		return fmt.Errorf("hand over the terminal: %w", err)
	}
	return awaitConsole(s, app)
}

// SendTerminal sends the master of a terminal to who listens at a socket.
func SendTerminal(socket string, master *os.File) error { return sendTerminal(socket, master) }

// Running records that the app runs, and by which process it is stood for. The unit's
// invocation is left out: another process that takes this one's place is another one.
func Running(dir string) error {
	if run := runRecord(dir); run != nil {
		run.PID = os.Getpid()
		record, err := json.Marshal(run)
		if err != nil {
			return fmt.Errorf("write run record: %w", err)
		}
		return disk.WriteFile(filepath.Join(dir, runFile), record, 0o644)
	}
	// An app may run without: then a disk that is full when it ends costs its record.
	if err := disk.Reserve(filepath.Join(dir, reserveFile), reserveSize, 0o644); err != nil {
		fmt.Fprintln(os.Stderr, "keep room for the record of the end:", err)
	}
	u, err := ownUnit()
	if err != nil {
		return err
	}
	u.Invocation = ""
	return writeRun(dir, u, os.Getpid())
}

// HasRun tells whether an app was started, by whichever process, and HasEnded whether the
// end is recorded.
func HasRun(dir string) bool   { return disk.Exists(filepath.Join(dir, runFile)) }
func HasEnded(dir string) bool { return disk.Exists(filepath.Join(dir, exitFile)) }

// Ready tells systemd that the unit is up.
func Ready() error {
	conn, err := notifySocket(os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		return fmt.Errorf("tell systemd: %w", err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("READY=1")); err != nil {
		return fmt.Errorf("tell systemd: %w", err)
	}
	return nil
}

// Ended records how the app ended, unless that is known.
func Ended(dir string, e pod.Exit) error {
	if HasEnded(dir) {
		return nil
	}
	boot, err := bootID()
	if err != nil {
		return err
	}
	e.BootID, e.InvocationID = boot, os.Getenv("INVOCATION_ID")
	if run := runRecord(dir); run != nil {
		e.Started = run.Started
	}
	record, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("record exit: %w", err)
	}
	return disk.WriteReserved(filepath.Join(dir, exitFile), filepath.Join(dir, reserveFile), record, 0o644)
}

// NotStarted leaves for the recorder of the end why the app could not be started.
func NotStarted(dir string, why error) error {
	return disk.WriteFile(filepath.Join(dir, startErrorFile), []byte(why.Error()), 0o644)
}
