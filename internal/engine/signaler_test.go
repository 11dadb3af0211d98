package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"gantry/internal/isolator"
	"gantry/internal/pod"
	"gantry/internal/podstore"
	"gantry/internal/systemd"
	"gantry/internal/unit"
)

// far is an isolator whose apps are somewhere else, which may hang.
type far struct {
	isolator.Isolator
	hangs   bool
	on      func(app pod.ID, signal int)
	refuses error
	reading isolator.Reading

	mu      sync.Mutex
	signals []string
	updates []string
}

func (f *far) wait(ctx context.Context) error {
	if !f.hangs {
		return nil
	}
	<-ctx.Done()
	return fmt.Errorf("it hangs: %w: %w", ctx.Err(), pod.ErrUnavailable)
}

func (f *far) Signal(ctx context.Context, _ isolator.Dirs, app pod.ID, signal int, all bool) error {
	f.mu.Lock()
	f.signals = append(f.signals, fmt.Sprint(signal, all))
	f.mu.Unlock()
	if err := f.wait(ctx); err != nil {
		return err
	}
	if f.on != nil {
		f.on(app, signal)
	}
	return nil
}

func (f *far) Update(_ context.Context, _ isolator.Dirs, _ pod.ID, was, now pod.Resources) error {
	f.updates = append(f.updates, fmt.Sprint(was.Memory, now.Memory))
	return f.refuses
}

func (f *far) PodResources(_ *pod.Pod, _ isolator.Dirs, r pod.Resources) ([]unit.Property, []isolator.CgroupFile, error) {
	return nil, nil, f.refuses
}

func (f *far) Resources(pod.Resources) ([]unit.Property, []isolator.CgroupFile, error) {
	return nil, nil, nil
}

func (f *far) Measure(ctx context.Context, _ isolator.Dirs, _ pod.ID, files []string) (isolator.Reading, error) {
	return f.reading, f.wait(ctx)
}

func (f *far) MeasureLayer(ctx context.Context, _ isolator.Dirs, _ pod.ID) (bytes, inodes uint64, err error) {
	return 4096, 7, f.wait(ctx)
}

func (f *far) Dial(_ context.Context, _ isolator.Dirs, port uint16) (net.Conn, error) {
	ours, theirs := net.Pipe()
	go func() {
		fmt.Fprintf(theirs, "port %d", port)
		theirs.Close()
	}()
	return ours, nil
}

// newFarWorld has an app that runs far away.
func newFarWorld(t *testing.T) (*world, *far, *pod.Pod, *pod.App) {
	t.Helper()
	w := newLiveWorld(t)
	w.cfg.Cgroups = t.TempDir()
	f := &far{Isolator: w.iso["oci"]}
	w.iso["oci"] = f
	p := w.pod()
	a := w.app(p)
	w.run(a)
	w.load()
	return w, f, p, a
}

// TestStopFar: signals go to where the app is, and not to what stands for it here.
func TestStopFar(t *testing.T) {
	t.Parallel()
	w, f, p, a := newFarWorld(t)
	f.on = func(app pod.ID, signal int) {
		w.ended(a, true, pod.Exit{Code: 42, Reason: pod.ReasonError})
		w.stop(unit.App(string(app)))
		w.appChanged(app, gone)
	}
	if err := w.StopApp(t.Context(), a.ID, time.Minute); err != nil {
		t.Fatal(err)
	}
	w.want(p, a, true, pod.Exited)
	if s, err := w.App(a.ID); err != nil || s.Exit.Code != 42 {
		t.Errorf("it ended as %+v, %v", s.Exit, err)
	}
	if want := []string{"0 false"}; !slices.Equal(f.signals, want) { // the app's own signal, which is none in this test
		t.Errorf("it got the signals %q, want %q", f.signals, want)
	}
}

// TestKillFarThatHangs: if nothing can be done where the app is, what stands for it is ended
// for good.
func TestKillFarThatHangs(t *testing.T) {
	t.Parallel()
	w, f, _, a := newFarWorld(t)
	f.hangs = true
	began := time.Now()
	s, err := w.App(a.ID)
	if err == nil {
		err = w.kill(t.Context(), s)
	}
	if err != nil || time.Since(began) > remoteTime+hangTime+time.Second {
		t.Errorf("after %s: %v", time.Since(began), err)
	}
	if u, err := w.manager.State(t.Context(), unit.App(string(a.ID))); err != nil || u.Running() {
		t.Errorf("what stands for it: %+v, %v", u, err)
	}
	if want := []string{"9 true"}; !slices.Equal(f.signals, want) {
		t.Errorf("it got the signals %q, want %q", f.signals, want)
	}
}

// TestUpdateFar: limits are changed where the app is. What is refused is not recorded.
func TestUpdateFar(t *testing.T) {
	t.Parallel()
	w, f, p, a := newFarWorld(t)
	if err := w.UpdateApp(t.Context(), a.ID, pod.Resources{Memory: 1000}); err != nil {
		t.Fatal(err)
	}
	f.refuses = errors.New("it is too much")
	if err := w.UpdateApp(t.Context(), a.ID, pod.Resources{Memory: 2000}); !errors.Is(err, f.refuses) {
		t.Errorf("what it refuses: %v", err)
	}
	w.want(p, a, true, pod.Running)
	if s, err := w.App(a.ID); err != nil || s.Current.Memory != 1000 {
		t.Errorf("in force are %+v, %v", s.Current, err)
	}
	if want := []string{"0 1000", "1000 2000"}; !slices.Equal(f.updates, want) {
		t.Errorf("updates %q, want %q", f.updates, want)
	}
	if err := w.UpdatePod(t.Context(), p.ID, pod.PodResources{Resources: &pod.Resources{Memory: 5}}); !errors.Is(err, f.refuses) {
		t.Errorf("what it refuses of a pod: %v", err)
	}
	if s, err := w.Pod(p.ID); err != nil || s.Resources != nil {
		t.Errorf("recorded is %+v, %v", s.Resources, err)
	}
}

