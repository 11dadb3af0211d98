package stdio

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/pod"
)

// text is what a test app prints: lines of all kinds, each of which is unique.
func text(seed uint64, lines int) string {
	r := rand.New(rand.NewPCG(seed, 1))
	var b strings.Builder
	for i := range lines {
		fmt.Fprintf(&b, "%d %d ", seed, i)
		switch r.IntN(20) {
		case 0:
			b.WriteString(strings.Repeat("x", r.IntN(40000)))
		case 1:
			b.WriteString(strings.Repeat("\n", r.IntN(3)))
		default:
			b.WriteString(strings.Repeat("y", r.IntN(120)))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// print writes s in pieces of all sizes.
func print(t testing.TB, f *os.File, s string, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 2))
	for len(s) > 0 {
		n := min(len(s), 1+r.IntN(300))
		if r.IntN(50) == 0 {
			n = min(len(s), r.IntN(100000))
		}
		if _, err := f.WriteString(s[:n]); err != nil {
			t.Error(err)
			return
		}
		s = s[n:]
	}
}

// same compares without printing megabytes.
func same(t *testing.T, what, got, want string) {
	t.Helper()
	if got == want {
		return
	}
	i := 0
	for i < len(got) && i < len(want) && got[i] == want[i] {
		i++
	}
	from := max(0, i-40)
	t.Errorf("%s: %d bytes, want %d; they part at %d:\n got %q\nwant %q", what, len(got), len(want), i,
		got[from:min(len(got), i+40)], want[from:min(len(want), i+40)])
}

func TestStreams(t *testing.T) {
	t.Parallel()
	s := supervise(t)
	a := s.newApp(nil)
	s.start(a)
	out, errs := text(1, 2000), text(2, 500)+"no newline at the end"
	var wg sync.WaitGroup
	wg.Go(func() { print(t, a.stdout, out, 1) })
	wg.Go(func() { print(t, a.stderr, errs, 2) })
	wg.Wait()
	a.close()
	s.drain(a)
	got := content(t, a.spec.Log)
	same(t, "stdout", got[stdout], out)
	same(t, "stderr", got[stderr], errs)
}

// An unfinished line is not cut by how it arrives.
func TestLinesAreWhole(t *testing.T) {
	t.Parallel()
	s := supervise(t)
	a := s.newApp(nil)
	s.start(a)
	for _, part := range []string{"one ", "line", "\nand", " more"} {
		if _, err := a.stdout.WriteString(part); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	a.close()
	s.drain(a)
	data, err := os.ReadFile(a.spec.Log)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for l := range strings.Lines(string(data)) {
		got = append(got, l[len(stampLayout)+1:])
	}
	if want := []string{"stdout F one line\n", "stdout P and more\n"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// A line that comes in very small pieces fills staging's pages, not its bytes.
func TestTinyPieces(t *testing.T) {
	t.Parallel()
	s := supervise(t)
	a := s.newApp(nil)
	s.start(a)
	var want strings.Builder
	for i := range 60 {
		p := fmt.Sprint(i, ".")
		want.WriteString(p)
		if _, err := a.stdout.WriteString(p); err != nil {
			t.Fatal(err)
		}
		time.Sleep(4 * time.Millisecond)
	}
	a.close()
	s.drain(a)
	same(t, "stdout", content(t, a.spec.Log)[stdout], want.String())
}

func TestKillAtEveryStep(t *testing.T) {
	t.Parallel()
	for _, point := range failpoints[:slices.Index(failpoints, "start-recorded")] {
		for _, count := range []int{1, 2, 9} {
			t.Run(fmt.Sprint(point, " ", count), func(t *testing.T) {
				t.Parallel()
				s := supervise(t)
				a := s.newApp(nil)
				s.start(a)
				out, errs := text(1, 600), text(2, 300)
				half := len(out) / 2
				print(t, a.stdout, out[:half], 1)
				before := s.count()
				s.arm(point, count)
				var wg sync.WaitGroup
				wg.Go(func() { print(t, a.stdout, out[half:], 1) })
				wg.Go(func() { print(t, a.stderr, errs, 2) })
				wg.Wait()
				s.written(a, len(out), len(errs))
				a.close()
				s.drain(a)
				if s.count() < before+2 {
					t.Errorf("the server was not killed")
				}
				got := content(t, a.spec.Log)
				same(t, "stdout", got[stdout], out)
				same(t, "stderr", got[stderr], errs)
			})
		}
	}
}

// TestWritten: what was written is counted to the byte, whoever was killed meanwhile.
func TestWritten(t *testing.T) {
	t.Parallel()
	s := supervise(t)
	a := s.newApp(nil)
	s.start(a)
	s.written(a, 0, 0)
	print(t, a.stdout, "no end of a line", 1)
	print(t, a.stderr, "error\n", 1)
	s.written(a, 16, 6)
	s.kill()
	print(t, a.stdout, " yet\n", 1)
	s.written(a, 21, 6)
	s.drain(a)
	if _, err := s.client.Written(t.Context(), a.spec.App); !errors.Is(err, pod.ErrNotFound) {
		t.Errorf("after the end: %v", err)
	}
}

func TestRandomKills(t *testing.T) {
	t.Parallel()
	s := supervise(t)
	const apps, kills = 20, 60
	var wg sync.WaitGroup
	all := make([]*app, apps)
	for i := range all {
		a := s.newApp(nil)
		all[i] = a
		s.start(a)
		wg.Go(func() {
			out := text(uint64(i), 1500)
			for len(out) > 0 {
				n := min(len(out), 4000)
				print(t, a.stdout, out[:n], uint64(i))
				out = out[n:]
				time.Sleep(2 * time.Millisecond)
			}
		})
	}
	stop := make(chan struct{})
	killed := make(chan struct{})
	go func() {
		defer close(killed)
		for range kills {
			select {
			case <-stop:
				return
			case <-time.After(time.Duration(5+rand.IntN(40)) * time.Millisecond):
				s.kill()
			}
		}
	}()
	wg.Wait()
	close(stop)
	<-killed
	for i, a := range all {
		a.close()
		s.drain(a)
		same(t, fmt.Sprint("app ", i), content(t, a.spec.Log)[stdout], text(uint64(i), 1500))
	}
	t.Logf("%d starts of the server", s.count())
}

func TestStartAgain(t *testing.T) {
	t.Parallel()
	for _, point := range []string{"start-recorded", "start-stored", ""} {
		t.Run("killed at "+point, func(t *testing.T) {
			t.Parallel()
			s := supervise(t)
			a := s.newApp(nil)
			if point != "" {
				s.arm(point, 1)
			}
			s.start(a)
			print(t, a.stdout, "first\n", 1)
			s.start(a) // closes the first ends: they were all there were
			print(t, a.stdout, "second\n", 1)
			a.close()
			time.Sleep(20 * time.Millisecond)
			s.start(a) // the outputs had ended
			print(t, a.stdout, "third\n", 1)
			a.close()
			s.drain(a)
			s.drain(a)
			same(t, "stdout", content(t, a.spec.Log)[stdout], "first\nsecond\nthird\n")
		})
	}
}

// A start that was cut short and is not tried again leaves nothing in the store.
func TestStartGivenUp(t *testing.T) {
	t.Parallel()
	for _, point := range []string{"start-recorded", "start-stdin"} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			s := supervise(t)
			a := s.newApp(func(spec *Spec) { spec.Stdin = true })
			s.arm(point, 1)
			if err := s.tryStart(a); err == nil {
				t.Fatal("the server was not killed")
			}
			s.status("")
			until(t, "the store is empty", func() bool { return s.storeSize() == 0 })
		})
	}
}

// An app that is removed while its start is under way leaves nothing in the store:
// nobody would ever drain it.
func TestStartOfRemovedApp(t *testing.T) {
	t.Parallel()
	s := supervise(t)
	a := s.newApp(nil)
	s.mu.Lock()
	s.arrived = func() { os.RemoveAll(a.dir) }
	s.mu.Unlock()
	if err := s.tryStart(a); err == nil {
		t.Error("an app was started that is not there")
	}
	if apps := s.status("").Apps; apps != 0 {
		t.Errorf("%d apps have streams", apps)
	}
	until(t, "the store is empty", func() bool { return s.storeSize() == 0 })
}

func TestDrainAtEveryStep(t *testing.T) {
	t.Parallel()
	for _, point := range []string{"drain-flushed", "drain-forgotten", "drain-retired"} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			s := supervise(t)
			a := s.newApp(nil)
			s.start(a)
			s.arm(point, 1)
			out := text(3, 300) + "unfinished"
			print(t, a.stdout, out, 1)
			a.close()
			s.drain(a)
			s.status("")
			same(t, "stdout", content(t, a.spec.Log)[stdout], out)
		})
	}
}

