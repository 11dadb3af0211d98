//go:build e2e

package node

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/test/machine"
)

// footprint is what gantry-cri has, and what execs may leave behind.
type footprint struct {
	goroutines, files, cgroups, dirs int
	threads                          int // told, and not judged: Go keeps those that a peak has made
	rss, anon, heap                  int // KiB; rss has pages of the program's file, too; what the heap's objects take, dead ones not collected yet among them
}

func (e engine) footprint(t *testing.T, cgroup string) footprint {
	t.Helper()
	pid := strings.TrimSpace(sh(t, "systemctl show --value -p MainPID gantry-cri.service"))
	files, err := os.ReadDir("/proc/" + pid + "/fd")
	if err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		t.Fatal(err)
	}
	rss := regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindSubmatch(status)
	anon := regexp.MustCompile(`RssAnon:\s+(\d+) kB`).FindSubmatch(status)
	threads := regexp.MustCompile(`Threads:\s+(\d+)`).FindSubmatch(status)
	heap, err := strconv.ParseFloat(metric(t, "go_memstats_heap_alloc_bytes"), 64)
	if err != nil {
		t.Fatal(err)
	}
	number := func(s string) int {
		n, err := strconv.Atoi(strings.TrimSpace(s))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	return footprint{
		goroutines: number(metric(t, "go_goroutines")), files: len(files), rss: number(string(rss[1])), anon: number(string(anon[1])), heap: int(heap) >> 10, threads: number(string(threads[1])),
		// An exec's group is below the server's own, or below the app's.
		cgroups: number(sh(t, "find /sys/fs/cgroup"+cgroup+" /sys/fs/cgroup$(systemctl show -P ControlGroup gantry-cri.service) -type d | wc -l")), dirs: number(sh(t, "ls /run/gantry/exec | wc -l")),
	}
}

// metric reads one of gantry-cri's own numbers.
func metric(t *testing.T, name string) string {
	t.Helper()
	resp, err := http.Get("http://127.0.0.1:9639/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)^` + name + ` (\S+)$`).FindSubmatch(text)
	if found == nil {
		t.Fatalf("there is no metric %s", name)
	}
	return string(found[1])
}

// TestManyProbes execs as kubelet's probes do, as often as half of the machine's
// processor time allows: 150 times, and in the long run for 20 minutes and 10,000 times at least.
// Some fail, some leave a process for a moment, and some are cut off by their time. Nothing
// of it may stay.
func TestManyProbes(t *testing.T) {
	guard(t)
	needsGantry(t)
	e := dial(t)
	c := e.run(t, onHost(e.podConfig(t, "probes"))).runScript(t, "app", "while :; do sleep 1; done")
	cgroup := strings.TrimSpace(sh(t, "systemctl show --value -p ControlGroup gantry-app-"+c.id+".service"))
	e.probe(t, c, 60, 0)
	before := e.settled(t, c, cgroup)
	began := now(t)
	// In halves: what a server gets to know at first it may keep, and what grows on it loses.
	half := func() int {
		return e.probe(t, c, machine.Amount(5_000, 75), time.Duration(machine.Amount(10, 0))*time.Minute)
	}
	n := half()
	middle := e.settled(t, c, cgroup)
	n += half()
	took, share := time.Since(began.at), 100*began.share(t)
	after := e.settled(t, c, cgroup)
	t.Logf("%d execs in %s, %.1f a second, with %.0f %% of %d processors; before %+v, in the middle %+v, after %+v",
		n, took.Round(time.Second), float64(n)/took.Seconds(), share, runtime.NumCPU(), before, middle, after)
	if machine.Long() && (share < 40 || share > 60) {
		t.Errorf("the processors were used to %.0f %%, want half", share)
	}
	// 75 execs say little of memory: what the collector has not come to yet moves it by some
	// megabytes, and pages of the program that it had not run yet by fifteen, so these do not count
	// then. The limit is what leaks show in: 100 KiB of each exec.
	memory := func(f footprint) int { return machine.Amount(f.rss, f.anon) }
	if most := memory(middle) + machine.Amount(2, 8)<<10; memory(after) > most {
		t.Errorf("%d KiB of memory after the second half, %d after the first, want at most %d", memory(after), memory(middle), most)
	}
	if most := middle.heap + 1<<10; machine.Long() && after.heap > most {
		t.Errorf("%d KiB of live objects after the second half, %d after the first, want at most %d", after.heap, middle.heap, most)
	}
	if after.goroutines > before.goroutines+3 || after.files > before.files+3 || after.cgroups != before.cgroups || after.dirs != before.dirs {
		t.Errorf("before %+v, after %d execs %+v", before, n, after)
	}
	if most := memory(before) + memory(before)/4 + machine.Amount(4, 8)<<10; memory(after) > most {
		t.Errorf("%d KiB of memory, want at most %d", memory(after), most)
	}
}

// moment is one from which on the processors' work is counted.
type moment struct {
	at   time.Time
	busy time.Duration
}

func now(t *testing.T) moment {
	t.Helper()
	return moment{time.Now(), busyTime(t)}
}

// share is how much of the processors' time since then was work.
func (m moment) share(t *testing.T) float64 {
	t.Helper()
	return (busyTime(t) - m.busy).Seconds() / time.Since(m.at).Seconds() / float64(runtime.NumCPU())
}

// busyTime is how long the machine's processors worked since it was booted.
func busyTime(t *testing.T) time.Duration {
	t.Helper()
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		t.Error(err)
		return 0
	}
	line, _, _ := strings.Cut(string(text), "\n")
	var sum time.Duration
	for i, word := range strings.Fields(line)[1:] {
		const idle, iowait, guest = 3, 4, 8 // what runs a guest counts as a user's work already
		if n, err := strconv.Atoi(word); err == nil && i != idle && i != iowait && i < guest {
			sum += time.Duration(n) * time.Second / 100
		}
	}
	return sum
}

