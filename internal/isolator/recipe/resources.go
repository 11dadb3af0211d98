package recipe

import (
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gantry/internal/isolator"
	"gantry/internal/pod"
	"gantry/internal/unit"
)

// Resources turns limits into properties of the app's unit, and into files of its
// cgroup where systemd has no property or would round. What is not set yields
// nothing, so the result also serves to change a running unit: properties first
// (setting them makes systemd write its own rounded values), then the files.
func Resources(r pod.Resources) ([]unit.Property, []isolator.CgroupFile, error) {
	l := limits{}
	for _, set := range []func(pod.Resources) error{l.cpu, l.memory, l.pids, l.cpusets, l.hugepages, l.unified} {
		if err := set(r); err != nil {
			return nil, nil, fmt.Errorf("resources: %w", err)
		}
	}
	return l.properties, l.files, nil
}

// limits collects; a later value of the same name replaces an earlier one.
type limits struct {
	properties []unit.Property
	files      []isolator.CgroupFile
}

func (l *limits) set(name string, v unit.Value) {
	for i, p := range l.properties {
		if p.Name == name {
			l.properties[i].Value = v
			return
		}
	}
	l.properties = append(l.properties, unit.Property{Name: name, Value: v})
}

func (l *limits) write(name, value string) {
	for i, f := range l.files {
		if f.Name == name {
			l.files[i].Value = value
			return
		}
	}
	l.files = append(l.files, isolator.CgroupFile{Name: name, Value: value})
}

func (l *limits) unwrite(name string) {
	l.files = slices.DeleteFunc(l.files, func(f isolator.CgroupFile) bool { return f.Name == name })
}

func (l *limits) cpu(r pod.Resources) error {
	if r.CPUShares < 0 {
		return Invalid("cpu shares %d", r.CPUShares)
	}
	if r.CPUShares > 0 {
		l.set("CPUWeight", unit.Uint64(weight(r.CPUShares)))
	}
	return l.quota(r.CPUQuota, r.CPUPeriod)
}

// weight converts cgroup v1 shares (2..262144, usually 1024) to a v2 weight
// (1..10000, usually 100). The quadratic through those three points is what runc
// and crun use since 2025: a straight line gave a container of 1024 shares a
// weight of 39 against the 100 of everything else on the machine.
func weight(shares int64) uint64 {
	switch {
	case shares <= 2:
		return 1
	case shares >= 262144:
		return 10000
	}
	l := math.Log2(float64(shares))
	return uint64(math.Ceil(math.Pow(10, (l*l+125*l)/612-7.0/34)))
}

// The kernel's bounds, in microseconds. maxQuota is ours: a million CPUs.
const (
	defaultPeriod = 100_000
	minPeriod     = 1_000
	maxPeriod     = 1_000_000
	minQuota      = 1_000
	maxQuota      = 1_000_000 * maxPeriod
	second        = 1_000_000
	percent       = second / 100
)

// quota sets the CPU bandwidth. Systemd keeps it in whole percents of a CPU, once
// it has written the unit to disk: it gets the next higher percent, and cpu.max
// the exact value. The file is written even if both are the same, for gantry-init
// works without the limit before it lets the app go.
func (l *limits) quota(quota, period int64) error {
	if period != 0 && (period < minPeriod || period > maxPeriod) {
		return Invalid("cpu period %d: want %d to %d µs", period, minPeriod, maxPeriod)
	}
	if quota > 0 && (quota < minQuota || quota > maxQuota) {
		return Invalid("cpu quota %d: want %d to %d µs", quota, minQuota, maxQuota)
	}
	if period != 0 {
		l.set("CPUQuotaPeriodUSec", unit.Uint64(period))
	}
	l.unwrite("cpu.max")
	switch {
	case quota == 0:
		return nil
	case quota < 0:
		l.set("CPUQuotaPerSecUSec", unit.Infinity)
		return nil
	case period == 0:
		period = defaultPeriod
	}
	perSecond := (quota*second + period - 1) / period
	rounded := (perSecond + percent - 1) / percent * percent
	l.set("CPUQuotaPerSecUSec", unit.Uint64(rounded))
	l.write("cpu.max", fmt.Sprintf("%d %d", quota, period))
	return nil
}

// memory sets memory and swap. MemorySwap is the sum of both, as in cgroup v1;
// cgroup v2 counts swap alone.
func (l *limits) memory(r pod.Resources) error {
	switch {
	case r.Memory < 0:
		l.set("MemoryMax", unit.Infinity)
	case r.Memory > 0:
		l.set("MemoryMax", unit.Uint64(r.Memory))
	}
	switch {
	case r.MemorySwap == 0:
	case r.MemorySwap < 0:
		l.set("MemorySwapMax", unit.Infinity)
	case r.Memory <= 0:
		return Invalid("memory and swap %d: needs a memory limit", r.MemorySwap)
	case r.MemorySwap < r.Memory:
		return Invalid("memory and swap %d: is less than the memory %d", r.MemorySwap, r.Memory)
	default:
		l.set("MemorySwapMax", unit.Uint64(r.MemorySwap-r.Memory))
	}
	return nil
}

func (l *limits) pids(r pod.Resources) error {
	switch {
	case r.Pids < 0:
		l.set("TasksMax", unit.Infinity)
	case r.Pids > 0:
		l.set("TasksMax", unit.Uint64(r.Pids))
	}
	return nil
}

