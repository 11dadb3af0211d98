package engine

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"gantry/internal/pod"
	"gantry/internal/unit"
)

// TestDiskUseOfATreeTooDeep: an app nests directories until no path is long enough
// for them, and what it wrote beside them is counted still.
func TestDiskUseOfATreeTooDeep(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "z"), make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	name := strings.Repeat("d", 250)
	at, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	for range 20 {
		if err == nil {
			err = unix.Mkdirat(at, name, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
		below, openErr := unix.Openat(at, name, unix.O_PATH|unix.O_CLOEXEC, 0)
		unix.Close(at)
		at, err = below, openErr
	}
	defer unix.Close(at)
	bytes, inodes := diskUse(t.Context(), dir)
	if bytes < 1<<20 || inodes < 17 {
		t.Errorf("%d bytes in %d files", bytes, inodes)
	}
}

// cgroupDir is a cgroup as the kernel shows it.
func cgroupDir(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestPodStats: a pod is its slice; what is not ready has no statistics, and traffic
// that cannot be counted hides nothing else.
func TestPodStats(t *testing.T) {
	t.Parallel()
	w := newLiveWorld(t)
	w.cfg.Cgroups = t.TempDir()
	p := w.pod()
	w.load()
	slice := filepath.Join(w.cfg.Cgroups, unit.CgroupOf(p.Slice))
	if err := os.MkdirAll(filepath.Dir(slice), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := w.PodStats(t.Context(), p.ID); err == nil {
		t.Error("a pod whose slice is gone has statistics")
	}
	if err := os.Rename(cgroupDir(t, map[string]string{"cpu.stat": "usage_usec 5000\n", "memory.current": "4096\n", "memory.stat": "anon 1\n", "pids.current": "0\n", "memory.max": "max\n"}), slice); err != nil {
		t.Fatal(err)
	}
	got, err := w.PodStats(t.Context(), p.ID)
	if err != nil || got.CPUNanos != 5_000_000 || got.MemoryUsage != 4096 || got.Cgroup != "/"+unit.CgroupOf(p.Slice) || len(got.Interfaces) != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	w.stop(unit.Pod(string(p.ID)))
	w.podMoved(t.Context(), p.ID)
	if _, err := w.PodStats(t.Context(), p.ID); !errors.Is(err, pod.ErrState) {
		t.Errorf("a pod that is down: %v", err)
	}
}

func TestCgroupMetrics(t *testing.T) {
	t.Parallel()
	files := map[string]string{
		"cpu.stat":            "usage_usec 5000\nuser_usec 3000\nsystem_usec 2000\nnr_periods 7\nnr_throttled 6\nthrottled_usec 9\n",
		"memory.stat":         "anon 100\nfile 200\nkernel 30\nfile_mapped 40\ninactive_file 50\npgfault 6\npgmajfault 2\n",
		"memory.current":      "400\n",
		"memory.max":          "1000\n",
		"memory.events":       "low 0\nhigh 1\nmax 12\noom 3\noom_kill 2\n",
		"memory.peak":         "900\n",
		"pids.current":        "4\n",
		"pids.max":            "max\n",
		"io.stat":             "7:0 \n999:1 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6 new=7\nodd\n",
		"hugetlb.2MB.current": "4194304\n", "hugetlb.2MB.rsvd.current": "1\n", "hugetlb.1GB.current": "0\n",
	}
	c := &cgroup{dir: cgroupDir(t, files)}
	m := c.metrics()
	if c.err != nil {
		t.Fatal(c.err)
	}
	if m.CPUNanos != 5e6 || m.CPUUserNanos != 3e6 || m.CPUSystemNanos != 2e6 || m.Periods != 7 || m.ThrottledPeriods != 6 || m.ThrottledNanos != 9000 {
		t.Errorf("cpu: %+v", m)
	}
	if m.MemoryCache != 200 || m.MemoryKernel != 30 || m.MemoryMapped != 40 || m.MemoryPeak != 900 || m.MemoryLimitHits != 12 || m.OOMKills != 2 || m.MemoryWorkingSet != 350 {
		t.Errorf("memory: %+v", m)
	}
	if m.Pids != 4 || m.PidsLimit != 0 || m.CPUPressure != nil {
		t.Errorf("pids: %+v", m)
	}
	disk := DeviceIO{Device: "999:1", Major: 999, Minor: 1, ReadBytes: 1, WrittenBytes: 2, Reads: 3, Writes: 4, DiscardedBytes: 5, Discarded: 6}
	if len(m.Devices) != 2 || m.Devices[1] != disk {
		t.Errorf("devices: %+v", m.Devices)
	}
	if want := []HugepageUsage{{"1GB", 0, 0}, {"2MB", 4 << 20, 0}}; !slices.Equal(m.Hugepages, want) {
		t.Errorf("huge pages: %+v", m.Hugepages)
	}
	delete(files, "memory.current")
	if _, err := (&cgroup{dir: cgroupDir(t, files)}).readStats(); !errors.Is(err, pod.ErrNotFound) {
		t.Errorf("a cgroup that is going: %v", err)
	}
}

// TestCrowd counts this test as the process of a cgroup and of one below it.
func TestCrowd(t *testing.T) {
	t.Parallel()
	sockets, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(sockets[0])
	defer unix.Close(sockets[1])
	self := strconv.Itoa(os.Getpid()) + "\n"
	dir := cgroupDir(t, map[string]string{"cgroup.procs": self})
	below := filepath.Join(dir, "exec-a")
	if err := os.Mkdir(below, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(below, "cgroup.procs"), []byte(self+"4294967295\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	all := &crowd{left: crowdLimit, open: true}
	all.count(t.Context(), dir)
	if all.processes != 3 || all.files < 4 || all.sockets < 4 || all.sockets > all.files {
		t.Errorf("counted %+v", all)
	}
	many := &crowd{left: 8, open: true}
	for range 500 {
		fd, err := unix.Dup(sockets[0])
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
	}
	many.count(t.Context(), dir)
	if many.left != 0 || many.files < 8 || many.sockets > 8 {
		t.Errorf("counted %+v of 500 sockets, of eight at most", many)
	}
	few := &crowd{left: 3, open: true}
	few.count(t.Context(), dir)
	if few.left > 0 || few.processes == 0 {
		t.Errorf("counted %+v, of three at most", few)
	}
}

func TestOpenFilesLimit(t *testing.T) {
	t.Parallel()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if got := openFilesLimit(os.Getpid()); got != limit.Cur {
		t.Errorf("%d, want %d", got, limit.Cur)
	}
	if got := parseOpenFilesLimit("Max open files            unlimited            unlimited            files\n"); got != 0 {
		t.Errorf("unlimited: %d", got)
	}
}

func TestFilesystemOf(t *testing.T) {
	t.Parallel()
	if f := filesystemOf(t.TempDir()); f.Device == "" || f.Bytes == 0 || f.FreeInodes > f.Inodes {
		t.Errorf("got %+v", f)
	}
	if f := filesystemOf("/nowhere"); f != (Filesystem{}) {
		t.Errorf("got %+v", f)
	}
}

func TestHugepagePeaks(t *testing.T) {
	t.Parallel()
	var p peaks
	read := func(bytes uint64) uint64 {
		now := []HugepageUsage{{"1GB", 1, 0}, {"2MB", bytes, 0}}
		p.raise("a", now)
		return now[1].Peak
	}
	for _, step := range []struct{ bytes, want uint64 }{{5, 5}, {3, 5}, {7, 7}, {0, 7}} {
		if got := read(step.bytes); got != step.want {
			t.Errorf("with %d in use the peak is %d, want %d", step.bytes, got, step.want)
		}
	}
	p.forget("a")
	if got := read(2); got != 2 || len(p.known) != 1 {
		t.Errorf("of a new app the peak is %d; %v is kept", got, p.known)
	}
	p.raise("b", nil)
	if len(p.known) != 1 {
		t.Errorf("an app without huge pages is kept: %v", p.known)
	}
}
