package oci

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// lineWidth is how long a line may be before a value is broken up.
const lineWidth = 110

// pretty prints JSON for people: what fits in a line stays in one, keys sorted.
func pretty(v any) []byte {
	var b bytes.Buffer
	writePretty(&b, v, 0)
	return b.Bytes()
}

func writePretty(b *bytes.Buffer, v any, level int) {
	line := compact(v)
	if len(line)+2*level <= lineWidth {
		b.WriteString(line)
		return
	}
	indent := strings.Repeat("  ", level+1)
	switch v := v.(type) {
	case map[string]any:
		b.WriteString("{\n")
		for i, key := range slices.Sorted(maps.Keys(v)) {
			fmt.Fprintf(b, "%s%s: ", indent, compact(key))
			writePretty(b, v[key], level+1)
			endItem(b, i, len(v))
		}
		b.WriteString(indent[2:] + "}")
	case []any:
		if isFlat(v) {
			writeFilled(b, v, indent)
			return
		}
		b.WriteString("[\n")
		for i, item := range v {
			b.WriteString(indent)
			writePretty(b, item, level+1)
			endItem(b, i, len(v))
		}
		b.WriteString(indent[2:] + "]")
	default:
		b.WriteString(line)
	}
}

// isFlat tells whether nothing in a list can be broken up.
func isFlat(list []any) bool {
	for _, item := range list {
		switch item.(type) {
		case map[string]any, []any:
			return false
		}
	}
	return true
}

func writeFilled(b *bytes.Buffer, list []any, indent string) {
	b.WriteString("[")
	width := lineWidth
	for i, item := range list {
		text := compact(item)
		if i < len(list)-1 {
			text += ","
		}
		if width += 1 + len(text); width > lineWidth {
			b.WriteString("\n" + indent[1:])
			width = len(indent) + len(text)
		}
		b.WriteString(" " + text)
	}
	b.WriteString("\n" + indent[2:] + "]")
}

func endItem(b *bytes.Buffer, i, n int) {
	if i < n-1 {
		b.WriteByte(',')
	}
	b.WriteByte('\n')
}

func compact(v any) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Sprintf("%q", fmt.Sprint(v))
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// summary says in one line which seccomp profile it is.
func summary(seccomp map[string]any) string {
	rules, _ := seccomp["syscalls"].([]any)
	calls := 0
	for _, r := range rules {
		rule, _ := r.(map[string]any)
		names, _ := rule["names"].([]any)
		calls += len(names)
	}
	return fmt.Sprintf("%v by default, %d rules about %d system calls", seccomp["defaultAction"], len(rules), calls)
}
