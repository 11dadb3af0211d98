package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/containernetworking/cni/pkg/types"

	"gantry/internal/pod"
)

// past is a deadline that has passed.
var past = time.Unix(1, 0)

// Codes of the CNI specification that say more than "it failed".
const (
	codeTryAgain     = 11
	codeNotAvailable = 50
	codeLimited      = 51
)

// pluginError is the failure of one plugin.
type pluginError struct {
	plugin string
	after  time.Duration

	cause  error  // how the process ended, if that says something
	code   uint   // of the plugin's own error
	msg    string // of the plugin's own error
	stderr string
}

func (e *pluginError) Error() string {
	var parts []string
	if e.msg != "" {
		parts = append(parts, e.msg)
	}
	if e.cause != nil {
		parts = append(parts, e.cause.Error())
	}
	if e.stderr != "" {
		parts = append(parts, "stderr: "+e.stderr)
	}
	return fmt.Sprintf("plugin %s: %s (after %s)", e.plugin, strings.Join(parts, ": "), round(e.after))
}

// Unwrap gives the cause, and the kind of what the plugin said.
func (e *pluginError) Unwrap() []error {
	var errs []error
	if e.cause != nil {
		errs = append(errs, e.cause)
	}
	switch e.code {
	case codeTryAgain, codeNotAvailable, codeLimited:
		errs = append(errs, pod.ErrUnavailable)
	}
	return errs
}

// pluginFailure reads how a plugin failed: a CNI error object on its standard
// output if it was able to write one.
func pluginFailure(end error, stdout, stderr []byte) error {
	pe := &pluginError{stderr: oneLine(stderr)}
	var said types.Error
	if json.Unmarshal(stdout, &said) == nil && said.Msg != "" {
		pe.code, pe.msg = said.Code, oneLine([]byte(said.Msg))
		if said.Details != "" {
			pe.msg += ": " + oneLine([]byte(said.Details))
		}
	} else if s := oneLine(stdout); s != "" {
		pe.msg = fmt.Sprintf("no CNI error but %q", shorten(s, 512))
	}
	var exit *exec.ExitError
	if errors.As(end, &exit) {
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			pe.cause = fmt.Errorf("killed by signal %d (%s)", ws.Signal(), ws.Signal())
		} else if pe.msg == "" || pe.code == 0 {
			pe.cause = fmt.Errorf("exit status %d", exit.ExitCode())
		}
		return pe
	}
	pe.cause = end
	return pe
}

// failed names the stage of an error and, unless a plugin's duration is in it
// already, how long it took.
func failed(op string, start time.Time, err error) error {
	var pe *pluginError
	if err == nil {
		return nil
	}
	if errors.As(err, &pe) {
		return fmt.Errorf("network %s: %w", op, err)
	}
	return fmt.Errorf("network %s: %w (after %s)", op, err, round(time.Since(start)))
}

// round keeps three digits or so.
func round(d time.Duration) time.Duration {
	switch {
	case d > 10*time.Second:
		return d.Round(100 * time.Millisecond)
	case d > time.Second:
		return d.Round(10 * time.Millisecond)
	case d > time.Millisecond:
		return d.Round(100 * time.Microsecond)
	}
	return d.Round(time.Microsecond)
}

// oneLine makes foreign text fit for an error: one line, printable, not long.
func oneLine(b []byte) string {
	s := strings.ToValidUTF8(string(b), "?")
	s = strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return ' '
		}
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
	return shorten(strings.Join(strings.Fields(s), " "), 2048)
}

// shorten keeps the end, where the reason usually is.
func shorten(s string, max int) string {
	if len(s) <= max {
		return s
	}
	s = s[len(s)-max:]
	for len(s) > 0 && !utf8.RuneStart(s[0]) {
		s = s[1:]
	}
	return "…" + s
}
