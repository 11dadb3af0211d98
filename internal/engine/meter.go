package engine

import (
	"context"
	"fmt"
	"sync"
	"time"

	"gantry/internal/isolator"
	"gantry/internal/pod"
)

// meter is an isolator whose apps are counted elsewhere than in their units' cgroups.
type meter interface {
	// Measure reads files of an app's cgroup.
	Measure(ctx context.Context, d isolator.Dirs, app pod.ID, files []string) (isolator.Reading, error)
	// MeasureLayer looks at what an app's writable layer holds. It may take long.
	MeasureLayer(ctx context.Context, d isolator.Dirs, app pod.ID) (bytes, inodes uint64, err error)
}

// measuredFiles are all that Stats and Metrics are made of.
var measuredFiles = []string{
	"cpu.stat", "cpu.pressure", "io.stat", "io.pressure", "memory.current", "memory.events", "memory.max", "memory.peak", "memory.pressure", "memory.stat",
	"memory.swap.current", "memory.swap.max", "pids.current", "pids.max",
}

// meterOf is the isolator of an app if it is such a one, with the app's pod.
func (e *Engine) meterOf(a *pod.App) (meter, *pod.Pod) {
	e.view.mu.RLock()
	defer e.view.mu.RUnlock()
	t := e.view.entries[a.Pod]
	if t == nil {
		return nil, nil
	}
	m, _ := e.iso[t.pod.Isolator].(meter)
	return m, t.pod
}

// readings are under way. A list begins all of them at once: what does not answer is waited
// for once, and not for each app.
type readings struct {
	mu    sync.Mutex
	under map[pod.ID]*reading
}

type reading struct {
	begun time.Time
	done  chan struct{}
	got   isolator.Reading
	err   error
}

// readingFresh is how long a reading that nobody has taken may be taken.
const readingFresh = 5 * time.Second

// begin begins to read, or joins who does.
func (r *readings) begin(life context.Context, id pod.ID, read func(context.Context) (isolator.Reading, error)) *reading {
	r.mu.Lock()
	defer r.mu.Unlock()
	for other, o := range r.under { // of apps that ended meanwhile
		if time.Since(o.begun) > readingFresh {
			delete(r.under, other)
		}
	}
	if u := r.under[id]; u != nil {
		return u
	}
	u := &reading{begun: time.Now(), done: make(chan struct{})}
	if r.under == nil {
		r.under = map[pod.ID]*reading{}
	}
	r.under[id] = u
	go func() {
		defer close(u.done)
		ctx, cancel := context.WithTimeout(life, remoteTime)
		defer cancel()
		u.got, u.err = read(ctx)
	}()
	return u
}

// take waits for a reading, and takes it: the next one is another.
func (r *readings) take(ctx context.Context, id pod.ID, u *reading) (isolator.Reading, error) {
	select {
	case <-u.done:
	case <-ctx.Done():
		return isolator.Reading{}, ctx.Err()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.under[id] == u {
		delete(r.under, id)
	}
	return u.got, u.err
}

// beginReading does so for an app that has a meter; else it returns nil.
func (e *Engine) beginReading(a pod.AppStatus) *reading {
	m, p := e.meterOf(a.App)
	if m == nil {
		return nil
	}
	return e.readings.begin(e.life, a.ID, func(ctx context.Context) (isolator.Reading, error) {
		return m.Measure(ctx, e.dirs(p.ID, a.ID), a.ID, measuredFiles)
	})
}

// cgroupOf is where the numbers of an app are; the reading is there if that is not the host.
func (e *Engine) cgroupOf(ctx context.Context, a pod.AppStatus, dir string) (*cgroup, *isolator.Reading, error) {
	u := e.beginReading(a)
	if u == nil {
		return &cgroup{dir: dir}, nil, nil
	}
	got, err := e.readings.take(ctx, a.ID, u)
	if err != nil {
		return nil, nil, fmt.Errorf("stats of app %s: %w", a.ID, err)
	}
	return readOf(got.Files), &got, nil
}

// layerTime bounds a look at a writable layer that is not on the host.
const layerTime = time.Minute

// layer is how the writable layer of an app is looked at.
func (e *Engine) layer(a pod.AppStatus) layer {
	m, p := e.meterOf(a.App)
	if m == nil {
		return below(e.upper(a))
	}
	return layer{remote: true, look: func(ctx context.Context) (uint64, uint64, bool) {
		ctx, cancel := context.WithTimeout(ctx, layerTime)
		defer cancel()
		bytes, inodes, err := m.MeasureLayer(ctx, e.dirs(p.ID, a.ID), a.ID)
		return bytes, inodes, err == nil
	}}
}
