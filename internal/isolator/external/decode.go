package external

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"gantry/internal/initproc"
	"gantry/internal/isolator"
	"gantry/internal/isolator/recipe"
	"gantry/internal/pod"
)

// errAnswer is an answer that is none. Who wrote the executable has to mend it; until
// then the isolator is not available.
var errAnswer = fmt.Errorf("its answer is not one of the contract: %w", pod.ErrUnavailable)

func badAnswer(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errAnswer, fmt.Sprintf(format, args...))
}

// kinds are what an error may be called.
var kinds = map[string]error{
	"invalid": pod.ErrInvalid, "unsupported": pod.ErrUnsupported, "not-found": pod.ErrNotFound,
	"forbidden": pod.ErrForbidden, "unavailable": pod.ErrUnavailable,
}

// decode reads an answer to a verb. Nothing that is not understood is passed over: a
// mistyped word would be a limit that is not kept.
func decode(verb string, data []byte) (answer, error) {
	// The version first: of another one no other word is known.
	var v struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(data, &v); err != nil {
		return answer{}, badAnswer("%v", err)
	}
	if v.Version != Version {
		return answer{}, fmt.Errorf("it speaks version %d of the contract, this is %d: %w", v.Version, Version, pod.ErrUnsupported)
	}
	var a answer
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&a); err != nil {
		return answer{}, badAnswer("%v", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return answer{}, badAnswer("there is more than one document")
	}
	if a.Error != nil {
		return answer{}, a.Error.err()
	}
	return a, a.check(verb)
}

func (f failure) err() error {
	kind, ok := kinds[f.Kind]
	if !ok {
		return badAnswer("an error of kind %q", f.Kind)
	}
	return fmt.Errorf("%s: %w", plainText(f.Message, mostSaid), kind)
}

// check wants what the verb is to give, and nothing else.
func (a answer) check(verb string) error {
	for _, part := range []struct {
		name  string
		verb  string
		given bool
	}{
		{"features", verbFeatures, a.Features != nil},
		{"plan", verbApp, a.Plan != nil},
		{"exec", verbExec, a.Exec != nil},
	} {
		if part.given != (verb == part.verb) {
			return badAnswer("to %s, with %q: %v", verb, part.name, part.given)
		}
	}
	switch verb {
	case verbFeatures:
		return a.Features.check()
	case verbApp:
		return a.Plan.check()
	case verbExec:
		return a.Exec.check()
	}
	return nil
}

func (f features) check() error {
	if _, ok := isolations[f.Isolation]; !ok {
		return badAnswer("isolation %q: want none, namespaces, kernel or machine", f.Isolation)
	}
	if !f.PodNetwork && !f.HostNetwork {
		return badAnswer("features: neither podNetwork nor hostNetwork: no pod could have it")
	}
	if f.Isolation == "none" && !(f.HostPID && f.HostIPC && f.SharedPID) {
		return badAnswer("features: isolation none is hostPID, hostIPC and sharedPID: an app is a process of the host")
	}
	return nil
}

// harmless are the properties of the unit that may be set: they only take away, and
// nothing that Gantry does in the unit needs what they take.
var harmless = []string{"LockPersonality", "MemoryDenyWriteExecute", "ProtectKernelLogs", "ProtectKernelModules", "RestrictRealtime"}

const mostFiles = 64

func (p plan) check() error {
	around, err := checkCommand("run.argv", p.Run.Argv)
	if err != nil {
		return err
	}
	if around && len(p.Run.Env) > 0 {
		return badAnswer("run.env: with %s the environment is the app's own; use env(1) for that of the program", initproc.AppArg)
	}
	if err := recipe.CheckEnv(p.Run.Env); err != nil {
		return badAnswer("run.env: %v", err)
	}
	for name := range p.Properties {
		if !slices.Contains(harmless, name) {
			return badAnswer("properties: %q: want some of %s", name, strings.Join(harmless, ", "))
		}
	}
	for _, d := range p.Devices {
		if err := d.check(); err != nil {
			return err
		}
	}
	return checkFiles(p.Files)
}

func checkFiles(files []file) error {
	if len(files) > mostFiles {
		return badAnswer("files: %d of them, want at most %d", len(files), mostFiles)
	}
	seen := map[string]bool{}
	for _, f := range files {
		if !fs.ValidPath(f.Path) || f.Path == "." || len(f.Path) > 255 || strings.ContainsFunc(f.Path, func(c rune) bool { return c <= ' ' || c == 0x7f }) {
			return badAnswer("files: path %q: want one below the app's directory, without . and .. and blanks", f.Path)
		}
		// A file can be no directory of another.
		for p := f.Path; p != "."; p = path.Dir(p) {
			if seen[p] {
				return badAnswer("files: path %q is used twice", p)
			}
		}
		seen[f.Path] = true
	}
	for _, f := range files {
		for p := path.Dir(f.Path); p != "."; p = path.Dir(p) {
			if seen[p] {
				return badAnswer("files: path %q is a file and a directory", p)
			}
		}
	}
	return nil
}

// checkCommand tells whether a command stands around the app.
func checkCommand(field string, argv []string) (around bool, err error) {
	if len(argv) == 0 {
		return false, badAnswer("%s: no command", field)
	}
	if err := recipe.CheckPath(argv[0]); err != nil {
		return false, badAnswer("%s: program %v", field, err)
	}
	for _, a := range argv {
		switch {
		case strings.ContainsRune(a, 0) || !utf8.ValidString(a):
			return false, badAnswer("%s: an argument has a NUL or is not UTF-8", field)
		case a == initproc.AppArg && around:
			return false, badAnswer("%s: %s is there twice", field, initproc.AppArg)
		case a == initproc.AppArg:
			around = true
		case strings.Contains(a, initproc.AppArg):
			return false, badAnswer("%s: %q: %s must be an argument of its own", field, a, initproc.AppArg)
		}
	}
	return around, nil
}

func (d device) check() error {
	kind := regexp.MustCompile(`^(char|block)-[A-Za-z0-9*-]+$`)
	if recipe.CheckPath(d.Path) != nil && !kind.MatchString(d.Path) || strings.HasPrefix(d.Path, "/") && !strings.HasPrefix(d.Path, "/dev/") {
		return badAnswer("devices: %q: want a path below /dev, or char-… or block-…", d.Path)
	}
	if d.Permissions == "" || strings.Trim(d.Permissions, "rwm") != "" || len(d.Permissions) > 3 {
		return badAnswer("devices: permissions %q: want some of r, w, m", d.Permissions)
	}
	return nil
}

func (e execPlan) check() error {
	around, err := checkCommand("exec.argv", e.Argv)
	if err != nil {
		return err
	}
	// One way or the other the environment has to get there, and not as an argument.
	takes := slices.ContainsFunc(e.Argv, func(a string) bool { return strings.Contains(a, isolator.ProcessArg) })
	if around == takes || takes != (e.Input != nil) {
		return badAnswer("exec.argv: want either %s, or %s and an input", initproc.AppArg, isolator.ProcessArg)
	}
	return nil
}

// plainText keeps what others wrote to a line of bounded length.
func plainText(s string, most int) string {
	words := strings.Fields(strings.ToValidUTF8(s, "?"))
	text := strings.Join(words, " ")
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	return text
}
