package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"unicode"

	"github.com/spf13/cobra"

	"gantry/internal/manifest"
	"gantry/internal/pod"
)

// Exit codes. An app's own code is passed through by run and exec, so Gantry's
// own errors keep to the codes that env(1), timeout(1) and nohup(1) use for
// theirs: see docs/decisions.
const (
	exitTimeout   = 124 // status --wait: the time is over
	exitError     = 125 // Gantry itself failed, wrong usage included
	exitCannotRun = 126 // the app's program is there and cannot be run
	exitNotFound  = 127 // the app's program is not there
)

// codeError ends the program with a code; what there is to say was said.
type codeError struct{ code int }

func (e *codeError) Error() string { return fmt.Sprintf("exit code %d", e.code) }

// usageError is a wrong command line.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// hintError carries what to do next.
type hintError struct {
	err  error
	hint string
}

func (e *hintError) Error() string { return e.err.Error() }
func (e *hintError) Unwrap() error { return e.err }

func withHint(err error, format string, args ...any) error {
	return &hintError{err, fmt.Sprintf(format, args...)}
}

// report prints err as "gantry: verb object: cause", with a hint if there is one,
// and returns the exit code.
func report(w io.Writer, cmd *cobra.Command, err error) int {
	var code *codeError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return code.code
	}
	text := err.Error()
	var usage *usageError
	if errors.As(err, &usage) && cmd != nil && cmd.HasParent() {
		text = strings.TrimPrefix(cmd.CommandPath(), "gantry ") + ": " + text
	}
	var m *manifest.Error
	if !errors.As(err, &m) {
		text = strings.ReplaceAll(text, "\n", "; ")
	}
	fmt.Fprintf(w, "gantry: %s\n", printable(text))
	if hint := hintFor(cmd, err); hint != "" {
		fmt.Fprintf(w, "hint: %s\n", printable(hint))
	}
	return exitError
}

func hintFor(cmd *cobra.Command, err error) string {
	var usage *usageError
	var hint *hintError
	switch {
	case errors.As(err, &hint):
		return hint.hint
	case errors.As(err, &usage):
		return cmd.CommandPath() + " --help"
	case errors.Is(err, fs.ErrPermission):
		return "run it as root"
	case errors.Is(err, pod.ErrNotOwner):
		return "the pod belongs to a kubelet; --force overrides that"
	}
	return ""
}

// printable keeps what others wrote (a registry, an image, a manifest) from
// steering the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && r != '\t' && !unicode.IsPrint(r) {
			return '�'
		}
		return r
	}, s)
}

// needRoot is asked first by all commands that change something.
func needRoot(env *Env, verb string) error {
	if env.UID == 0 {
		return nil
	}
	return withHint(fmt.Errorf("%s: you are not root: %w", verb, fs.ErrPermission), "sudo gantry %s …", verb)
}
