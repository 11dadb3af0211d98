package journal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestFieldsComeBack(t *testing.T) {
	t.Parallel()
	entry := []byte("__CURSOR=c1\n__REALTIME_TIMESTAMP=1500000\n")
	entry = AppendField(entry, "MESSAGE", "two\nlines")
	entry = AppendField(entry, "PLAIN", []byte("a=b\x00\xff"))
	entry = AppendField(entry, "EMPTY", "")
	var got []Entry
	err := parseExport(bytes.NewReader(append(append(entry, '\n'), entry...)), func(e Entry) error {
		got = append(got, e)
		return nil
	})
	want := Entry{Cursor: "c1", Time: time.UnixMicro(1500000), Fields: map[string]string{
		"MESSAGE": "two\nlines", "PLAIN": "a=b\x00\xff", "EMPTY": "",
	}}
	if diff := cmp.Diff([]Entry{want, want}, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
}

func TestBadExport(t *testing.T) {
	t.Parallel()
	for _, in := range []string{
		"no name\n\n", "A=1", "A=1\n\n", "A\n\x01\x00\x00\x00\x00\x00\x00\x00xy", "A\n\xff\xff\xff\xff\xff\xff\xff\xff",
		"A\n\x09\x00\x00\x00\x00\x00\x00\x00x\n", "=x\n", "a=1\n",
	} {
		err := parseExport(strings.NewReader(in), func(Entry) error { return nil })
		if err == nil || err == io.EOF {
			t.Errorf("%q: %v", in, err)
		}
	}
	if err := parseExport(strings.NewReader("\n\n"), nil); err != nil {
		t.Error(err)
	}
}

func FuzzExport(f *testing.F) {
	f.Add([]byte("__REALTIME_TIMESTAMP=1\nA=1\nB\n\x01\x00\x00\x00\x00\x00\x00\x00x\n\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		_ = parseExport(bytes.NewReader(data), func(e Entry) error {
			for k := range e.Fields {
				if !validName(k) || strings.HasPrefix(k, "__") {
					t.Fatalf("field %q", k)
				}
			}
			return nil
		})
	})
}

func TestArgs(t *testing.T) {
	t.Parallel()
	got, err := Query{
		Unit: "-x.service", Since: time.Unix(5, 1500), Lines: 3, After: "c", Follow: true,
		Match: []Field{{"GANTRY_POD", "--x"}},
	}.args()
	want := []string{
		"--output=export", "--quiet", "--no-pager", "--all", "--unit=-x.service", "--since=@5.000001",
		"--after-cursor=c", "--lines=3", "--follow", "--", "GANTRY_POD=--x",
	}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
	if _, err := (Query{Match: []Field{{"a b", "c"}}}).args(); err == nil {
		t.Error("a bad field name was taken")
	}
}

// journald is a stand-in for the daemon's socket.
func journald(t *testing.T) (path string, read func() map[string]string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "s")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return path, func() map[string]string {
		buf := make([]byte, 64<<10)
		if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatalf("no entry came: %v", err)
		}
		var fields map[string]string
		in := io.MultiReader(strings.NewReader("__REALTIME_TIMESTAMP=1\n"), bytes.NewReader(buf[:n]))
		if err := parseExport(in, func(e Entry) error { fields = e.Fields; return nil }); err != nil {
			t.Fatal(err)
		}
		return fields
	}
}

func lines(text ...string) func() ([]byte, bool, bool) {
	return func() ([]byte, bool, bool) {
		if len(text) == 0 {
			return nil, false, false
		}
		l := text[0]
		text = text[1:]
		return []byte(l), !strings.HasPrefix(l, "part"), true
	}
}

func TestMirror(t *testing.T) {
	t.Parallel()
	path, read := journald(t)
	m, err := NewMirror(MirrorConfig{Socket: path})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	src := m.Source([]Field{{"SYSLOG_IDENTIFIER", "web"}, {"OBJECT_SYSTEMD_UNIT", "x.service"}, {"GANTRY_POD", ""}})
	src.Lines("stdout", lines("hello", "part", "of a terminal\r"))
	src.Lines("stderr", lines("oh"))
	base := map[string]string{"SYSLOG_IDENTIFIER": "web", "OBJECT_SYSTEMD_UNIT": "x.service", "PRIORITY": "6"}
	for _, more := range []map[string]string{
		{"GANTRY_STREAM": "stdout", "MESSAGE": "hello"},
		{"GANTRY_STREAM": "stdout", "MESSAGE": "part", "GANTRY_PARTIAL": "1"},
		{"GANTRY_STREAM": "stdout", "MESSAGE": "of a terminal"},
		{"GANTRY_STREAM": "stderr", "MESSAGE": "oh"},
	} {
		for k, v := range base {
			more[k] = v
		}
		if diff := cmp.Diff(more, read()); diff != "" {
			t.Error(diff)
		}
	}
}

// A source that floods is limited, what is dropped is told, and others get through.
func TestMirrorDrops(t *testing.T) {
	t.Parallel()
	path, read := journald(t)
	m, err := NewMirror(MirrorConfig{Socket: path, Burst: 10, Interval: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	flood, quiet := m.Source(nil), m.Source(nil)
	flood.Lines("stdout", lines(slices.Repeat([]string{"flood"}, 100)...))
	quiet.Lines("stdout", lines("quiet"))
	got := map[string]int{}
	for range 12 {
		got[read()["MESSAGE"]]++
	}
	if diff := cmp.Diff(map[string]int{"flood": 10, "quiet": 1, dropText(90): 1}, got); diff != "" {
		t.Error(diff)
	}
	flood.Lines("stdout", lines(slices.Repeat([]string{"again"}, 11)...))
	flood.Close()
	got = map[string]int{}
	for range 11 {
		got[read()["MESSAGE"]]++
	}
	if diff := cmp.Diff(map[string]int{"again": 10, dropText(1): 1}, got); diff != "" {
		t.Error(diff)
	}
}

func dropText(n int) string {
	return fmt.Sprintf("gantry: %d lines were not copied to the journal; the log file has them", n)
}

// A journal that takes nothing stops nobody, and costs no more than its bound.
func TestMirrorNeverBlocks(t *testing.T) {
	t.Parallel()
	path, read := journald(t)
	const memory = 64 << 10
	m, err := NewMirror(MirrorConfig{Socket: path, Memory: memory, Burst: 1 << 30, Interval: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	src := m.Source(nil)
	const total = 20000
	for range total / 10 {
		src.Lines("stdout", lines(slices.Repeat([]string{strings.Repeat("x", 100)}, 10)...))
		m.mu.Lock()
		if m.used > memory {
			t.Fatalf("%d bytes wait", m.used)
		}
		m.mu.Unlock()
	}
	src.Close()
	sent := 0
	for {
		msg := read()["MESSAGE"]
		if strings.HasPrefix(msg, "gantry:") {
			if msg != dropText(total-sent) {
				t.Errorf("%d of %d lines came, and %q", sent, total, msg)
			}
			break
		}
		sent++
	}
}

func TestMirrorWithoutJournal(t *testing.T) {
	t.Parallel()
	if _, err := NewMirror(MirrorConfig{Socket: filepath.Join(t.TempDir(), "none")}); !errors.Is(err, unix.ENOENT) {
		t.Errorf("got %v", err)
	}
}