func TestDrainIsBounded(t *testing.T) {
	t.Parallel()
	s := supervise(t)
	a := s.newApp(nil)
	s.start(a)
	print(t, a.stdout, "held open", 1)
	begin := time.Now()
	if err := s.client.Drain(t.Context(), a.spec.App, 200*time.Millisecond); err != nil {
		t.Error(err)
	}
	if d := time.Since(begin); d < 200*time.Millisecond || d > 5*time.Second {
		t.Errorf("it took %v", d)
	}
	same(t, "stdout", content(t, a.spec.Log)[stdout], "held open")
	a.close()
}

// Somebody outside of the app holds its pipe and prints faster than lines can be
// written: the end of the app waits no longer than for one who is silent.
func TestDrainIsBoundedUnderAFlood(t *testing.T) {
	t.Parallel()
	s, err := New(Config{RunDir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.poller.stop(); s.workers.Wait() })
	c, err := s.create(saved{Spec: Spec{App: pod.NewID()}})
	if err != nil {
		t.Fatal(err)
	}
	endless, err := unix.Open("/dev/zero", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(c.streams[stdout].src)
	c.streams[stdout].src = endless
	done := make(chan error, 1)
	go func() { done <- s.drain(t.Context(), c.saved.App, 100*time.Millisecond, 0) }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it does not end")
	}
}

