package engine

import (
	"errors"
	"testing"

	"gantry/internal/pod"
)

// TestHandlers: a further name of an isolator is the isolator, and the pod keeps the name
// that was asked for.
func TestHandlers(t *testing.T) {
	t.Parallel()
	b := newBench(t, false, nil)
	cfg := b.cfg
	cfg.Handlers = map[string]string{"standard": "oci"}
	e, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	spec := hostPod("named")
	spec.Handler = "standard"
	p, err := e.CreatePod(t.Context(), spec)
	if err != nil || p.Handler != "standard" || p.Isolator != "oci" {
		t.Errorf("pod %+v, %v", p, err)
	}
	var names []string
	for _, f := range e.Features() {
		names = append(names, f.Name)
	}
	if len(names) != 2 || names[0] != "oci" || names[1] != "standard" {
		t.Errorf("handlers are %q", names)
	}
	for name, c := range map[string]struct {
		handlers map[string]string
		kind     error
	}{
		"no such isolator":   {map[string]string{"a": "none"}, pod.ErrNotFound},
		"an isolator's name": {map[string]string{"oci": "oci"}, pod.ErrExists},
	} {
		cfg.Handlers = c.handlers
		if _, err := New(t.Context(), cfg); !errors.Is(err, c.kind) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
