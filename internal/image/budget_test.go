package image

import (
	"bufio"
	"bytes"
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/klauspost/compress/zstd"
)

func TestWindowOf(t *testing.T) {
	t.Parallel()
	// What streams of unknown length say; the encoder's windows are powers of two.
	stream := func(window int) []byte {
		var b bytes.Buffer
		z, err := zstd.NewWriter(&b, zstd.WithWindowSize(window))
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if _, err := z.Write(make([]byte, 1<<20)); err != nil {
				t.Fatal(err)
			}
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	skippable := append([]byte{0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 'x'}, stream(1<<20)...)
	for name, c := range map[string]struct {
		data []byte
		want int64
	}{
		"small":       {stream(1 << 20), minWindow},
		"large":       {stream(64 << 20), 64 << 20},
		"too large":   {stream(512 << 20), maxWindow},
		"not told":    {skippable, maxWindow},
		"no zstd":     {[]byte("none"), maxWindow},
		"one segment": {zstded(t, []byte("tiny")), minWindow},
	} {
		if got := windowOf(bufio.NewReader(bytes.NewReader(c.data))); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}

func TestWindowsWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLedger()
		var alive atomic.Int64
		take := func(ctx context.Context) error { return l.window(ctx, maxWindow, func() { alive.Add(1) }) }
		for range allWindows / maxWindow {
			if err := take(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		done := make(chan error)
		go func() { done <- take(t.Context()) }()
		<-time.After(5500 * time.Millisecond)
		if n := alive.Load(); n != 5 {
			t.Errorf("while it waits for 5.5 s, it is alive %d times", n)
		}
		l.windows.Release(maxWindow)
		if err := <-done; err != nil {
			t.Error(err)
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if err := take(ended); err == nil {
			t.Error("a pull that was given up gets memory")
		}
	})
}
