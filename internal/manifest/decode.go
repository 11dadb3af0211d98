package manifest

import (
	"fmt"
	"reflect"
	"sort"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxNodes bounds the work that aliases of aliases can cause.
const maxNodes = 200_000

// maxProblems is how many problems are worth telling at once.
const maxProblems = 20

// refuser is a struct some of whose fields Kubernetes knows and Gantry does not
// honour: the field's name and the reason.
type refuser interface{ refused() map[string]string }

// scalar is a type that is read from one word, such as a quantity.
type scalar interface{ parse(word string) error }

// decoder fills structs from YAML nodes and remembers what it refused.
type decoder struct {
	problems []Problem
	lines    map[string]int // line of each path, for validation
	budget   int
}

func (d *decoder) add(path, format string, args ...any) {
	d.addAt(d.lineOf(path), path, format, args...)
}

func (d *decoder) addAt(line int, path, format string, args ...any) {
	if len(d.problems) < maxProblems {
		d.problems = append(d.problems, Problem{Line: line, Path: path, Text: fmt.Sprintf(format, args...)})
	}
}

// lineOf returns the line of path or of its nearest parent.
func (d *decoder) lineOf(path string) int {
	for path != "" {
		if line, ok := d.lines[path]; ok {
			return line
		}
		path = path[:max(strings.LastIndexAny(path, ".["), 0)]
	}
	return 0
}

func (d *decoder) decodeRoot(n *yaml.Node, p *Pod) { d.value(n, "", reflect.ValueOf(p).Elem()) }

func (d *decoder) value(n *yaml.Node, path string, v reflect.Value) {
	if d.budget--; d.budget < 0 {
		if d.budget == -1 {
			d.addAt(n.Line, path, "the manifest is too large")
		}
		return
	}
	if n.Kind == yaml.AliasNode {
		d.value(n.Alias, path, v)
		return
	}
	if path != "" {
		d.lines[path] = n.Line
	}
	if isNull(n) {
		return
	}
	if v.Kind() == reflect.Pointer {
		v.Set(reflect.New(v.Type().Elem()))
		v = v.Elem()
	}
	if s, ok := v.Addr().Interface().(scalar); ok {
		d.scalar(n, path, s)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.mapping(n, path, "a mapping", func(key *yaml.Node, value *yaml.Node) { d.field(key, value, path, v) })
	case reflect.Map:
		d.stringMap(n, path, v)
	case reflect.Slice:
		d.list(n, path, v)
	default:
		d.basic(n, path, v)
	}
}

// mapping calls each for every key; a key may stand once.
func (d *decoder) mapping(n *yaml.Node, path, want string, each func(key, value *yaml.Node)) {
	if n.Kind != yaml.MappingNode {
		d.addAt(n.Line, path, "%s: want %s", show(n), want)
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		switch {
		case key.Kind != yaml.ScalarNode:
			d.addAt(key.Line, path, "a key must be a word")
		case key.Tag == "!!merge":
			d.addAt(key.Line, path, "merge keys (<<) are not supported")
		case seen[key.Value]:
			d.addAt(key.Line, join(path, key.Value), "stands twice")
		default:
			seen[key.Value] = true
			each(key, n.Content[i+1])
		}
	}
}

func (d *decoder) field(key, value *yaml.Node, path string, v reflect.Value) {
	at := join(path, key.Value)
	if i, ok := fieldOf(v.Type(), key.Value); ok {
		d.value(value, at, v.Field(i))
		return
	}
	if r, ok := v.Interface().(refuser); ok {
		if why, ok := r.refused()[key.Value]; ok {
			if !isEmpty(value) {
				d.addAt(key.Line, at, "is not supported: %s", why)
			}
			return
		}
	}
	text := "is unknown"
	if near := nearest(v.Type(), key.Value); near != "" {
		text += ": did you mean " + near + "?"
	}
	d.addAt(key.Line, at, "%s", text)
}

func (d *decoder) stringMap(n *yaml.Node, path string, v reflect.Value) {
	v.Set(reflect.MakeMap(v.Type()))
	d.mapping(n, path, "a mapping", func(key, value *yaml.Node) {
		elem := reflect.New(v.Type().Elem()).Elem()
		d.value(value, join(path, key.Value), elem)
		v.SetMapIndex(reflect.ValueOf(key.Value), elem)
	})
}

func (d *decoder) list(n *yaml.Node, path string, v reflect.Value) {
	if n.Kind != yaml.SequenceNode {
		d.addAt(n.Line, path, "%s: want a list", show(n))
		return
	}
	out := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
	for i, c := range n.Content {
		at := fmt.Sprintf("%s[%d]", path, i)
		if isNull(c) {
			d.addAt(c.Line, at, "is empty")
			continue
		}
		d.value(c, at, out.Index(i))
	}
	v.Set(out)
}

func (d *decoder) scalar(n *yaml.Node, path string, s scalar) {
	if n.Kind != yaml.ScalarNode {
		d.addAt(n.Line, path, "%s: want a single value", show(n))
		return
	}
	if err := s.parse(n.Value); err != nil {
		d.addAt(n.Line, path, "%s: %v", show(n), err)
	}
}

func (d *decoder) basic(n *yaml.Node, path string, v reflect.Value) {
	if n.Kind != yaml.ScalarNode {
		d.addAt(n.Line, path, "%s: want %s", show(n), kindWord(v.Kind()))
		return
	}
	ok := false
	switch v.Kind() {
	case reflect.String:
		ok = n.ShortTag() == "!!str" && !oldBoolean(n)
		v.SetString(n.Value)
	case reflect.Bool:
		var b bool
		if ok = n.ShortTag() == "!!bool"; ok {
			b, _ = strconv.ParseBool(strings.ToLower(n.Value))
		}
		v.SetBool(b)
	case reflect.Int32, reflect.Int64:
		i, err := strconv.ParseInt(n.Value, 10, v.Type().Bits())
		ok = err == nil && n.ShortTag() == "!!int"
		v.SetInt(i)
	}
	if !ok {
		d.addAt(n.Line, path, "%s: want %s", show(n), kindWord(v.Kind()))
	}
}

// oldBoolean is a word that the API server's YAML 1.1 reads as true or false.
func oldBoolean(n *yaml.Node) bool {
	if n.Style != 0 {
		return false
	}
	switch strings.ToLower(n.Value) {
	case "yes", "no", "on", "off":
		return true
	}
	return false
}

func kindWord(k reflect.Kind) string {
	switch k {
	case reflect.String:
		return "a string (quote numbers and words such as yes or true)"
	case reflect.Bool:
		return "true or false"
	default:
		return "a whole number"
	}
}

func fieldOf(t reflect.Type, name string) (int, bool) {
	for i := range t.NumField() {
		if t.Field(i).Tag.Get("yaml") == name {
			return i, true
		}
	}
	return 0, false
}

// nearest is the field whose name differs from name in case only or by a slip.
func nearest(t reflect.Type, name string) string {
	var names []string
	for i := range t.NumField() {
		names = append(names, t.Field(i).Tag.Get("yaml"))
	}
	sort.Strings(names)
	for _, n := range names {
		if strings.EqualFold(n, name) || strings.TrimSuffix(n, "s") == strings.TrimSuffix(name, "s") {
			return n
		}
	}
	return ""
}

func join(path, key string) string {
	if strings.ContainsAny(key, ".[]/ ") || key == "" {
		return fmt.Sprintf("%s[%q]", path, key)
	}
	if path == "" {
		return key
	}
	return path + "." + key
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

func isEmpty(n *yaml.Node) bool {
	if n.Kind == yaml.ScalarNode {
		return isNull(n) || n.Value == ""
	}
	return len(n.Content) == 0 && n.Kind != yaml.AliasNode
}
