package cli

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"gantry/internal/image"
)

func TestDetachKeys(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name     string
		in       []string // one Read each
		want     string
		detached bool
	}{
		{"plain", []string{"abc", "d"}, "abcd", false},
		{"keys", []string{"a\x10\x11b"}, "a", true},
		{"keys apart", []string{"a\x10", "\x11b"}, "a", true},
		{"ctrl-p alone", []string{"\x10", "x", "\x10\x10", "\x11"}, "\x10x\x10", true},
		{"ctrl-p, then another", []string{"\x10a\x10b"}, "\x10a\x10b", false},
		{"ctrl-q alone", []string{"\x11"}, "\x11", false},
	} {
		d := &detachReader{from: &pieces{c.in}, detached: make(chan struct{})}
		got, err := io.ReadAll(d)
		if err != nil || string(got) != c.want {
			t.Errorf("%s: %q, %v", c.name, got, err)
		}
		select {
		case <-d.detached:
			if !c.detached {
				t.Errorf("%s: detached", c.name)
			}
		default:
			if c.detached {
				t.Errorf("%s: not detached", c.name)
			}
		}
	}
}

type pieces struct{ list []string }

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.list) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.list[0])
	p.list = p.list[1:]
	return n, nil
}

// TestProgressBar draws a pull on a terminal: one line, redrawn, gone at the end.
func TestProgressBar(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	now := fakeNow()
	p := &progress{ref: "busybox", w: &out, terminal: true, now: func() time.Time { now = now.Add(150 * time.Millisecond); return now }}
	p.update(image.Progress{Stage: image.StageManifest})
	p.update(image.Progress{Stage: image.StageLayer, Layer: 1, Layers: 2, Bytes: 500_000, Total: 1_000_000})
	p.update(image.Progress{Stage: image.StageLayer, Layer: 2, Layers: 2, Bytes: 1_000_000, Total: 1_000_000})
	p.update(image.Progress{Stage: image.StageStore, Layers: 2})
	p.end(nil)
	want := strings.Join([]string{
		"pulling busybox: asking the registry",
		"pulling busybox: [##########..........] 500 kB of 1.0 MB, 0 of 2 layers",
		"pulling busybox: [###############.....] 1.5 MB of 2.0 MB, 1 of 2 layers",
		"pulling busybox: putting 2 layers together",
		"pulled busybox: 1.5 MB in 600ms\n",
	}, "\r\x1b[K")
	if got := strings.TrimPrefix(out.String(), "\r\x1b[K"); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestProgressOfFailure(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	p := &progress{ref: "evil\x1b[2J", w: &out, terminal: true, now: fakeNow}
	p.update(image.Progress{Stage: image.StageLayer, Layer: 1, Layers: 1, Bytes: 5, Total: 10})
	p.end(errors.New("cut"))
	if got := out.String(); strings.Contains(got, "pulled") || strings.Contains(got, "\x1b[2J") || !strings.HasSuffix(got, "\r\x1b[K") {
		t.Errorf("got %q", got)
	}
}

func TestHumanWords(t *testing.T) {
	t.Parallel()
	for in, want := range map[int64]string{0: "0 B", 999: "999 B", 1000: "1.0 kB", 9_950: "9.9 kB", 12_345: "12 kB", 999_600: "1.0 MB", 5e9: "5.0 GB", 7e15: "7.0 PB"} {
		if got := size(in); got != want {
			t.Errorf("size(%d) = %q, want %q", in, got, want)
		}
	}
	now := fakeNow()
	for in, want := range map[time.Duration]string{-time.Hour: "0s", 0: "0s", 119 * time.Second: "119s", 2 * time.Minute: "2m", 3 * time.Hour: "3h", 50 * time.Hour: "2d"} {
		if got := age(now, now.Add(-in)); got != want {
			t.Errorf("age(%s) = %q, want %q", in, got, want)
		}
	}
	if age(now, time.Time{}) != "" {
		t.Error("the zero time has an age")
	}
}
