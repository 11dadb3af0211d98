package unit

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Text renders the unit for people: one Name=value line a property, in the order
// of the plan. It is stable, so golden files and bug reports can hold it.
func (u Unit) Text() string {
	var b strings.Builder
	for _, p := range u.Properties {
		for _, line := range lines(p.Value) {
			fmt.Fprintf(&b, "%s=%s\n", p.Name, line)
		}
	}
	return b.String()
}

func lines(v Value) []string {
	switch v := v.(type) {
	case Commands:
		out := make([]string, len(v))
		for i, c := range v {
			out[i] = c.text()
		}
		return out
	case Devices:
		out := make([]string, len(v))
		for i, d := range v {
			out[i] = d.Path + " " + d.Permissions
		}
		return out
	case Tmpfs:
		out := make([]string, len(v))
		for i, f := range v {
			out[i] = f.Path + ":" + f.Options
		}
		return out
	default:
		return []string{scalar(v)}
	}
}

func scalar(v Value) string {
	switch v := v.(type) {
	case String:
		return string(v)
	case Bool:
		return map[bool]string{true: "yes", false: "no"}[bool(v)]
	case Int32:
		return strconv.FormatInt(int64(v), 10)
	case Uint32:
		return strconv.FormatUint(uint64(v), 10)
	case Uint64:
		if v == Infinity {
			return "infinity"
		}
		return strconv.FormatUint(uint64(v), 10)
	case Duration:
		return time.Duration(v).String()
	case Strings:
		return strings.Join(v, " ")
	case Bytes:
		return fmt.Sprintf("%x", []byte(v))
	default:
		return fmt.Sprintf("%v", v)
	}
}

func (c Command) text() string {
	args := make([]string, len(c.Args))
	for i, a := range c.Args {
		args[i] = a
		if a == "" || strings.ContainsAny(a, " \t\"'\\") {
			args[i] = strconv.Quote(a)
		}
	}
	s := strings.Join(args, " ")
	if len(c.Args) > 0 && c.Args[0] != c.Path {
		s = c.Path + " (argv[0]=" + s + ")"
	}
	if c.IgnoreFailure {
		s = "-" + s
	}
	return s
}
