package criserver

import (
	"errors"
	"fmt"
	"testing"

	"gantry/internal/pod"
)

// TestGone: only what was asked for may be gone, not what it needs.
func TestGone(t *testing.T) {
	t.Parallel()
	missing := fmt.Errorf("plugin: %w", pod.ErrNotFound)
	is := func(err error) func() error { return func() error { return err } }
	for name, c := range map[string]struct {
		err, found, want error
	}{
		"done":                    {nil, nil, nil},
		"not there":               {missing, missing, nil},
		"something else is not":   {missing, nil, missing},
		"it cannot be looked for": {missing, pod.ErrUnavailable, missing},
		"somebody else's":         {&foreignError{"x"}, &foreignError{"x"}, pod.ErrNotOwner},
	} {
		if got := gone(c.err, is(c.found)); !errors.Is(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}
