package engine

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/network"
	"gantry/internal/pod"
	"gantry/internal/podstore"
	"gantry/internal/unit"
)

// AppStats reads what a running app uses. Its limits may be far above: numbers of
// the pod are the slice's.
func (e *Engine) AppStats(ctx context.Context, id pod.ID) (Stats, error) {
	app, dir, err := e.measured(id)
	if err != nil {
		return Stats{}, err
	}
	c, _, err := e.cgroupOf(ctx, app, dir)
	if err != nil {
		return Stats{}, err
	}
	s, err := c.readStats()
	if err != nil {
		return Stats{}, fmt.Errorf("stats of app %s: %w", id, err)
	}
	s.RootfsBytes, s.RootfsInodes = e.usage.of(ctx, id, e.layer(app))
	return s, nil
}

// LayersUsed sums up what writable layers held when they were looked at last: those of all
// apps on this host, ended ones too. The first time it waits a little for the looks.
func (e *Engine) LayersUsed(ctx context.Context) (bytes, inodes uint64) {
	var apps []pod.AppStatus
	e.view.mu.RLock()
	for _, t := range e.view.entries {
		for _, a := range t.apps {
			apps = append(apps, a.observe(e.bootID))
		}
	}
	e.view.mu.RUnlock()
	layers := map[pod.ID]layer{}
	for _, a := range apps {
		// What a machine's app wrote goes with it, and only the machine can tell.
		if l := e.layer(a); !l.remote || a.Phase == pod.Running {
			layers[a.ID] = l
		}
	}
	return e.usage.all(ctx, layers)
}

// MeasureLayers begins to look at what the writable layers of apps hold, at all of
// them, and to ask machines for their numbers: what is asked for one by one then waits for
// the same seconds.
func (e *Engine) MeasureLayers(apps []pod.AppStatus) {
	for _, a := range apps {
		e.beginReading(a)
		e.usage.begin(a.ID, e.layer(a))
	}
}

// measured returns an app that runs, and its cgroup.
func (e *Engine) measured(id pod.ID) (pod.AppStatus, string, error) {
	app, err := e.App(id)
	if err != nil {
		return app, "", err
	}
	if app.Phase != pod.Running {
		return app, "", fmt.Errorf("stats of app %s: it is %s: %w", id, app.Phase, pod.ErrState)
	}
	dir, err := e.appCgroup(app.App)
	return app, dir, err
}

// upper is the directory of an app's writable layer.
func (e *Engine) upper(a pod.AppStatus) string {
	return filepath.Join(e.store.App(a.Pod, a.ID), podstore.WritableDir, "upper")
}

// PodStats reads what a ready pod uses.
func (e *Engine) PodStats(ctx context.Context, id pod.ID) (PodStats, error) {
	p, err := e.Pod(id)
	if err != nil {
		return PodStats{}, err
	}
	if !p.Ready {
		return PodStats{}, fmt.Errorf("stats of pod %s: it is not ready: %w", id, pod.ErrState)
	}
	dir := filepath.Join(e.cfg.Cgroups, unit.CgroupOf(p.Slice))
	s, err := (&cgroup{dir: dir}).readStats()
	if err != nil {
		return PodStats{}, fmt.Errorf("stats of pod %s: %w", id, err)
	}
	out := PodStats{Stats: s, Cgroup: e.cgroupName(dir)}
	crowd := &crowd{left: crowdLimit}
	crowd.count(ctx, dir)
	out.Processes = crowd.processes
	if p.HostNetwork() {
		return out, nil
	}
	if out.Interfaces, err = network.Usage(e.down.netns(p.Pod)); err != nil {
		// What else is known of a pod must not be hidden: evictions are decided by it.
		e.log.Warn("the traffic of a pod is not counted", "pod", id, "err", err)
	}
	return out, nil
}

// cgroupName is a cgroup's path as /proc/PID/cgroup has it.
func (e *Engine) cgroupName(dir string) string {
	return "/" + strings.TrimPrefix(strings.TrimPrefix(dir, e.cfg.Cgroups), "/")
}

// missing is the error of what has gone meanwhile.
func missing(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("%w: %w", err, pod.ErrNotFound)
	}
	return err
}

// cgroup reads files of a cgroup directory, or of one that is elsewhere; the first error
// stays.
type cgroup struct {
	dir  string
	from func(name string) (string, error) // instead of dir
	err  error
}

