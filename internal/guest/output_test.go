package guest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestOutput: a reader that comes again at its offset gets all, each byte once; what it
// has is dropped, and who says more than is kept waits.
func TestOutput(t *testing.T) {
	t.Parallel()
	text := strings.Repeat("0123456789abcdef", 3*mostKept/16)
	o := newOutput()
	filled := make(chan struct{})
	go func() {
		defer close(filled)
		o.fill(strings.NewReader(text))
	}()
	var got bytes.Buffer
	for eof := false; !eof; {
		offset := uint64(got.Len())
		again, _, err := o.read(t.Context(), offset)
		if err != nil {
			t.Fatal(err)
		}
		var data []byte
		if data, eof, err = o.read(t.Context(), offset); err != nil || !bytes.HasPrefix(data, again) {
			t.Fatalf("the second read of %d gave other bytes, or %v", offset, err)
		}
		if o.mu.Lock(); len(o.kept) > mostKept+32<<10 {
			t.Fatalf("%d bytes are kept", len(o.kept))
		}
		o.mu.Unlock()
		got.Write(data)
	}
	<-filled
	if got.String() != text {
		t.Errorf("%d bytes came, of %d", got.Len(), len(text))
	}
	for _, offset := range []uint64{0, uint64(len(text)) + 1} {
		if _, _, err := o.read(t.Context(), offset); !errors.Is(err, errOffset) {
			t.Errorf("read from %d: %v", offset, err)
		}
	}
}

func TestOutputWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := newOutput()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, _, err := o.read(ctx, 0); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("nothing was said: %v", err)
		}
		go func() {
			<-time.After(time.Second)
			o.add([]byte("late"))
			o.end()
		}()
		if data, eof, err := o.read(t.Context(), 0); string(data) != "late" || err != nil {
			t.Errorf("got %q, %v, %v", data, eof, err)
		}
		if data, eof, err := o.read(t.Context(), 4); len(data) != 0 || !eof || err != nil {
			t.Errorf("at the end: %q, %v, %v", data, eof, err)
		}
	})
}

// TestGivenUpOutput: who waits for room must not wait for ever.
func TestGivenUpOutput(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := newOutput()
		done := make(chan struct{})
		go func() {
			defer close(done)
			o.fill(io.LimitReader(zeros{}, 4*mostKept))
		}()
		synctest.Wait()
		o.end()
		<-done
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func TestInput(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	in := newInput(w)
	for _, part := range []struct {
		offset uint64
		text   string
	}{{0, "one "}, {0, "one "}, {2, "e two "}, {8, "three"}} {
		if _, err := in.write(t.Context(), part.offset, []byte(part.text), false); err != nil {
			t.Errorf("write at %d: %v", part.offset, err)
		}
	}
	if _, err := in.write(t.Context(), 99, []byte("x"), false); !errors.Is(err, errOffset) {
		t.Errorf("write after a gap: %v", err)
	}
	if _, err := in.write(t.Context(), 13, nil, true); err != nil {
		t.Error(err)
	}
	if got, err := io.ReadAll(r); string(got) != "one two three" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := in.write(t.Context(), 13, []byte("more"), false); err != nil {
		t.Errorf("nobody reads it any more: %v", err)
	}
}

// TestInputNobodyReads: a call ends with its caller, and another goes on where it was.
func TestInputNobodyReads(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	in := newInput(w)
	text := bytes.Repeat([]byte("x"), 1<<20)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := in.write(ctx, 0, text, false); err == nil {
		t.Error("a megabyte went into a pipe that nobody reads")
	}
	go func() {
		if _, err := in.write(t.Context(), 0, text, true); err != nil {
			t.Error(err)
		}
	}()
	if got, err := io.ReadAll(r); len(got) != len(text) || err != nil {
		t.Errorf("%d bytes came, of %d: %v", len(got), len(text), err)
	}
}

// TestOutputOfOthers: what others have of a process's output ends with it, after a while. What
// was said by then is there, whenever the host asks for it.
func TestOutputOfOthers(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close() // the other's end
	o := newOutput()
	filled := make(chan struct{})
	go func() {
		defer close(filled)
		o.fill(r)
	}()
	want := bytes.Repeat([]byte("0123456789abcdef"), (mostKept+1<<15)/16) // more than is kept, and the rest in the pipe
	if _, err := w.Write(want); err != nil {
		t.Fatal(err)
	}
	if err := r.SetReadDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	var got []byte
	for eof := false; !eof; {
		var data []byte
		if data, eof, err = o.read(t.Context(), uint64(len(got))); err != nil {
			t.Fatal(err)
		}
		got = append(got, data...)
	}
	<-filled
	if !bytes.Equal(got, want) {
		t.Errorf("%d bytes of %d", len(got), len(want))
	}
}
