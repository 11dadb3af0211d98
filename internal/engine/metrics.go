package engine

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"gantry/internal/pod"
)

// Metrics of an app: its Stats, and what only monitoring wants to know.
type Metrics struct {
	Stats
	Cgroup string // below the root of all cgroups

	CPUUserNanos, CPUSystemNanos              uint64
	Periods, ThrottledPeriods, ThrottledNanos uint64

	MemoryCache, MemoryKernel, MemoryMapped uint64
	MemoryPeak                              uint64
	MemoryLimitHits, OOMKills               uint64

	PidsLimit                 uint64 // 0: none
	Processes, Files, Sockets uint64 // at least so many: of a crowd not all are looked at
	OpenFilesLimit            uint64 // of the first process, soft; 0: none
	Devices                   []DeviceIO
	Hugepages                 []HugepageUsage
	Rootfs                    Filesystem
}

// DeviceIO is what an app read from a block device and wrote to it.
type DeviceIO struct {
	Device                    string // a path, or major:minor
	Major, Minor              uint32
	ReadBytes, WrittenBytes   uint64
	Reads, Writes             uint64
	DiscardedBytes, Discarded uint64
}

// HugepageUsage is of one page size, written as the kernel does: 2MB, 1GB.
type HugepageUsage struct {
	Size  string
	Bytes uint64
	Peak  uint64 // the most that was read since this program started: the kernel keeps none
}

// Filesystem that holds the writable layers.
type Filesystem struct {
	Device                    string
	Bytes, Inodes, FreeInodes uint64
}

// AppMetrics reads all that can be told of a running app. It costs more than AppStats.
func (e *Engine) AppMetrics(ctx context.Context, id pod.ID) (Metrics, error) {
	app, dir, err := e.measured(id)
	if err != nil {
		return Metrics{}, err
	}
	c, far, err := e.cgroupOf(ctx, app, dir)
	if err != nil {
		return Metrics{}, err
	}
	m := c.metrics()
	if err := missing(c.err); err != nil {
		return Metrics{}, fmt.Errorf("metrics of app %s: %w", id, err)
	}
	m.Cgroup = e.cgroupName(dir)
	e.peaks.raise(id, m.Hugepages)
	if _, err := e.App(id); err != nil { // removed meanwhile, and forgotten before it was raised
		e.peaks.forget(id)
	}
	m.RootfsBytes, m.RootfsInodes = e.usage.of(ctx, id, e.layer(app))
	if far != nil { // what is open is not counted there
		m.Processes = far.Processes
		for i := range m.Devices { // the host's device of that number is another
			m.Devices[i].Device = scratchDevice
		}
		m.Rootfs = Filesystem{Device: scratchDevice, Bytes: far.FSBytes, Inodes: far.FSInodes, FreeInodes: far.FSFreeInodes}
		return m, nil
	}
	crowd := &crowd{left: crowdLimit, open: true}
	crowd.count(ctx, dir)
	m.Processes, m.Files, m.Sockets = crowd.processes, crowd.files, crowd.sockets
	m.OpenFilesLimit = openFilesLimit(app.PID)
	m.Rootfs = filesystemOf(e.store.App(app.Pod, app.ID))
	return m, nil
}

// scratchDevice is what a disk is called that the host has no device of.
const scratchDevice = "scratch"

func (c *cgroup) metrics() Metrics {
	cpu, mem, events := c.table("cpu.stat"), c.table("memory.stat"), c.table("memory.events")
	return Metrics{
		Stats:        c.stats(cpu, mem),
		CPUUserNanos: cpu["user_usec"] * 1000, CPUSystemNanos: cpu["system_usec"] * 1000,
		Periods: cpu["nr_periods"], ThrottledPeriods: cpu["nr_throttled"], ThrottledNanos: cpu["throttled_usec"] * 1000,
		MemoryCache: mem["file"], MemoryKernel: mem["kernel"], MemoryMapped: mem["file_mapped"],
		MemoryPeak: c.optional("memory.peak"), MemoryLimitHits: events["max"], OOMKills: events["oom_kill"],
		PidsLimit: c.limitOptional("pids.max"),
		Devices:   parseIO(c.maybe("io.stat")),
		Hugepages: c.hugepages(),
	}
}