// settled waits until what has ended is given back. Of memory that is so when the program
// has collected its garbage, which it does every two minutes at the latest.
func (e engine) settled(t *testing.T, c container, cgroup string) footprint {
	t.Helper()
	if machine.Long() {
		pause(150 * time.Second)
	}
	pause(patience(time.Second))
	if err := e.probeOnce(t, c, 1); err != nil { // it finds what daemons of others have left
		t.Error(err)
	}
	return e.footprint(t, cgroup)
}

// probe returns how many execs there were.
func (e engine) probe(t *testing.T, c container, least int, atLeast time.Duration) int {
	t.Helper()
	var done atomic.Int64
	began := now(t)
	var all sync.WaitGroup
	for range 3 * runtime.NumCPU() {
		all.Go(func() {
			for done.Load() < int64(least) || time.Since(began.at) < atLeast {
				if err := e.probeOnce(t, c, int(done.Add(1))); err != nil {
					t.Error(err)
					return
				}
				// Others may want the processors, too.
				late := time.Since(began.at) > 2*atLeast+patience(5*time.Minute)
				for pause(20 * time.Millisecond); !late && began.share(t) > 0.5; pause(20 * time.Millisecond) {
				}
			}
		})
	}
	all.Wait()
	return int(done.Load())
}

func (e engine) probeOnce(t *testing.T, c container, i int) error {
	cmd, timeout := []string{"sh", "-c", fmt.Sprintf("echo %d; exit %d", i, i%3)}, int64(60)
	if i%7 == 0 { // a daemon, for a moment
		cmd[2] = "sleep 0.5 >/dev/null 2>&1 & " + cmd[2]
	}
	late := i%50 == 0
	if late {
		cmd, timeout = []string{"sh", "-c", "sleep 1000 & sleep 1000"}, 1
	}
	resp, err := e.ExecSync(t.Context(), &cri.ExecSyncRequest{ContainerId: c.id, Cmd: cmd, Timeout: timeout})
	switch {
	case late && status.Code(err) != codes.DeadlineExceeded:
		return fmt.Errorf("exec %d, whose time was over: %w", i, err)
	case late:
		return nil
	case err != nil:
		return fmt.Errorf("exec %d: %w", i, err)
	case resp.ExitCode != int32(i%3) || strings.TrimSpace(string(resp.Stdout)) != strconv.Itoa(i):
		return fmt.Errorf("exec %d: exit code %d, output %q", i, resp.ExitCode, resp.Stdout)
	}
	return nil
}