func TestRotation(t *testing.T) {
	t.Parallel()
	for _, point := range []string{"", "reopen-created", "reopen-switched"} {
		t.Run("killed at "+point, func(t *testing.T) {
			t.Parallel()
			s := supervise(t)
			a := s.newApp(nil)
			s.start(a)
			if point != "" {
				s.arm(point, 2)
			}
			out := text(5, 3000)
			done := make(chan struct{})
			go func() {
				defer close(done)
				print(t, a.stdout, out, 1)
			}()
			var old []string
			for i := range 5 {
				time.Sleep(5 * time.Millisecond)
				name := fmt.Sprintf("%s.%d", a.spec.Log, i)
				if err := os.Rename(a.spec.Log, name); err != nil {
					t.Fatal(err)
				}
				old = append(old, name)
				if i%2 == 1 {
					s.kill() // the log is not at its path now
				}
				if err := s.client.Reopen(t.Context(), a.spec.App); err != nil {
					t.Fatal(err)
				}
				if _, err := os.Stat(a.spec.Log); err != nil {
					t.Error(err)
				}
				before := size(t, name)
				time.Sleep(5 * time.Millisecond)
				if after := size(t, name); before != after {
					t.Errorf("the old log grew from %d to %d after rotation", before, after)
				}
			}
			<-done
			a.close()
			s.drain(a)
			same(t, "stdout", content(t, append(old, a.spec.Log)...)[stdout], out)
		})
	}
}

func size(t *testing.T, path string) int64 {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.Size()
}

func TestReopenErrors(t *testing.T) {
	t.Parallel()
	s := supervise(t)
	a := s.newApp(nil)
	if err := s.client.Reopen(t.Context(), a.spec.App); err == nil {
		t.Error("an unknown app's log was reopened")
	}
	s.start(a)
	if err := s.client.Reopen(t.Context(), a.spec.App); err != nil {
		t.Error(err) // nobody moved it: nothing to do
	}
	dir := filepath.Dir(a.spec.Log)
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	if err := s.client.Reopen(t.Context(), a.spec.App); err == nil {
		t.Error("a log without a directory was reopened")
	}
	if err := os.Rename(dir+".away", dir); err != nil {
		t.Fatal(err)
	}
	moved := a.spec.Log + ".moved"
	if err := os.Rename(a.spec.Log, moved); err != nil {
		t.Fatal(err)
	}
	if err := unix.Symlink("/dev/null", a.spec.Log); err != nil {
		t.Fatal(err)
	}
	if err := s.client.Reopen(t.Context(), a.spec.App); err == nil {
		t.Error("a symbolic link was followed")
	}
	print(t, a.stdout, "still here\n", 1)
	a.close()
	s.drain(a)
	same(t, "stdout", content(t, moved)[stdout], "still here\n")
}
