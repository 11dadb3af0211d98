package image

import (
	"context"
	"errors"
	"strings"
	"testing"

	"gantry/internal/pod"
)

// TestPanicOfAPull ends the pull, for all who wait for it, and nothing else.
func TestPanicOfAPull(t *testing.T) {
	t.Parallel()
	s := newStore(t, nil)
	for range 2 {
		_, err := s.join(t.Context(), "a", nil, func(context.Context, func(Progress)) (string, error) { panic("odd layer") })
		if !errors.Is(err, pod.ErrInternal) || !strings.Contains(err.Error(), "odd layer") {
			t.Errorf("got %v", err)
		}
	}
	if len(s.flights) != 0 {
		t.Errorf("%d pulls are left", len(s.flights))
	}
}