// readOf is for files that were read already.
func readOf(files map[string]string) *cgroup {
	return &cgroup{from: func(name string) (string, error) {
		text, ok := files[name]
		if !ok {
			return "", fmt.Errorf("read %s: %w", name, fs.ErrNotExist)
		}
		return text, nil
	}}
}

func (c *cgroup) file(name string) (string, error) {
	if c.from != nil {
		text, err := c.from(name)
		return strings.TrimSpace(text), err
	}
	data, err := os.ReadFile(filepath.Join(c.dir, name))
	return strings.TrimSpace(string(data)), err
}

func (c *cgroup) readStats() (Stats, error) {
	s := c.stats(c.table("cpu.stat"), c.table("memory.stat"))
	return s, missing(c.err)
}

func (c *cgroup) stats(cpu, mem map[string]uint64) Stats {
	usage := c.number("memory.current")
	s := Stats{
		Time:            time.Now(),
		CPUNanos:        cpu["usage_usec"] * 1000,
		MemoryUsage:     usage,
		MemoryRSS:       mem["anon"],
		MemoryLimit:     c.limit("memory.max"),
		PageFaults:      mem["pgfault"],
		MajorPageFaults: mem["pgmajfault"],
		Pids:            c.number("pids.current"),
		SwapUsage:       c.optional("memory.swap.current"),
		SwapLimit:       c.limitOptional("memory.swap.max"),
	}
	// The working set is what cannot be taken back at once.
	if inactive := mem["inactive_file"]; inactive < usage {
		s.MemoryWorkingSet = usage - inactive
	}
	s.CPUPressure = c.pressure("cpu.pressure")
	s.MemoryPressure = c.pressure("memory.pressure")
	s.IOPressure = c.pressure("io.pressure")
	return s
}

func (c *cgroup) read(name string) string {
	text, err := c.file(name)
	if err != nil && c.err == nil {
		c.err = err
	}
	return text
}

func (c *cgroup) number(name string) uint64 {
	n, _ := strconv.ParseUint(c.read(name), 10, 64)
	return n
}

func (c *cgroup) limit(name string) uint64 {
	s := c.read(name)
	if s == "max" {
		return 0
	}
	n, _ := strconv.ParseUint(s, 10, 64)
	return n
}

// optional reads a file that not every kernel has.
func (c *cgroup) optional(name string) uint64 {
	n, _ := strconv.ParseUint(c.maybe(name), 10, 64)
	return n
}

func (c *cgroup) limitOptional(name string) uint64 {
	n, _ := strconv.ParseUint(c.maybe(name), 10, 64) // "max" is no number, and no limit
	return n
}

func (c *cgroup) maybe(name string) string {
	text, err := c.file(name)
	if err != nil {
		return ""
	}
	return text
}

func (c *cgroup) table(name string) map[string]uint64 { return parseTable(c.read(name)) }

func parseTable(s string) map[string]uint64 {
	out := map[string]uint64{}
	for line := range strings.SplitSeq(s, "\n") {
		key, value, ok := strings.Cut(line, " ")
		if n, err := strconv.ParseUint(value, 10, 64); ok && err == nil {
			out[key] = n
		}
	}
	return out
}

func (c *cgroup) pressure(name string) *Pressure {
	s := c.maybe(name)
	if s == "" {
		return nil // a kernel without PSI
	}
	return parsePressure([]byte(s))
}

// parsePressure reads a pressure file. The kernel counts microseconds.
func parsePressure(data []byte) *Pressure {
	p := &Pressure{}
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		kind, rest, _ := strings.Cut(lines.Text(), " ")
		line := &p.Some
		if kind == "full" {
			line = &p.Full
		}
		for field := range strings.FieldsSeq(rest) {
			key, value, _ := strings.Cut(field, "=")
			switch key {
			case "avg10":
				line.Avg10, _ = strconv.ParseFloat(value, 64)
			case "avg60":
				line.Avg60, _ = strconv.ParseFloat(value, 64)
			case "avg300":
				line.Avg300, _ = strconv.ParseFloat(value, 64)
			case "total":
				n, _ := strconv.ParseUint(value, 10, 64)
				line.Total = n * 1000
			}
		}
	}
	return p
}