// TestStatsFar: the numbers of an app come from where it is.
func TestStatsFar(t *testing.T) {
	t.Parallel()
	w, f, _, a := newFarWorld(t)
	f.reading = isolator.Reading{Processes: 3, FSBytes: 1 << 30, Files: map[string]string{
		"cpu.stat": "usage_usec 5000\n", "memory.current": "4096\n", "memory.stat": "anon 100\ninactive_file 96\n", "memory.max": "8192\n", "pids.current": "4\n", "pids.max": "max\n",
		"memory.events": "oom_kill 2\n", "io.stat": "1:3 rbytes=5\n",
	}}
	w.MeasureLayers([]pod.AppStatus{{App: a}})
	s, err := w.AppStats(t.Context(), a.ID)
	if err != nil || s.CPUNanos != 5_000_000 || s.MemoryWorkingSet != 4000 || s.MemoryLimit != 8192 || s.Pids != 4 || s.RootfsBytes != 4096 || s.RootfsInodes != 7 {
		t.Errorf("stats %+v, %v", s, err)
	}
	m, err := w.AppMetrics(t.Context(), a.ID)
	if err != nil || m.Processes != 3 || m.OOMKills != 2 || m.Rootfs.Bytes != 1<<30 || m.RootfsInodes != 7 || m.Files != 0 || len(m.Devices) != 1 || m.Devices[0].Device != "scratch" {
		t.Errorf("metrics %+v, %v", m, err)
	}
	delete(f.reading.Files, "memory.current")
	if _, err := w.AppStats(t.Context(), a.ID); !errors.Is(err, pod.ErrNotFound) {
		t.Errorf("without memory: %v", err)
	}
}

// TestMeasuredFiles: what is asked for is what is read.
func TestMeasuredFiles(t *testing.T) {
	t.Parallel()
	asked := map[string]bool{}
	c := &cgroup{from: func(name string) (string, error) {
		asked[name] = true
		return "", nil
	}}
	c.metrics()
	if got := slices.Sorted(maps.Keys(asked)); !slices.Equal(got, slices.Sorted(slices.Values(measuredFiles))) {
		t.Errorf("read are %q, asked for %q", got, measuredFiles)
	}
}

// TestReadingsHang: what does not answer is waited for once, whatever else is asked for.
func TestReadingsHang(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		life, end := context.WithCancel(t.Context())
		defer end()
		r, began := &readings{}, time.Now()
		hangs := func(ctx context.Context) (isolator.Reading, error) {
			<-ctx.Done()
			return isolator.Reading{}, ctx.Err()
		}
		answers := func(context.Context) (isolator.Reading, error) { return isolator.Reading{Processes: 1}, nil }
		ids := []pod.ID{"a", "b", "c"}
		for _, id := range ids {
			r.begin(life, id, hangs)
		}
		for _, id := range ids {
			if _, err := r.take(t.Context(), id, r.begin(life, id, hangs)); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: %v", id, err)
			}
		}
		if took := time.Since(began); took != remoteTime {
			t.Errorf("it took %s", took)
		}
		if got, err := r.take(t.Context(), "a", r.begin(life, "a", answers)); err != nil || got.Processes != 1 {
			t.Errorf("afterwards: %+v, %v", got, err)
		}
		r.begin(life, "gone", answers)
		<-time.After(2 * readingFresh)
		r.begin(life, "a", answers)
		if len(r.under) != 1 {
			t.Errorf("kept are %v", r.under)
		}
	})
}

// TestPortForwardFar: a port of the pod is where the pod is.
func TestPortForwardFar(t *testing.T) {
	t.Parallel()
	w, _, p, _ := newFarWorld(t)
	var out strings.Builder
	in, _ := io.Pipe() // who says nothing
	if err := w.PortForward(t.Context(), p.ID, 8080, readWrite{in, &out}); err != nil || out.String() != "port 8080" {
		t.Errorf("%q, %v", out.String(), err)
	}
}

type readWrite struct {
	*io.PipeReader
	io.Writer
}

// TestAnotherStandsForIt: the process that stands for an app was killed, and systemd has
// started another.
func TestAnotherStandsForIt(t *testing.T) {
	t.Parallel()
	w, _, p, a := newFarWorld(t)
	data, err := json.Marshal(pod.Run{BootID: w.bootID, Unit: unit.App(string(a.ID)), PID: 4711, Started: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(w.store.App(p.ID, a.ID), podstore.RunFile), data, 0o644); err != nil {
		t.Fatal(err)
	}
	w.onUnit(t.Context(), systemd.Event{Kind: systemd.JobRemoved, Unit: unit.App(string(a.ID))}, false)
	w.want(p, a, true, pod.Running)
	if s, err := w.App(a.ID); err != nil || s.PID != 4711 {
		t.Errorf("its process is %d, %v", s.PID, err)
	}
}
