package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
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

// TestPanicOfADecoder: it is the pull's that reads, through whatever goroutines it came. The
// error is a line; where it was, the log tells.
func TestPanicOfADecoder(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	s := newStore(t, func(c *Config) { c.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	err := s.noPanic("read", func() error {
		down := readAhead(&odd{3}, func([]byte) {})
		defer down.Close()
		up := readAhead(down, func([]byte) {})
		defer up.Close()
		_, err := io.ReadAll(up)
		return err
	})
	if !errors.Is(err, pod.ErrInternal) || !strings.Contains(err.Error(), "odd archive") || strings.Contains(err.Error(), "\n") || worthBlaming(err) {
		t.Errorf("got %v", err)
	}
	if !strings.Contains(log.String(), "(*odd).Read") {
		t.Errorf("the log has %s", log.String())
	}
}
