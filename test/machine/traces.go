package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Traces is what pods leave on a machine, by kind. Each kind is a set.
type Traces map[string][]string

// Guard fails the test if the machine has traces after it that it had not
// before. Whatever a test needs to be undone must be registered after Guard:
// clean-ups run last to first.
func Guard(t *testing.T) {
	t.Helper()
	guardSince(t, Before())
}

// Before is what Guard would compare with, for a test whose other half runs after
// the machine was down.
func Before() Traces {
	warmUp()
	return Observe()
}

// GuardSince is Guard with a look that was taken earlier.
func GuardSince(t *testing.T, before Traces) {
	t.Helper()
	warmUp()
	guardSince(t, before)
}

func guardSince(t *testing.T, before Traces) {
	t.Helper()
	t.Cleanup(func() {
		if t.Skipped() {
			return
		}
		Left(t, before)
	})
}

// Left fails the test if the machine has traces that it had not before, but for
// those of the kinds that are not to be looked at.
func Left(t *testing.T, before Traces, but ...string) {
	t.Helper()
	left := Settle(before, 5*time.Second, but...)
	for _, kind := range left.kinds() {
		for _, item := range left[kind] {
			t.Errorf("left behind: %s: %s", kind, item)
		}
	}
}

// warmUp starts what systemd starts on demand, so that the descriptors it has for
// itself are not taken for those of the first pod.
func warmUp() {
	// Where Gantry is not installed there is no such unit, and nothing to compare.
	_ = exec.Command("systemctl", "start", "gantry-stdio.service").Run()
}

// Settle waits for the machine to be as before, but for the kinds that are not to
// be looked at, and returns what is left when it is not in time: units that nobody
// needs any more end on their own, a moment later.
func Settle(before Traces, limit time.Duration, but ...string) Traces {
	deadline := time.Now().Add(Patience(limit))
	for {
		left := Observe().Since(before)
		for _, kind := range but {
			delete(left, kind)
		}
		if len(left) == 0 || time.Now().After(deadline) {
			return left
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (x Traces) kinds() []string {
	var kinds []string
	for kind := range x {
		kinds = append(kinds, kind)
	}
	slices.Sort(kinds)
	return kinds
}

// Since returns what x has and before had not.
func (x Traces) Since(before Traces) Traces {
	left := Traces{}
	for kind, items := range x {
		known := map[string]int{}
		for _, item := range before[kind] {
			known[item]++
		}
		for _, item := range items {
			if known[item] > 0 {
				known[item]--
				continue
			}
			left[kind] = append(left[kind], item)
		}
	}
	return left
}

// Observe looks at the machine. What cannot be read is a trace of its own, so
// that a blind observer is not a content one.
func Observe() Traces {
	x := Traces{}
	for kind, look := range map[string]func() ([]string, error){
		"mount":          mounts,
		"netns":          namedNamespaces,
		"unit":           units,
		"cgroup":         cgroups,
		"CNI lease":      leases,
		"network link":   links,
		"firewall chain": chains,
		"process":        processes,
		"directory":      directories,
		"descriptor":     descriptors,
	} {
		items, err := look()
		if err != nil {
			items = append(items, "cannot be observed: "+err.Error())
		}
		if len(items) > 0 {
			x[kind] = items
		}
	}
	return x
}

// mounts lists all in the host's namespace that have to do with pods: ours by
// their place, overlays and pinned namespaces wherever they are.
func mounts() ([]string, error) {
	text, err := os.ReadFile("/proc/1/mountinfo")
	if err != nil {
		return nil, err
	}
	var found []string
	for line := range strings.Lines(string(text)) {
		left, right, _ := strings.Cut(strings.TrimSpace(line), " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if len(l) < 5 || len(r) < 2 {
			return nil, fmt.Errorf("mountinfo line %q: too short", line)
		}
		point, kind := l[4], r[0]
		if strings.HasPrefix(point, "/var/lib/gantry") || strings.HasPrefix(point, "/run/gantry") || kind == "nsfs" || kind == "erofs" || strings.Contains(right, "/var/lib/gantry") {
			found = append(found, point+" ("+kind+")")
		}
	}
	return found, nil
}

func namedNamespaces() ([]string, error) {
	entries, err := os.ReadDir("/run/netns")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var found []string
	for _, entry := range entries {
		found = append(found, "/run/netns/"+entry.Name())
	}
	return found, err
}

// resident matches the units that belong to an installed Gantry and not to a
// pod: they come and go with what is asked of it.
var resident = regexp.MustCompile(`^gantry(-(cri|api|stdio|gc)(@.*)?)?\.(service|socket|timer|slice|path|target)$`)

func units() ([]string, error) {
	out, err := exec.Command("systemctl", "list-units", "--all", "--plain", "--no-legend", "--full", "gantry*", "var-lib-gantry*", "run-gantry*").Output()
	if err != nil {
		return nil, err
	}
	var found []string
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		if len(fields) < 4 || resident.MatchString(fields[0]) {
			continue
		}
		found = append(found, fmt.Sprintf("%s (%s, %s)", fields[0], fields[2], fields[3]))
	}
	return found, nil
}

// cgroups lists the groups of pods, at whatever place kubelet or a test has
// them made.
func cgroups() ([]string, error) {
	const root = "/sys/fs/cgroup"
	var found []string
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !entry.IsDir() {
			return err
		}
		if resident.MatchString(entry.Name()) {
			return nil
		}
		exec := strings.HasPrefix(entry.Name(), "exec-") && strings.Contains(path, "/gantry-") // of the server's, too
		if exec || strings.HasPrefix(entry.Name(), "gantry") || strings.HasPrefix(path, root+"/gantry.slice/") {
			found = append(found, strings.TrimPrefix(path, root))
		}
		return nil
	})
	return found, err
}

