package manifest

import (
	"fmt"
	"strings"
)

// Command is what a container runs, with every $(VARIABLE) replaced as Kubernetes
// does: from the container's own env, in order, never from the image's.
type Command struct {
	Command, Args []string
	Env           []string // NAME=value
}

// Expand returns c's command, arguments and environment in pod p.
func (p *Pod) Expand(c *Container) Command {
	known := map[string]string{}
	var out Command
	for _, e := range c.Env {
		value := expand(e.Value, known)
		if e.ValueFrom != nil && e.ValueFrom.FieldRef != nil {
			value, _ = p.fieldValue(e.ValueFrom.FieldRef.FieldPath)
		}
		known[e.Name] = value
		out.Env = append(out.Env, e.Name+"="+value)
	}
	out.Command = expandAll(c.Command, known)
	out.Args = expandAll(c.Args, known)
	return out
}

func expandAll(list []string, known map[string]string) []string {
	var out []string
	for _, s := range list {
		out = append(out, expand(s, known))
	}
	return out
}

// expand replaces $(NAME) where NAME is known and $$ by $; anything else stays.
func expand(s string, known map[string]string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '$' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		switch s[i+1] {
		case '$':
			b.WriteByte('$')
			i++
		case '(':
			end := strings.IndexByte(s[i:], ')')
			if end < 0 {
				b.WriteString(s[i:])
				return b.String()
			}
			if value, ok := known[s[i+2:i+end]]; ok {
				b.WriteString(value)
			} else {
				b.WriteString(s[i : i+end+1])
			}
			i += end
		default:
			b.WriteByte('$')
		}
	}
	return b.String()
}

// fieldValue reads a field of the pod for the downward API.
func (p *Pod) fieldValue(path string) (string, error) {
	switch path {
	case "metadata.name":
		return p.Metadata.Name, nil
	case "metadata.namespace":
		return p.NamespaceOrDefault(), nil
	}
	for prefix, values := range map[string]map[string]string{
		"metadata.labels":      p.Metadata.Labels,
		"metadata.annotations": p.Metadata.Annotations,
	} {
		key, ok := strings.CutPrefix(path, prefix+"['")
		if !ok {
			continue
		}
		if key, ok = strings.CutSuffix(key, "']"); ok {
			return values[key], nil
		}
	}
	return "", fmt.Errorf("%q is not supported: want metadata.name, metadata.namespace, metadata.labels['KEY'] or metadata.annotations['KEY']", path)
}

// NamespaceOrDefault is the pod's namespace: "default" if it names none.
func (p *Pod) NamespaceOrDefault() string {
	if p.Metadata.Namespace == "" {
		return "default"
	}
	return p.Metadata.Namespace
}

func validateEnv(p *Pod, c *Container, at string, add adder) {
	for i, e := range c.Env {
		at := fmt.Sprintf("%s.env[%d]", at, i)
		if e.Name == "" || strings.ContainsAny(e.Name, "=\x00") {
			add(at+".name", "%q: want a name without =", e.Name)
		}
		if strings.ContainsRune(e.Value, 0) {
			add(at+".value", "holds a zero byte")
		}
		if e.ValueFrom == nil {
			continue
		}
		if e.Value != "" {
			add(at+".valueFrom", "cannot be combined with value")
		}
		if e.ValueFrom.FieldRef == nil {
			add(at+".valueFrom", "is empty: want fieldRef")
			continue
		}
		if _, err := p.fieldValue(e.ValueFrom.FieldRef.FieldPath); err != nil {
			add(at+".valueFrom.fieldRef.fieldPath", "%v", err)
		}
	}
}
