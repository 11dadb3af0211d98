package stdio

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"gantry/internal/pod"
)

func TestFormat(t *testing.T) {
	t.Parallel()
	const at = 1767225600_000000042
	head := func(tag string) string { return "2026-01-01T00:00:00.000000042Z stderr " + tag + " " }
	long := strings.Repeat("z", maxLine)
	for _, tc := range []struct {
		name, in string
		end      bool
		want     string
		rest     string
	}{
		{name: "nothing"},
		{name: "lines", in: "a\n\nb\n", want: head("F") + "a\n" + head("F") + "\n" + head("F") + "b\n"},
		{name: "an unfinished line waits", in: "a\nb", want: head("F") + "a\n", rest: "b"},
		{name: "but not at the end", in: "a\nb", end: true, want: head("F") + "a\n" + head("P") + "b\n"},
		{name: "the longest line", in: long + "\n", want: head("F") + long + "\n"},
		{name: "the longest line waits", in: long, rest: long},
		{name: "a longer line", in: long + "z\n", want: head("P") + long + "\n" + head("F") + "z\n"},
		{name: "much longer", in: long + long + "zz", want: head("P") + long + "\n" + head("P") + long + "\n", rest: "zz"},
		{name: "no text", in: "\x00\xff \r\n", want: head("F") + "\x00\xff \r\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			f := newFormatter(stderr, at)
			out, n := f.format(nil, []byte(tc.in), tc.end, 1<<30)
			if diff := cmp.Diff(tc.want, string(out)); diff != "" {
				t.Error(diff)
			}
			if tc.in[n:] != tc.rest {
				t.Errorf("%d bytes are left, want %d", len(tc.in)-n, len(tc.rest))
			}
		})
	}
}

// FuzzFormat cuts a stream into chunks: the log must not show where, must give
// the stream back, and must come out the same when a chunk is done again.
func FuzzFormat(f *testing.F) {
	f.Add([]byte("one\ntwo\n\nthree"), uint16(3), uint16(50))
	f.Add(bytes.Repeat([]byte("x"), 40000), uint16(999), uint16(7))
	f.Fuzz(func(t *testing.T, in []byte, chunk, limit uint16) {
		in = bytes.Repeat(in, 1+60000/(len(in)+1))
		size := int(chunk)%5000 + 200
		fm := newFormatter(stdout, 1)
		var log, staged []byte
		for rest := in; len(rest) > 0; {
			n := min(len(rest), size)
			staged, rest = append(staged, rest[:n]...), rest[n:]
			taken := 0
			for {
				out, n := fm.format(nil, staged[taken:], false, int(limit)+1)
				again, m := fm.format(nil, staged[taken:], false, int(limit)+1)
				if !bytes.Equal(out, again) || n != m {
					t.Fatal("the same bytes were formatted in two ways")
				}
				if n == 0 {
					break
				}
				if len(out) > int(limit)+1+headLen+maxLine+1 {
					t.Fatalf("%d bytes of output with a limit of %d", len(out), limit)
				}
				log, taken = append(log, out...), taken+n
			}
			if staged = staged[taken:]; len(staged) > maxCarry {
				t.Fatalf("%d bytes wait", len(staged))
			}
		}
		out, n := fm.format(nil, staged, true, 1<<30)
		if n != len(staged) {
			t.Fatal("the end was left")
		}
		log = append(log, out...)
		whole, _ := fm.format(nil, in, true, 1<<30)
		if !bytes.Equal(log, whole) {
			t.Fatal("the log shows how its bytes came")
		}
		var back []byte
		for l := range bytes.Lines(log) {
			text := l[headLen : len(l)-1]
			if len(text) > maxLine {
				t.Fatalf("a line of %d bytes", len(text))
			}
			back = append(back, text...)
			if l[tagAt] == 'F' {
				back = append(back, '\n')
			}
		}
		if !bytes.Equal(back, in) {
			t.Fatal("the log does not give the stream back")
		}
	})
}