func leases() ([]string, error) {
	return walk("/var/lib/cni", func(path string, entry fs.DirEntry) bool {
		return !entry.IsDir() && entry.Name() != "lock" && !strings.HasPrefix(entry.Name(), "last_reserved_ip.")
	})
}

// links lists network interfaces but the bridge, which the plugin never
// removes.
func links() ([]string, error) {
	entries, err := os.ReadDir("/sys/class/net")
	var found []string
	for _, entry := range entries {
		if entry.Name() != "cni0" {
			found = append(found, entry.Name())
		}
	}
	return found, err
}

// chains lists the firewall chains that CNI plugins make for one pod.
func chains() ([]string, error) {
	one := regexp.MustCompile(`^:(CNI-[0-9a-f]{20,}|CNI-DN-[0-9a-f]{10,}) `)
	var found []string
	for _, program := range []string{"iptables-save", "ip6tables-save"} {
		out, err := exec.Command(program, "-t", "nat").Output()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", program, err)
		}
		for line := range strings.Lines(string(out)) {
			if m := one.FindStringSubmatch(line); m != nil {
				found = append(found, program+" "+m[1])
			}
		}
	}
	return found, nil
}

// processes lists Gantry's and its runtimes' own, but for the services.
func processes() ([]string, error) {
	var found []string
	err := eachProcess(func(pid int, comm string) {
		if !strings.HasPrefix(comm, "gantry") && comm != "crun" && comm != "mkfs.erofs" {
			return
		}
		if resident.MatchString(serviceOf(pid)) {
			return
		}
		cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil || len(cmdline) == 0 {
			return // it has ended
		}
		found = append(found, fmt.Sprintf("%d %s", pid, strings.TrimSpace(strings.ReplaceAll(string(cmdline), "\x00", " "))))
	})
	return found, err
}

func eachProcess(visit func(pid int, comm string)) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if err != nil {
			continue // it has ended
		}
		visit(pid, strings.TrimSpace(string(comm)))
	}
	return nil
}

// serviceOf is the name of the unit whose cgroup a process is in.
func serviceOf(pid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return ""
	}
	return filepath.Base(strings.TrimSpace(string(text)))
}

// directories lists pods, half-made things and things on their way out.
func directories() ([]string, error) {
	var found []string
	for _, dir := range []string{"/var/lib/gantry/prepare", "/var/lib/gantry/garbage", "/var/lib/gantry/pods", "/run/gantry/pods", "/run/gantry/crun", "/run/gantry/stdio"} {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return found, err
		}
		for _, entry := range entries {
			if path := filepath.Join(dir, entry.Name()); !firstUse[path] {
				found = append(found, path)
			}
		}
	}
	return found, nil
}

// firstUse is what the first pod of a boot makes for all that follow.
var firstUse = map[string]bool{"/run/gantry/crun/.cache": true, "/run/gantry/stdio/records": true}

// descriptors lists what the services hold open that pods could have brought:
// pipes, terminals, namespaces and deleted files, in the service itself or kept
// for it by systemd. Sockets and event queues come and go with clients.
func descriptors() ([]string, error) {
	var found []string
	err := eachProcess(func(pid int, comm string) {
		service := serviceOf(pid)
		if !resident.MatchString(service) {
			return
		}
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		entries, err := os.ReadDir(dir)
		if err != nil {
			return // it has ended
		}
		for _, entry := range entries {
			target, err := os.Readlink(filepath.Join(dir, entry.Name()))
			if err != nil {
				continue // it was closed
			}
			if kind := podDescriptor(target); kind != "" {
				found = append(found, fmt.Sprintf("%s holds %s", service, kind))
			}
		}
	})
	if err != nil {
		return nil, err
	}
	for _, service := range []string{"gantry-stdio.service", "gantry-cri.service"} {
		out, err := exec.Command("systemctl", "show", "--value", "-p", "NFileDescriptorStore", service).Output()
		if err != nil {
			return found, err
		}
		n, err := strconv.Atoi(strings.TrimSpace(string(out)))
		if err != nil {
			continue // the unit is not installed
		}
		for range n {
			found = append(found, "systemd keeps one for "+service)
		}
	}
	return found, nil
}

// podDescriptor says what kind of a pod's thing a descriptor is of, if any.
// Names have no numbers in them: that there are more is the leak.
func podDescriptor(target string) string {
	switch {
	case strings.HasPrefix(target, "pipe:"):
		return "a pipe"
	case strings.HasPrefix(target, "/dev/ptmx"), strings.HasPrefix(target, "/dev/pts/"):
		return "a terminal"
	case strings.HasPrefix(target, "net:["), strings.HasPrefix(target, "mnt:["), strings.HasPrefix(target, "pid:["), strings.HasPrefix(target, "user:["):
		return "a namespace"
	case strings.Contains(target, "[pidfd]"):
		return "a pidfd"
	case strings.HasSuffix(target, " (deleted)") && !strings.HasPrefix(target, "/memfd:"):
		return "a deleted file"
	case strings.HasPrefix(target, "/var/lib/gantry/pods/"), strings.HasPrefix(target, "/run/gantry/pods/"):
		return "a pod's directory or file"
	}
	return ""
}

func walk(root string, want func(string, fs.DirEntry) bool) ([]string, error) {
	var found []string
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if want(path, entry) {
			found = append(found, path)
		}
		return nil
	})
	return found, err
}