func (l *limits) cpusets(r pod.Resources) error {
	if err := l.cpuset("AllowedCPUs", r.CPUSet); err != nil {
		return fmt.Errorf("cpuset: %w", err)
	}
	if err := l.cpuset("AllowedMemoryNodes", r.MemorySet); err != nil {
		return fmt.Errorf("memory nodes: %w", err)
	}
	return nil
}

func (l *limits) cpuset(property, list string) error {
	if list == "" {
		return nil
	}
	bits, err := parseSet(list)
	if err != nil {
		return err
	}
	l.set(property, unit.Bytes(bits))
	return nil
}

// maxCPU bounds what a list may name; the kernel has at most 8192.
const maxCPU = 8191

// parseSet turns 0-3,7 into a bit mask, lowest byte first.
func parseSet(list string) ([]byte, error) {
	var mask []byte
	for part := range strings.SplitSeq(list, ",") {
		from, to, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			to = from
		}
		first, err1 := strconv.ParseUint(from, 10, 16)
		last, err2 := strconv.ParseUint(to, 10, 16)
		if err1 != nil || err2 != nil || first > last || last > maxCPU {
			return nil, Invalid("%q in %q: want N or N-M up to %d", part, list, maxCPU)
		}
		for n := first; n <= last; n++ {
			for uint64(len(mask)) <= n/8 {
				mask = append(mask, 0)
			}
			mask[n/8] |= 1 << (n % 8)
		}
	}
	return mask, nil
}

var pageSize = regexp.MustCompile(`^[1-9][0-9]{0,9}[KMG]B$`)

func (l *limits) hugepages(r pod.Resources) error {
	for _, h := range r.Hugepages {
		if !pageSize.MatchString(h.PageSize) {
			return Invalid("hugepage size %q: want 2MB, 1GB and the like", h.PageSize)
		}
		l.write("hugetlb."+h.PageSize+".max", strconv.FormatUint(h.Limit, 10))
	}
	return nil
}

const (
	cpuIdle        = "cpu.idle"
	memoryOOMGroup = "memory.oom.group"
)

var cgroupFile = regexp.MustCompile(`^[a-z0-9_]+(\.[A-Za-z0-9_]+)+$`)

// unified takes cgroup v2 files by name; they win over the fields.
func (l *limits) unified(r pod.Resources) error {
	if _, both := r.Unified["cpu.weight"]; both && strings.TrimSpace(r.Unified[cpuIdle]) == "1" {
		return Invalid("unified: cpu.weight and cpu.idle=1 exclude each other")
	}
	for _, key := range slices.Sorted(maps.Keys(r.Unified)) {
		value := strings.TrimSpace(r.Unified[key])
		if err := l.unifiedKey(key, value); err != nil {
			return fmt.Errorf("unified %s=%q: %w", key, value, err)
		}
	}
	return nil
}

var unifiedBytes = map[string]string{
	"memory.min": "MemoryMin", "memory.low": "MemoryLow", "memory.high": "MemoryHigh", "memory.max": "MemoryMax",
	"memory.swap.max": "MemorySwapMax", "memory.zswap.max": "MemoryZSwapMax",
}

func (l *limits) unifiedKey(key, value string) error {
	if !cgroupFile.MatchString(key) {
		return Invalid("is no cgroup file")
	}
	if value == "" || len(value) > 4096 || strings.ContainsAny(value, "\x00\n") {
		return Invalid("value is not one line of text")
	}
	if name, ok := unifiedBytes[key]; ok {
		return l.number(name, value, 0)
	}
	switch key {
	case "cpu.weight":
		return l.number("CPUWeight", value, 1)
	case "pids.max":
		return l.number("TasksMax", value, 1)
	case "cpu.max":
		return l.cpuMax(value)
	case cpuIdle, memoryOOMGroup:
		if value != "0" && value != "1" {
			return Invalid("want 0 or 1")
		}
		if key == cpuIdle && value == "1" {
			l.set("CPUWeight", unit.Uint64(0)) // systemd's word for idle
			return nil
		}
		l.write(key, value)
	case "cpuset.cpus":
		return l.cpuset("AllowedCPUs", value)
	case "cpuset.mems":
		return l.cpuset("AllowedMemoryNodes", value)
	default:
		// The core files move, freeze and kill processes: they are no limits.
		if strings.HasPrefix(key, "cgroup.") && !strings.HasPrefix(key, "cgroup.max.") {
			return Invalid("is no limit")
		}
		l.write(key, value)
	}
	return nil
}

func (l *limits) number(property, value string, least uint64) error {
	if value == "max" && property != "CPUWeight" {
		l.set(property, unit.Infinity)
		return nil
	}
	n, err := strconv.ParseUint(value, 10, 63)
	if err != nil || n < least || property == "CPUWeight" && n > 10000 {
		return Invalid("want a number in range")
	}
	l.set(property, unit.Uint64(n))
	return nil
}

func (l *limits) cpuMax(value string) error {
	fields := strings.Fields(value)
	quota, period := int64(-1), int64(defaultPeriod)
	var err1, err2 error
	if fields[0] != "max" {
		quota, err1 = strconv.ParseInt(fields[0], 10, 63)
	}
	if len(fields) > 1 {
		period, err2 = strconv.ParseInt(fields[1], 10, 63)
	}
	if err1 != nil || err2 != nil || len(fields) > 2 || quota == 0 || quota < -1 || period <= 0 {
		return Invalid("want QUOTA PERIOD, or max")
	}
	return l.quota(quota, period)
}
