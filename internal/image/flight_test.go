package image

import (
	"context"
	"errors"
	"io"
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

// odd is a decoder that an archive brings to its end.
type odd struct{ left int }

func (o *odd) Read(p []byte) (int, error) {
	if o.left--; o.left < 0 {
		panic("odd archive")
	}
	return copy(p, "data"), nil
}

// TestPanicOfADecoder is an error of who reads, in whatever goroutine it was.
func TestPanicOfADecoder(t *testing.T) {
	t.Parallel()
	a := readAhead(&odd{3}, func([]byte) {})
	defer a.Close()
	_, err := io.ReadAll(a)
	if !errors.Is(err, pod.ErrInternal) || !strings.Contains(err.Error(), "odd archive") || worthBlaming(err) {
		t.Errorf("got %v", err)
	}
}
