package machine

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestInbox: whenever the process is killed, the next one says what has not been said, at the
// offset where it belongs.
func TestInbox(t *testing.T) {
	t.Parallel()
	in, theirs, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	hold, err := holdPipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); hold.Close() })
	file := filepath.Join(t.TempDir(), "input")
	another := func() *inbox {
		t.Helper()
		b, err := newInbox(in, hold, file)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	want := func(b *inbox, known uint64, data string, offset uint64) {
		t.Helper()
		got, at, err := b.next(known)
		if err != nil || string(got) != data || at != offset {
			t.Errorf("%.20q (%d bytes) at %d, %v; want %.20q at %d", got, len(got), at, err, data, offset)
		}
	}
	say := func(text string) {
		t.Helper()
		if _, err := theirs.WriteString(text); err != nil {
			t.Fatal(err)
		}
	}
	say("hello")
	b := another()
	want(b, 0, "hello", 0)
	say(" world")
	want(another(), 0, "hello", 0) // before the machine had it
	want(another(), 3, "hello", 0) // it had a part
	b = another()
	want(b, 5, "hello", 0) // it had all
	if err := b.done(5); err != nil {
		t.Fatal(err)
	}
	want(another(), 5, " world", 5)
	if err := b.done(6); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("0123456789abcdef", 2048)
	say(long)
	for known := uint64(11); known < 11+uint64(len(long)); known += inboxSize {
		want(another(), known, long[known-11:][:inboxSize], known)
		if err := b.done(inboxSize); err != nil {
			t.Fatal(err)
		}
	}
	theirs.Close()
	for range 2 {
		if _, _, err := another().next(99); err != io.EOF {
			t.Errorf("at the end: %v", err)
		}
	}
}