func FuzzRequest(f *testing.F) {
	f.Add([]byte(`{"op":"start","dir":"/x"}`))
	f.Add([]byte(`{"op":"resize","app":"a","width":70000}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseRequest(data)
		if err == nil && r.TimeoutMS < 0 || err != nil && !errors.Is(err, pod.ErrInvalid) {
			t.Fatalf("%+v, %v", r, err)
		}
		if s, err := ParseSpec(data); err == nil && (s.App == "" || s.Log != "" && !filepath.IsAbs(s.Log)) {
			t.Fatalf("%+v", s)
		}
		if _, _, _, err := parseClientFrame(data); err != nil && !errors.Is(err, pod.ErrInvalid) {
			t.Fatal(err)
		}
	})
}

// FuzzRecord reads whatever may stand in a record's place.
func FuzzRecord(f *testing.F) {
	f.Add(make([]byte, recordSize))
	good := record{gen: 1}
	good.slots[1] = slot{Phase: phaseOpen, Carry: [2]uint32{5, 6}, Offset: 7}
	f.Add(unsafe.Slice((*byte)(unsafe.Pointer(&good)), unsafe.Sizeof(good)))
	f.Fuzz(func(t *testing.T, data []byte) {
		mem := make([]uint64, recordSize/8)
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&mem[0])), recordSize), data)
		r := (*record)(unsafe.Pointer(&mem[0]))
		if len(r.name()) > len(r.key) {
			t.Fatal("name")
		}
		s, err := r.current()
		if err == nil && (s.Stream > 1 || s.Offset < 0 || s.Carry[0] > maxCarry || s.Carry[1] > maxCarry) {
			t.Fatalf("%+v", s)
		}
	})
}

func TestRecords(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "records")
	rs, err := openRecords(path)
	if err != nil {
		t.Fatal(err)
	}
	var ids []int
	for range 20 {
		i, r, err := rs.alloc()
		if err != nil {
			t.Fatal(err)
		}
		copy(r.key[:], "k")
		r.put(state{slot: slot{Phase: phaseWritten, Offset: int64(i)}})
		r.publish()
		ids = append(ids, i)
	}
	rs.release(ids[3])
	rs, err = openRecords(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range ids {
		r := rs.at(i)
		s, err := r.current()
		if r.used() != (i != ids[3]) || err != nil || s.Offset != int64(i) || r.name() != "k" {
			t.Errorf("record %d: used %v, %+v, %v", i, r.used(), s, err)
		}
	}
	if i, r, err := rs.alloc(); err != nil || i != ids[3] || r.name() != "" {
		t.Errorf("got record %d %q, %v; want %d again", i, r.name(), err, ids[3])
	}
}

func TestRecordsOfAnotherVersion(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "records")
	if err := os.WriteFile(path, []byte("GNTRYIO9"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openRecords(path); err == nil || !strings.Contains(err.Error(), "another version") {
		t.Errorf("got %v", err)
	}
}

func TestRepairLog(t *testing.T) {
	t.Parallel()
	zeros, long := strings.Repeat("\x00", 20000), strings.Repeat("x", 2*tornLimit)
	for _, tc := range []struct{ name, in, want string }{
		{"empty", "", ""},
		{"whole", "a\nb\n", "a\nb\n"},
		{"torn", "a\nb\nc", "a\nb\n"},
		{"torn first line", "abc", ""},
		{"torn over blocks", "a\n" + long[:9000], "a\n"},
		{"zeros", "a\nb" + zeros, "a\n"},
		{"only zeros", zeros, ""},
		{"not ours", "a\n" + long, "a\n" + long + "\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "log")
			if err := os.WriteFile(path, []byte(tc.in), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := RepairLog(path); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			same(t, tc.name, string(got), tc.want)
		})
	}
}

// TestLogCannotBeWritten makes the log's descriptor unfit for writing: first the
// lines wait, then the app, then they are dropped, and told about.
func TestLogCannotBeWritten(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, err := New(Config{RunDir: filepath.Join(dir, "run"), Log: slog.New(slog.DiscardHandler), Patience: 500 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.poller.stop()
		s.workers.Wait()
	})
	spec := Spec{App: pod.NewID(), Log: filepath.Join(dir, "log")}
	data, err := json.Marshal(spec)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, SpecName), data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	_, ends, err := s.start(request{Dir: dir}, 0)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(ends[0])
	a := &app{spec: spec, stdout: os.NewFile(uintptr(ends[1]), "out"), stderr: os.NewFile(uintptr(ends[2]), "err")}
	c, err := s.find(spec.App)
	if err != nil {
		t.Fatal(err)
	}
	setLog := func(flags int) {
		fd, err := unix.Open(spec.Log, flags|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		time.Sleep(napTimes[napLong] + 50*time.Millisecond) // a try falls here, and finds the app locked
		unix.Close(c.log)
		c.log = fd
	}
	state := func() AppStatus {
		st, err := s.status(spec.App)
		if err != nil {
			t.Fatal(err)
		}
		return *st.App
	}
	print(t, a.stdout, "first\n", 1)
	until(t, "the first line is written", func() bool { return state().Offset > 0 })

	setLog(unix.O_RDONLY)
	print(t, a.stdout, "second\n", 1)
	until(t, "the log has stalled", func() bool { return state().Stalled != "" })
	time.Sleep(700 * time.Millisecond)
	if st := state(); st.Dropped != 0 {
		t.Errorf("lines were dropped though the app was not stopped: %+v", st)
	}
	setLog(unix.O_WRONLY)
	until(t, "the log has recovered", func() bool { return state().Stalled == "" })

	setLog(unix.O_RDONLY)
	line := strings.Repeat("d", 99) + "\n"
	if _, err := a.stdout.WriteString(strings.Repeat(line, 5000)); err != nil {
		t.Error(err) // it got through: the lines were dropped
	}
	until(t, "lines are dropped", func() bool { return state().Dropped > 3000 })
	setLog(unix.O_WRONLY)
	print(t, a.stdout, "last\n", 1)
	a.close()
	if err := s.drain(t.Context(), spec.App, 5*time.Second, 0); err != nil {
		t.Error(err)
	}
	got := content(t, spec.Log)
	kept := strings.Count(got[stdout], line)
	if !strings.HasPrefix(got[stdout], "first\nsecond\n") || !strings.HasSuffix(got[stdout], "last\n") {
		t.Errorf("stdout: %.100q", got[stdout])
	}
	var lines, bytes int
	if _, err := fmt.Sscanf(got[stderr], "gantry: %d lines (%d bytes) are missing here", &lines, &bytes); err != nil || lines+kept != 5000 || bytes != 100*lines {
		t.Errorf("%d lines are there, and the log says %q", kept, got[stderr])
	}
	if n := s.dropped.Load(); n != uint64(lines) {
		t.Errorf("%d lines counted, %d told", n, lines)
	}
}