// hugepages are there where the controller is switched on.
func (c *cgroup) hugepages() (all []HugepageUsage) {
	if c.from != nil {
		return nil // it has none
	}
	files, _ := filepath.Glob(filepath.Join(c.dir, "hugetlb.*.current")) // the pattern is right
	for _, f := range files {
		size := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(f), "hugetlb."), ".current")
		if strings.Contains(size, ".") { // the reserved ones, hugetlb.2MB.rsvd.current
			continue
		}
		all = append(all, HugepageUsage{Size: size, Bytes: c.optional(filepath.Base(f))})
	}
	return all
}

// parseIO reads io.stat: a line for each device, "8:0 rbytes=1 wbytes=2 …".
func parseIO(text string) (all []DeviceIO) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		var d DeviceIO
		if n, err := fmt.Sscanf(fields[0], "%d:%d", &d.Major, &d.Minor); n != 2 || err != nil {
			continue
		}
		to := map[string]*uint64{
			"rbytes": &d.ReadBytes, "wbytes": &d.WrittenBytes, "rios": &d.Reads, "wios": &d.Writes,
			"dbytes": &d.DiscardedBytes, "dios": &d.Discarded,
		}
		for _, f := range fields[1:] {
			key, value, _ := strings.Cut(f, "=")
			if n, err := strconv.ParseUint(value, 10, 64); err == nil && to[key] != nil {
				*to[key] = n
			}
		}
		d.Device = deviceName(d.Major, d.Minor)
		all = append(all, d)
	}
	return all
}

// deviceName is a block device's path, or its numbers: not every file system has one.
func deviceName(major, minor uint32) string {
	numbers := fmt.Sprintf("%d:%d", major, minor)
	data, err := os.ReadFile("/sys/dev/block/" + numbers + "/uevent")
	if err != nil {
		return numbers
	}
	for line := range strings.SplitSeq(string(data), "\n") {
		if name, ok := strings.CutPrefix(line, "DEVNAME="); ok {
			return "/dev/" + name
		}
	}
	return numbers
}

func filesystemOf(path string) (out Filesystem) {
	var st unix.Stat_t
	var vfs unix.Statfs_t
	if unix.Stat(path, &st) != nil || unix.Statfs(path, &vfs) != nil {
		return out
	}
	return Filesystem{
		Device: deviceName(unix.Major(st.Dev), unix.Minor(st.Dev)),
		Bytes:  vfs.Blocks * uint64(vfs.Bsize), Inodes: vfs.Files, FreeInodes: vfs.Ffree,
	}
}

// crowdLimit bounds what is looked at to count an app's processes and descriptors: a
// look at 20,000 of them takes 150 ms, and some apps may have as many.
const crowdLimit = 20_000

// crowd counts the processes of a cgroup, those below included, and what they have open
// if that is wanted.
type crowd struct {
	left                      int
	open                      bool
	processes, files, sockets uint64
}

func (c *crowd) count(ctx context.Context, dir string) {
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case c.left <= 0 || ctx.Err() != nil:
			return fs.SkipAll
		case err != nil: // it went meanwhile
			return nil
		}
		if d.IsDir() {
			c.left-- // its many files are the kernel's
			return nil
		}
		if d.Name() != "cgroup.procs" {
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return nil
		}
		for pid := range strings.FieldsSeq(string(data)) {
			c.processes++
			if c.left--; c.open && c.left > 0 && ctx.Err() == nil {
				c.descriptors(filepath.Join("/proc", pid, "fd"))
			}
		}
		return nil
	})
}

// descriptors counts those of a process. The kernel says how many there are; which
// of them are sockets must be looked up one by one.
func (c *crowd) descriptors(dir string) {
	list, err := os.Open(dir)
	if err != nil {
		return // it ended meanwhile
	}
	defer list.Close()
	seen := 0
	for c.left > 0 {
		names, err := list.Readdirnames(min(c.left, 1024))
		seen += len(names)
		for _, name := range names {
			c.left--
			if to, err := os.Readlink(filepath.Join(dir, name)); err == nil && strings.HasPrefix(to, "socket:") {
				c.sockets++
			}
		}
		if err != nil {
			break
		}
	}
	if info, err := list.Stat(); err == nil { // 0 before Linux 6.2
		seen = max(seen, int(info.Size()))
	}
	c.files += uint64(seen)
}

func openFilesLimit(pid int) uint64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil {
		return 0
	}
	return parseOpenFilesLimit(string(data))
}

// parseOpenFilesLimit finds the soft limit in "Max open files  1024  524288  files".
func parseOpenFilesLimit(text string) uint64 {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) > 3 && slices.Equal(fields[:3], []string{"Max", "open", "files"}) {
			n, _ := strconv.ParseUint(fields[3], 10, 64) // "unlimited" is none
			return n
		}
	}
	return 0
}
