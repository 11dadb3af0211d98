// Package manifest reads the part of a Kubernetes Pod (v1) that Gantry runs by
// itself, without a kubelet. It is strict on purpose: a field that would be
// silently ignored is a promise broken, so every field that is unknown, or known
// and not supported, is refused with its line, its path and a reason.
//
// Null and empty values count as unset, as they do for the API server, so what
// kubectl prints with --dry-run=client -o yaml can be used after few edits.
package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sort"
	"strings"

	"go.yaml.in/yaml/v3"

	"gantry/internal/pod"
)

// MaxSize is the largest manifest that is read; etcd takes no larger object.
const MaxSize = 1 << 20

// Problem is one thing that is wrong in a manifest.
type Problem struct {
	Line int    // 0 if unknown
	Path string // spec.containers[0].image
	Text string
}

func (p Problem) String() string {
	var b strings.Builder
	if p.Line > 0 {
		fmt.Fprintf(&b, "line %d: ", p.Line)
	}
	if p.Path != "" {
		b.WriteString(p.Path + ": ")
	}
	return b.String() + p.Text
}

// Error lists all problems of a manifest, in the order of its lines.
type Error struct{ Problems []Problem }

func (e *Error) Error() string {
	if len(e.Problems) == 1 {
		return e.Problems[0].String()
	}
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = "\n  " + p.String()
	}
	return fmt.Sprintf("%d problems:%s", len(e.Problems), strings.Join(lines, ""))
}

// Unwrap makes errors.Is(err, pod.ErrInvalid) true.
func (e *Error) Unwrap() error { return pod.ErrInvalid }

// Parse reads one Pod from YAML or JSON. The error is an *Error.
func Parse(data []byte) (*Pod, error) {
	if len(data) > MaxSize {
		return nil, &Error{[]Problem{{Text: fmt.Sprintf("the manifest has %d bytes, at most %d are read", len(data), MaxSize)}}}
	}
	root, err := document(data)
	if err != nil {
		return nil, &Error{[]Problem{{Text: err.Error()}}}
	}
	d := &decoder{lines: map[string]int{}, budget: maxNodes}
	p := &Pod{}
	if problem, ok := kindProblem(root); ok {
		return nil, &Error{[]Problem{problem}}
	}
	d.decodeRoot(root, p)
	if len(d.problems) == 0 {
		validate(p, d.add)
	}
	if len(d.problems) > 0 {
		sort.SliceStable(d.problems, func(i, j int) bool { return d.problems[i].Line < d.problems[j].Line })
		return nil, &Error{d.problems}
	}
	return p, nil
}

// document returns the only document of data.
func document(data []byte) (*yaml.Node, error) {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var root, next yaml.Node
	switch err := dec.Decode(&root); {
	case errors.Is(err, io.EOF):
		return nil, errors.New("the manifest is empty")
	case err != nil:
		return nil, syntaxError(err)
	}
	if len(root.Content) != 1 {
		return nil, errors.New("the manifest is empty")
	}
	switch err := dec.Decode(&next); {
	case errors.Is(err, io.EOF):
	case err != nil:
		return nil, syntaxError(err)
	case len(next.Content) != 1 || !isNull(next.Content[0]):
		return nil, fmt.Errorf("line %d: a second document begins here: give one Pod a file", next.Line)
	}
	return root.Content[0], nil
}

func syntaxError(err error) error {
	return errors.New(strings.TrimPrefix(strings.Join(strings.Fields(err.Error()), " "), "yaml: "))
}

// kindProblem looks at apiVersion and kind before anything else: for a
// Deployment or a List, a wall of unknown fields would hide what is wrong.
func kindProblem(root *yaml.Node) (Problem, bool) {
	if root.Kind != yaml.MappingNode {
		return Problem{Line: root.Line, Text: "want a Pod, a mapping with apiVersion: v1 and kind: Pod"}, true
	}
	found := map[string]*yaml.Node{}
	for i := 0; i+1 < len(root.Content); i += 2 {
		found[root.Content[i].Value] = root.Content[i+1]
	}
	for _, want := range []struct{ key, value string }{{"kind", "Pod"}, {"apiVersion", "v1"}} {
		n := found[want.key]
		if n == nil {
			return Problem{Line: root.Line, Path: want.key, Text: "is missing: want " + want.value}, true
		}
		if n.Kind != yaml.ScalarNode || n.Value != want.value {
			return Problem{Line: n.Line, Path: want.key, Text: fmt.Sprintf("%s is not supported: want %s", show(n), want.value)}, true
		}
	}
	return Problem{}, false
}

func show(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	if len(n.Value) > 60 {
		return fmt.Sprintf("%q…", n.Value[:60])
	}
	return fmt.Sprintf("%q", n.Value)
}
