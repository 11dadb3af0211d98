package crilog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gantry/internal/pod"
)

const stamp = "2026-11-23T09:00:00.000000001Z"

func TestParse(t *testing.T) {
	t.Parallel()
	when := time.Date(2026, 11, 23, 9, 0, 0, 1, time.UTC)
	for in, want := range map[string]Line{
		stamp + " stdout F hello world": {Time: when, Text: []byte("hello world")},
		stamp + " stderr P part":        {Time: when, Stderr: true, Partial: true, Text: []byte("part")},
		stamp + " stdout F:x ":          {Time: when, Text: []byte("")},
		stamp + " stdout F":             {Time: when},
		stamp + " stdout F  two":        {Time: when, Text: []byte(" two")},
	} {
		got, err := Parse([]byte(in))
		if err != nil {
			t.Errorf("%q: %v", in, err)
		} else if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%q: %s", in, d)
		}
	}
	for _, bad := range []string{"", "x", stamp, stamp + " stdout", stamp + " stdin F x", stamp + " stdout X x", "yesterday stdout F x"} {
		if _, err := Parse([]byte(bad)); !errors.Is(err, pod.ErrInvalid) {
			t.Errorf("%q: got %v", bad, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(stamp + " stdout F hello"))
	f.Add([]byte(stamp + " stderr P:1 "))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := Parse(b)
		if (err == nil) == l.Time.IsZero() && err != nil {
			t.Fatalf("%v %v", l, err)
		}
	})
}

func line(stream, tag, text string) string {
	return fmt.Sprintf("%s %s %s %s\n", stamp, stream, tag, text)
}

func write(t *testing.T, path, s string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(s); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string, o Options) []string {
	t.Helper()
	var got []string
	if err := Read(t.Context(), path, o, func(l Line) error {
		got = append(got, string(l.Text))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return got
}

func TestTail(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log")
	long := strings.Repeat("x", 70<<10) // longer than a block
	write(t, path, line("stdout", "F", "1")+line("stdout", "F", long)+"torn\n"+line("stdout", "F", "3")+line("stdout", "F", "4"))
	for n, want := range map[int][]string{
		-1: {"1", long, "3", "4"}, 0: nil, 1: {"4"}, 2: {"3", "4"}, 3: {"3", "4"}, 4: {long, "3", "4"}, 5: {"1", long, "3", "4"}, 99: {"1", long, "3", "4"},
	} {
		if d := cmp.Diff(want, read(t, path, Options{Tail: n})); d != "" {
			t.Errorf("tail %d: %s", n, d)
		}
	}
}

// TestTailOfALogThatGrows: the last line is one line, however many come while it
// is read.
func TestTailOfALogThatGrows(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log")
	write(t, path, line("stdout", "F", "1")+line("stdout", "F", "2"))
	for _, n := range []int{0, 1, 2} {
		var got int
		err := Read(t.Context(), path, Options{Tail: n}, func(Line) error {
			got++
			write(t, path, line("stdout", "F", "more"))
			return nil
		})
		if err != nil || got != n {
			t.Errorf("tail %d: %d lines, %v", n, got, err)
		}
	}
}

func TestSinceKeepsPartsTogether(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log")
	at := func(s int, tag, text string) string {
		return fmt.Sprintf("2026-11-23T09:00:%02dZ stdout %s %s\n", s, tag, text)
	}
	write(t, path, at(1, "F", "old")+at(2, "P", "ol")+at(3, "F", "d2")+at(3, "P", "ne")+at(4, "F", "w"))
	since := time.Date(2026, 11, 23, 9, 0, 3, 0, time.UTC)
	if d := cmp.Diff([]string{"ne", "w"}, read(t, path, Options{Tail: -1, Since: since})); d != "" {
		t.Error(d)
	}
}

func TestMissing(t *testing.T) {
	t.Parallel()
	err := Read(t.Context(), filepath.Join(t.TempDir(), "log"), Options{Tail: -1}, nil)
	if !errors.Is(err, pod.ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

// TestFollow: a file that appears late, grows by pieces of lines, is rotated
// twice, and ends. No line is lost or doubled.
func TestFollow(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "log")
	done := make(chan struct{})
	lines := make(chan string, 10000)
	result := make(chan error, 1)
	go func() {
		result <- Read(t.Context(), path, Options{Tail: -1, Follow: true, Done: done}, func(l Line) error {
			lines <- string(l.Text)
			return nil
		})
	}()
	want := 0
	for file := range 3 {
		for range 1000 {
			s := line("stdout", "F", fmt.Sprint(want))
			write(t, path, s[:10])
			write(t, path, s[10:])
			want++
		}
		if file < 2 {
			if err := os.Rename(path, fmt.Sprintf("%s.%d", path, file)); err != nil {
				t.Fatal(err)
			}
			// The writer goes on in the renamed file until it is told to reopen.
			write(t, fmt.Sprintf("%s.%d", path, file), line("stdout", "F", fmt.Sprint(want)))
			want++
			write(t, path, "")
			waitFor(t, lines, want)
		}
	}
	close(done)
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	if len(lines) != want {
		t.Fatalf("%d lines, want %d", len(lines), want)
	}
	for i := range want {
		if got := <-lines; got != fmt.Sprint(i) {
			t.Fatalf("line %d is %q", i, got)
		}
	}
}

// waitFor waits until the reader has followed into the new file; two rotations
// at once, faster than anybody reads, lose the file in between by nature.
func waitFor(t *testing.T, lines chan string, n int) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); len(lines) < n; {
		if time.Now().After(deadline) {
			t.Fatalf("%d lines after 20 s, want %d", len(lines), n)
		}
		<-time.After(time.Millisecond)
	}
}

func TestFollowEndsWithContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := Read(ctx, filepath.Join(t.TempDir(), "none", "log"), Options{Tail: -1, Follow: true}, nil)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
