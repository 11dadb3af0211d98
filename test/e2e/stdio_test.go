//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/journal"
	"gantry/internal/pod"
	"gantry/internal/stdio"
	"gantry/test/machine"
)

// The tests of gantry-stdio under the real systemd. A pretended app is this
// process, which holds the app's ends and prints; the server is the service that
// is installed.

const stdioUnit = "gantry-stdio.service"

var stdioClient stdio.Client

type printer struct {
	spec           stdio.Spec
	dir            string
	stdin          *os.File
	stdout, stderr *os.File
	console        string
}

func newPrinter(t *testing.T, dir string, change func(*stdio.Spec)) *printer {
	t.Helper()
	id := pod.NewID()
	p := &printer{dir: filepath.Join(dir, string(id))}
	p.spec = stdio.Spec{
		App: id, AppName: "printer", Pod: pod.NewID(), PodName: "printers", Namespace: "default",
		Unit: "gantry-app-" + string(id) + ".service", Log: filepath.Join(p.dir, "log", "0.log"),
	}
	if change != nil {
		change(&p.spec)
	}
	data, err := json.Marshal(p.spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(p.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(p.dir, stdio.SpecName), data, 0o644); err != nil {
		t.Fatal(err)
	}
	return p
}

// start asks as gantry-init does, until there is an answer.
func (p *printer) start(t *testing.T) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(patience(10 * time.Second)); time.Now().Before(deadline); {
		if err = p.tryStart(); err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal(err)
}

func (p *printer) tryStart() error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: stdio.Socket}); err != nil {
		return err
	}
	if err := unix.Sendmsg(fd, fmt.Appendf(nil, `{"op":"start","dir":%q}`, p.dir), nil, nil, unix.MSG_NOSIGNAL); err != nil {
		return err
	}
	buf, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*8))
	n, oobn, _, _, err := unix.Recvmsg(fd, buf, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return err
	}
	var answer struct{ Error, Console string }
	if err := json.Unmarshal(buf[:n], &answer); err != nil {
		return fmt.Errorf("answer %q: %w", buf[:n], err)
	}
	if answer.Error != "" {
		return fmt.Errorf("answer: %s", answer.Error)
	}
	p.console = answer.Console
	if p.spec.TTY {
		return nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(msgs) != 1 {
		return fmt.Errorf("answer without descriptors: %w", err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 3 {
		return fmt.Errorf("answer with descriptors %v: %w", fds, err)
	}
	p.stdin, p.stdout, p.stderr = os.NewFile(uintptr(fds[0]), "in"), os.NewFile(uintptr(fds[1]), "out"), os.NewFile(uintptr(fds[2]), "err")
	return nil
}

func (p *printer) end(t *testing.T) {
	t.Helper()
	for _, f := range []*os.File{p.stdin, p.stdout, p.stderr} {
		if f != nil {
			f.Close()
		}
	}
	p.stdin, p.stdout, p.stderr = nil, nil, nil
	var err error
	for range 20 {
		if err = stdioClient.Drain(t.Context(), p.spec.App, patience(10*time.Second)); err == nil {
			return
		}
	}
	t.Error(err)
}

// lines prints numbered lines, n a call of write on average.
func (p *printer) lines(t *testing.T, f *os.File, lines, each int, pause time.Duration) {
	var b strings.Builder
	for i := range lines {
		fmt.Fprintf(&b, "%d %s line %d of about sixty characters, as many are\n", i, p.spec.App[:6], i)
		if (i+1)%each == 0 || i == lines-1 {
			if _, err := f.WriteString(b.String()); err != nil {
				t.Error(err)
				return
			}
			b.Reset()
			time.Sleep(pause)
		}
	}
}

// check reads the logs as kubelet does: all lines once, in order, whole.
func (p *printer) check(t *testing.T, stream string, lines int, logs ...string) {
	t.Helper()
	if len(logs) == 0 {
		logs = []string{p.spec.Log}
	}
	next := 0
	for _, path := range logs {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for l := range strings.Lines(string(data)) {
			f := strings.SplitN(l, " ", 5)
			if len(f) != 5 || !strings.HasSuffix(l, "\n") || f[2] != "F" {
				t.Fatalf("%s: bad line %q", path, l)
			}
			if f[1] != stream {
				continue
			}
			if f[3] != fmt.Sprint(next) || !strings.HasSuffix(l, " as many are\n") {
				t.Fatalf("%s: got %q, want line %d", path, l, next)
			}
			next++
		}
	}
	if next != lines {
		t.Errorf("%s: %d lines of %s, want %d", p.spec.Log, next, stream, lines)
	}
}

func stdioPID(t *testing.T) string {
	t.Helper()
	return strings.TrimSpace(sh(t, "systemctl show -P MainPID "+stdioUnit))
}

// armStdio has the service die at a failpoint, once it was killed and came back.
func armStdio(t *testing.T, point string, count int) {
	t.Helper()
	path := filepath.Join(stdio.RunDir, "failpoint")
	if err := os.WriteFile(path, fmt.Appendf(nil, "%s %d", point, count), 0o600); err != nil {
		t.Fatal(err)
	}
	killStdio(t)
	eventually(t, patience(5*time.Second), "the failpoint is armed", func() bool {
		_, err := os.Stat(path)
		return errors.Is(err, fs.ErrNotExist)
	})
}

func killStdio(t *testing.T) {
	t.Helper()
	sh(t, "systemctl kill -s KILL --kill-whom=main "+stdioUnit+" || true")
}

func stdioRestarts(t *testing.T) (n int) {
	t.Helper()
	if _, err := fmt.Sscan(sh(t, "systemctl show -P NRestarts "+stdioUnit), &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// stdioStore is how many descriptors systemd keeps for the service.
func stdioStore(t *testing.T) string {
	t.Helper()
	return strings.TrimSpace(sh(t, "systemctl show -P NFileDescriptorStore "+stdioUnit))
}

// stdioGuard is guard for these tests: nothing is left in systemd's store.
func stdioGuard(t *testing.T) {
	t.Helper()
	sh(t, "systemctl start "+stdioUnit)
	before := stdioStore(t)
	t.Cleanup(func() {
		eventually(t, patience(3*time.Second), "the descriptor store is as before", func() bool { return stdioStore(t) == before })
	})
}

func TestStdioKilledAtEveryStep(t *testing.T) {
	guard(t)
	stdioGuard(t)
	for _, point := range []string{
		"opened", "spliced", "teed", "half-written", "formatted", "written", "half-drained", "drained",
		"start-recorded", "start-stored", "reopen-created", "reopen-switched",
		"drain-flushed", "drain-forgotten", "drain-retired",
	} {
		t.Run(point, func(t *testing.T) {
			p := newPrinter(t, t.TempDir(), nil)
			before := stdioRestarts(t)
			armStdio(t, point, 1+rand.IntN(2)*b2i(!strings.Contains(point, "-") || strings.HasPrefix(point, "half")))
			p.start(t)
			var wg sync.WaitGroup
			wg.Go(func() { p.lines(t, p.stdout, 4000, 3, 0) })
			wg.Go(func() { p.lines(t, p.stderr, 1000, 1, 0) })
			if err := os.Rename(p.spec.Log, p.spec.Log+".1"); err != nil {
				t.Fatal(err)
			}
			if err := stdioClient.Reopen(t.Context(), p.spec.App); err != nil {
				t.Error(err)
			}
			wg.Wait()
			p.end(t)
			p.check(t, "stdout", 4000, p.spec.Log+".1", p.spec.Log)
			p.check(t, "stderr", 1000, p.spec.Log+".1", p.spec.Log)
			if n := stdioRestarts(t) - before; n < 2 {
				t.Errorf("the service was started again %d times, want 2: for the arming and for the failpoint", n)
			}
		})
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// TestStdioKilledAtRandom is the promise itself: in the long run 300 writers, 200,000
// lines, 50 kills, and PID 1 and the bus disturbed in between.
func TestStdioKilledAtRandom(t *testing.T) {
	guard(t)
	stdioGuard(t)
	writers, each, kills := machine.Amount(300, 60), 667, machine.Amount(50, 15)
	dir := t.TempDir()
	all := make([]*printer, writers)
	for i := range all {
		all[i] = newPrinter(t, dir, nil)
		all[i].start(t)
	}
	began := time.Now()
	var wg sync.WaitGroup
	for _, p := range all {
		wg.Go(func() { p.lines(t, p.stdout, each, 5, 100*time.Millisecond) })
	}
	ctx, cancel := context.WithCancel(t.Context())
	var killed sync.WaitGroup
	n := 0
	killed.Go(func() {
		for ; n < kills && ctx.Err() == nil; n++ {
			killStdio(t)
			switch n % 12 {
			case 3:
				sh(t, "systemctl daemon-reload")
			case 6:
				sh(t, "systemctl daemon-reexec")
			case 9:
				sh(t, "systemctl restart dbus.service || true")
			}
			time.Sleep(time.Duration(rand.IntN(400)) * time.Millisecond)
		}
	})
	killed.Wait()
	cancel()
	wg.Wait()
	t.Logf("%d kills; all was printed after %v", n, time.Since(began).Round(time.Millisecond))
	for _, p := range all {
		p.end(t)
		p.check(t, "stdout", each)
	}
	t.Logf("all was drained after %v", time.Since(began).Round(time.Millisecond))
}

// TestStdioThousandsOfDescriptors restarts the service when it holds 6,000 of them in
// the long run, 600 in the short one.
func TestStdioThousandsOfDescriptors(t *testing.T) {
	guard(t)
	stdioGuard(t)
	apps := machine.Amount(1500, 150)
	dir := t.TempDir()
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 16384, Max: 524288}); err != nil {
		t.Fatal(err)
	}
	killStdio(t)
	if _, err := stdioClient.Status(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	idle := stdioRSS(t)
	began := time.Now()
	all := make([]*printer, apps)
	for i := range all {
		all[i] = newPrinter(t, dir, nil)
		all[i].start(t)
	}
	t.Logf("%d apps were started in %v; RSS %d KB, before %d KB", apps, time.Since(began).Round(time.Millisecond), stdioRSS(t), idle)
	if n := stdioStore(t); n != fmt.Sprint(4*apps) {
		t.Errorf("%s descriptors are in the store, want %d", n, 4*apps)
	}
	for range 3 {
		began = time.Now()
		killStdio(t)
		st, err := stdioClient.Status(t.Context(), "")
		for err == nil && st.Apps == 0 && time.Since(began) < patience(10*time.Second) {
			st, err = stdioClient.Status(t.Context(), "")
		}
		t.Logf("killed; it answers again after %v, with %d apps, RSS %d KB", time.Since(began).Round(time.Millisecond), st.Apps, stdioRSS(t))
		if err != nil || st.Apps != apps {
			t.Errorf("after a kill: %d apps, want %d: %v", st.Apps, apps, err)
		}
	}
	for _, p := range all {
		if _, err := p.stdout.WriteString("0 the only line, as many are\n"); err != nil {
			t.Error(err)
		}
	}
	began = time.Now()
	for _, p := range all {
		p.end(t)
		p.check(t, "stdout", 1)
	}
	t.Logf("%d apps were drained in %v; RSS %d KB", apps, time.Since(began).Round(time.Millisecond), stdioRSS(t))
}

// stdioRSS is the service's resident memory.
func stdioRSS(t *testing.T) (kb int) {
	t.Helper()
	data, err := os.ReadFile("/proc/" + stdioPID(t) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(data), "VmRSS:")
	if _, err := fmt.Sscan(rest, &kb); err != nil {
		t.Fatal(err)
	}
	return kb
}

// TestStdioJournal looks for an app's lines where an operator does.
func TestStdioJournal(t *testing.T) {
	guard(t)
	stdioGuard(t)
	p := newPrinter(t, t.TempDir(), func(s *stdio.Spec) { s.Journal = true })
	p.start(t)
	began := time.Now().Add(-time.Minute)
	if _, err := p.stdout.WriteString("to stdout\n"); err != nil {
		t.Error(err)
	}
	if _, err := p.stderr.WriteString("to stderr\n"); err != nil {
		t.Error(err)
	}
	const flood = 30000
	var b strings.Builder
	for range flood {
		b.WriteString("flood\n")
	}
	if _, err := p.stdout.WriteString(b.String()); err != nil {
		t.Error(err)
	}
	p.end(t)
	// Not the journal's rotation, nor its own limits, may take lines away.
	var entries []journal.Entry
	read := func(q journal.Query) []journal.Entry {
		var got []journal.Entry
		q.Since = began
		if err := journal.Read(t.Context(), q, func(e journal.Entry) error { got = append(got, e); return nil }); err != nil {
			t.Fatal(err)
		}
		return got
	}
	eventually(t, patience(10*time.Second), "the journal has told what it left out", func() bool {
		entries = read(journal.Query{Unit: p.spec.Unit})
		return len(entries) > 0 && strings.HasPrefix(entries[len(entries)-1].Message(), "gantry:")
	})
	kept := 0
	streams := map[string]string{}
	for _, e := range entries {
		if e.Message() == "flood" {
			kept++
		}
		streams[e.Message()] = e.Fields["GANTRY_STREAM"]
		if e.Fields["GANTRY_POD"] != string(p.spec.Pod) || e.Fields["_SYSTEMD_UNIT"] != stdioUnit || e.Fields["SYSLOG_IDENTIFIER"] != "printer" {
			t.Fatalf("fields %v", e.Fields)
		}
	}
	if streams["to stdout"] != "stdout" || streams["to stderr"] != "stderr" {
		t.Errorf("streams %v", streams)
	}
	last := entries[len(entries)-1].Message()
	var dropped int
	if _, err := fmt.Sscanf(last, "gantry: %d lines were not copied", &dropped); err != nil || kept+dropped != flood || kept > 10000 {
		t.Errorf("%d of %d lines are there, and %q", kept, flood, last)
	}
	t.Logf("%d of %d lines were copied", kept, flood)
	if got := read(journal.Query{Match: []journal.Field{{Name: "GANTRY_APP_ID", Value: string(p.spec.App)}}, Lines: 1}); len(got) != 1 {
		t.Errorf("by the app's id: %d entries", len(got))
	}
	if out := sh(t, "systemctl status --no-pager "+p.spec.Unit+" 2>&1 || true"); strings.Contains(out, "flood") {
		t.Log("systemctl status shows the lines of a unit that is gone")
	}
}

// TestStdioDiskFull fills the disk of one app's log: the app is stopped for a
// moment, then its lines are dropped and counted; another app notices nothing.
func TestStdioDiskFull(t *testing.T) {
	guard(t)
	stdioGuard(t)
	full := t.TempDir()
	if err := unix.Mount("none", full, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(full, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	dir := t.TempDir()
	victim := newPrinter(t, dir, func(s *stdio.Spec) { s.Log = filepath.Join(full, "0.log") })
	other := newPrinter(t, dir, nil)
	victim.start(t)
	other.start(t)
	done := make(chan time.Duration)
	go func() {
		began := time.Now()
		victim.lines(t, victim.stdout, 20000, 100, 0)
		done <- time.Since(began)
	}()
	eventually(t, patience(10*time.Second), "the log is full", func() bool {
		st, err := stdioClient.Status(t.Context(), victim.spec.App)
		return err == nil && strings.Contains(st.App.Stalled, "no space left")
	})
	began := time.Now()
	other.lines(t, other.stdout, 2000, 10, 0)
	t.Logf("another app printed 2,000 lines in %v meanwhile", time.Since(began).Round(time.Millisecond))
	killStdio(t) // what is counted outlives this
	t.Logf("the app was stopped for %v", (<-done).Round(time.Millisecond))
	other.end(t)
	other.check(t, "stdout", 2000)
	if err := unix.Mount("none", full, "tmpfs", unix.MS_REMOUNT, "size=16m"); err != nil {
		t.Fatal(err)
	}
	victim.end(t)
	data, err := os.ReadFile(victim.spec.Log)
	if err != nil {
		t.Fatal(err)
	}
	kept := strings.Count(string(data), "as many are\n")
	// Now and then a few lines fit in between, so there may be many gaps.
	missing, gaps := 0, strings.Split(string(data), " stderr F gantry: ")[1:]
	for _, told := range gaps {
		var lines int
		if _, err := fmt.Sscanf(told, "%d lines", &lines); err != nil {
			t.Errorf("the log says %.80q", told)
		}
		missing += lines
	}
	if missing == 0 || kept+missing != 20000 {
		t.Errorf("%d lines are there, and the log tells of %d that are missing, in %d places", kept, missing, len(gaps))
	}
}

// TestStdioThroughput measures 300,000 lines, with copies to the journal and without.
func TestStdioThroughput(t *testing.T) {
	guard(t)
	onlyLong(t)
	stdioGuard(t)
	const lines = 300000
	var text []byte
	var ends []int
	for i := range lines {
		text = fmt.Appendf(text, "%d printer line %d of about sixty characters, as many are\n", i, i)
		ends = append(ends, len(text))
	}
	run := func(f *os.File) time.Duration {
		began, start := time.Now(), 0
		for _, end := range ends {
			if _, err := f.Write(text[start:end]); err != nil {
				t.Fatal(err)
			}
			start = end
		}
		return time.Since(began)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, r) }()
	t.Logf("plain pipe: %v", run(w).Round(time.Millisecond))
	w.Close()
	for _, mirror := range []bool{false, true, false, true} {
		p := newPrinter(t, t.TempDir(), func(s *stdio.Spec) { s.Journal = mirror })
		p.start(t)
		began := time.Now()
		run(p.stdout)
		p.end(t)
		took := time.Since(began)
		p.check(t, "stdout", lines)
		t.Logf("journal %v: %v until drained", mirror, took.Round(time.Millisecond))
		if took > patience(6*time.Second) {
			t.Errorf("it took %v", took)
		}
	}
}
