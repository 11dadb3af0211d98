package config

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Runtime is an OCI runtime that is an isolator of its own.
type Runtime struct {
	Name string
	// Kind is what its options are like; "" is told by the program's name.
	Kind    string
	Command []string
}

// RuntimeKinds are the words for Runtime.Kind.
var RuntimeKinds = [...]string{"crun", "runc", "runsc", "youki"}

// builtIn are the names of isolators that are Gantry's own, or will be.
var builtIn = [...]string{"oci", "fly", "kvm"}

// ParseRuntime reads NAME=PROGRAM [OPTION]..., and NAME:KIND=PROGRAM [OPTION]...
func ParseRuntime(text string) (Runtime, error) {
	left, command, ok := strings.Cut(text, "=")
	name, kind, hasKind := strings.Cut(left, ":")
	r := Runtime{Name: name, Kind: kind, Command: strings.Fields(command)}
	switch {
	case !ok || !handlerName.MatchString(name) || name[0] < 'a':
		return r, fmt.Errorf("%q: want NAME=PROGRAM [OPTION]..., the name of lower-case letters, digits and dashes", text)
	case slices.Contains(builtIn[:], name):
		return r, fmt.Errorf("%q: isolator %s is Gantry's own, choose another name", text, name)
	case hasKind && !slices.Contains(RuntimeKinds[:], kind):
		return r, fmt.Errorf("%q: kind %q: want one of %s", text, kind, strings.Join(RuntimeKinds[:], ", "))
	case len(r.Command) == 0 || !filepath.IsAbs(r.Command[0]):
		return r, fmt.Errorf("%q: want the absolute path of a program after %s=", text, left)
	}
	return r, nil
}

// Check finds what cannot be together, though each value is right for itself.
func (c *Config) Check() error {
	names := map[string]string{}
	take := func(name, key string) error {
		if other, taken := names[name]; taken {
			return fmt.Errorf("%s: %s: there is another isolator of that name, of %s", key, name, other)
		}
		names[name] = key
		return nil
	}
	var errs []error
	for _, text := range c.OCIRuntimes {
		r, err := ParseRuntime(text)
		errs = append(errs, err, take(r.Name, "oci.runtimes"))
	}
	for _, text := range c.Handlers {
		name, _, _ := strings.Cut(text, "=")
		if _, taken := names[name]; taken {
			errs = append(errs, take(name, "isolator.handlers"))
		}
	}
	return errors.Join(append(errs, c.checkKVM())...)
}

// runtimesValue is a list of runtimes. On a command line their options are blanks apart
// too: what does not begin a runtime belongs to that before.
type runtimesValue struct{ p *[]string }

var beginsRuntime = regexp.MustCompile(`^[a-z0-9][-a-z0-9:]*=/`)

func (v *runtimesValue) Set(s string) error {
	var list []string
	for _, word := range strings.Fields(s) {
		if len(list) == 0 || beginsRuntime.MatchString(word) {
			list = append(list, word)
			continue
		}
		list[len(list)-1] += " " + word
	}
	return v.list().set(list)
}

func (v *runtimesValue) list() *listValue { return &listValue{v.p, runtime} }
func (v *runtimesValue) load(x any) error { return v.list().load(x) }
func (v *runtimesValue) String() string   { return v.list().String() }
func (v *runtimesValue) Type() string     { return v.list().Type() }
func (v *runtimesValue) text() string     { return v.list().text() }
