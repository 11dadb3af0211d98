package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Value is an option's value. Set, String and Type make it a flag's.
type Value interface {
	Set(string) error
	String() string
	Type() string

	load(any) error // from a file
	text() string   // for a file
}

type textValue struct {
	p     *string
	check func(string) error
}

func (v *textValue) Set(s string) error {
	if err := v.check(s); err != nil {
		return err
	}
	*v.p = s
	return nil
}

func (v *textValue) load(x any) error {
	s, ok := x.(string)
	if !ok {
		return fmt.Errorf("%v: want a string", x)
	}
	return v.Set(s)
}

func (v *textValue) String() string { return *v.p }
func (v *textValue) Type() string   { return "text" }
func (v *textValue) text() string   { return quote(*v.p) }

// listValue is a list of strings; on a command line it is split at blanks.
type listValue struct {
	p     *[]string
	check func(string) error
}

func (v *listValue) Set(s string) error { return v.set(strings.Fields(s)) }

func (v *listValue) set(l []string) error {
	for _, s := range l {
		if err := v.check(s); err != nil {
			return err
		}
	}
	*v.p = l
	return nil
}

func (v *listValue) load(x any) error {
	in, ok := x.([]any)
	if !ok {
		return fmt.Errorf("%v: want a list of strings", x)
	}
	var out []string
	for _, e := range in {
		s, ok := e.(string)
		if !ok {
			return fmt.Errorf("%v: want a string", e)
		}
		out = append(out, s)
	}
	return v.set(out)
}

func (v *listValue) String() string { return strings.Join(*v.p, " ") }
func (v *listValue) Type() string   { return "list" }

func (v *listValue) text() string {
	quoted := make([]string, len(*v.p))
	for i, s := range *v.p {
		quoted[i] = quote(s)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// quote writes a string as TOML does, which knows fewer escapes than Go.
func quote(s string) string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(s); err != nil {
		return strconv.Quote(s)
	}
	return strings.TrimSuffix(strings.ReplaceAll(b.String(), "\x7f", `\u007f`), "\n")
}

type boolValue struct{ p *bool }

func (v *boolValue) Set(s string) error {
	b, err := strconv.ParseBool(s)
	if err != nil {
		return fmt.Errorf("%q: want true or false", s)
	}
	*v.p = b
	return nil
}

func (v *boolValue) load(x any) error {
	b, ok := x.(bool)
	if !ok {
		return fmt.Errorf("%v: want true or false", x)
	}
	*v.p = b
	return nil
}

func (v *boolValue) String() string   { return strconv.FormatBool(*v.p) }
func (v *boolValue) Type() string     { return "bool" }
func (v *boolValue) IsBoolFlag() bool { return true }
func (v *boolValue) text() string     { return v.String() }

type durationValue struct {
	p   *time.Duration
	min time.Duration
}

func (v *durationValue) Set(s string) error {
	d, err := time.ParseDuration(s)
	if err != nil {
		return fmt.Errorf("%q: want a duration such as 90s or 4h", s)
	}
	if d < v.min {
		return fmt.Errorf("%s: want at least %s", d, v.min)
	}
	*v.p = d
	return nil
}

func (v *durationValue) load(x any) error {
	s, ok := x.(string)
	if !ok {
		return fmt.Errorf("%v: want a duration such as \"90s\"", x)
	}
	return v.Set(s)
}

func (v *durationValue) String() string { return v.p.String() }
func (v *durationValue) Type() string   { return "duration" }
func (v *durationValue) text() string   { return strconv.Quote(v.p.String()) }

// numberValue is a number, or a size with a suffix such as GiB.
type numberValue struct {
	p        *int64
	min, max int64
	size     bool
}

func (v *numberValue) Set(s string) error {
	n, err := v.parse(s)
	if err != nil {
		return err
	}
	if n < v.min || n > v.max {
		return fmt.Errorf("%s: want %s to %s", s, v.show(v.min), v.show(v.max))
	}
	*v.p = n
	return nil
}

func (v *numberValue) parse(s string) (int64, error) {
	digits, unit := s, int64(1)
	if v.size {
		for i, suffix := range suffixes {
			if d, ok := strings.CutSuffix(s, suffix); ok {
				digits, unit = d, 1<<(10*(len(suffixes)-i))
				break
			}
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 || n > (1<<62)/unit {
		if v.size {
			return 0, fmt.Errorf("%q: want a size such as 128GiB", s)
		}
		return 0, fmt.Errorf("%q: want a number", s)
	}
	return n * unit, nil
}

// suffixes of sizes, from 1<<40 down to 1<<10.
var suffixes = [...]string{"TiB", "GiB", "MiB", "KiB"}

func (v *numberValue) show(n int64) string {
	if v.size {
		for i, suffix := range suffixes {
			if unit := int64(1) << (10 * (len(suffixes) - i)); n >= unit && n%unit == 0 {
				return strconv.FormatInt(n/unit, 10) + suffix
			}
		}
	}
	return strconv.FormatInt(n, 10)
}

func (v *numberValue) load(x any) error {
	switch x := x.(type) {
	case int64:
		return v.Set(strconv.FormatInt(x, 10))
	case string:
		if v.size {
			return v.Set(x)
		}
	}
	return fmt.Errorf("%v: want a number", x)
}

func (v *numberValue) String() string { return v.show(*v.p) }

func (v *numberValue) Type() string {
	if v.size {
		return "size"
	}
	return "number"
}

func (v *numberValue) text() string {
	if v.size {
		return strconv.Quote(v.String())
	}
	return v.String()
}

// What a string may be.

func anything(string) error { return nil }

func given(s string) error {
	if s == "" {
		return errors.New("must not be empty")
	}
	return nil
}

// handlerName is the form of a RuntimeClass's handler.
var handlerName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// runtime takes what ParseRuntime does.
func runtime(s string) error {
	_, err := ParseRuntime(s)
	return err
}

// handler takes NAME=ISOLATOR, with a name that Kubernetes takes for a handler.
func handler(s string) error {
	name, to, ok := strings.Cut(s, "=")
	if !ok || to == "" || !handlerName.MatchString(name) {
		return errors.New("want NAME=ISOLATOR, the name of lower-case letters, digits and dashes")
	}
	return nil
}

func label(s string) error {
	if name, _, ok := strings.Cut(s, "="); !ok || name == "" {
		return errors.New("want NAME=VALUE")
	}
	return nil
}

func absolute(s string) error {
	if !filepath.IsAbs(s) {
		return fmt.Errorf("%q: want an absolute path", s)
	}
	return nil
}

func maybeAbsolute(s string) error {
	if s == "" {
		return nil
	}
	return absolute(s)
}

func maybeHostPort(s string) error {
	if s == "" {
		return nil
	}
	return hostPort(s)
}

func hostPort(s string) error {
	if _, _, err := net.SplitHostPort(s); err != nil {
		return fmt.Errorf("%q: want HOST:PORT", s)
	}
	return nil
}

func oneOf(words ...string) func(string) error {
	return func(s string) error {
		if !slices.Contains(words, s) {
			return fmt.Errorf("%q: want one of %q", s, words)
		}
		return nil
	}
}
