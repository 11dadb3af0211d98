package cri

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/pod"
)

var (
	cpuList  = regexp.MustCompile(`^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$`)
	pageSize = regexp.MustCompile(`^[0-9]+(KB|MB|GB)$`)
	// A file of a cgroup v2 controller: cpu.weight, hugetlb.2MB.max.
	unifiedKey = regexp.MustCompile(`^[a-z0-9_]+(\.[A-Za-z0-9_]+)+$`)
)

// leastQuota is what the kernel takes, in microseconds.
const leastQuota = 1000

// Resources checks limits and takes them over; nil gives none.
func Resources(field string, r *runtimeapi.LinuxContainerResources) (pod.Resources, error) {
	if r == nil {
		return pod.Resources{}, nil
	}
	for _, err := range []error{
		within(field+".cpu_period", r.CpuPeriod, 1000, 1_000_000),
		within(field+".cpu_quota", r.CpuQuota, leastQuota, 1<<62),
		within(field+".cpu_shares", r.CpuShares, 1, 1<<62),
		within(field+".memory_limit_in_bytes", r.MemoryLimitInBytes, 1, 1<<62),
		within(field+".memory_swap_limit_in_bytes", r.MemorySwapLimitInBytes, 1, 1<<62),
		matches(field+".cpuset_cpus", r.CpusetCpus, cpuList, "a list such as 0-3,7"),
		matches(field+".cpuset_mems", r.CpusetMems, cpuList, "a list such as 0-1"),
	} {
		if err != nil {
			return pod.Resources{}, err
		}
	}
	if r.OomScoreAdj < -1000 || r.OomScoreAdj > 1000 {
		return pod.Resources{}, invalid(field+".oom_score_adj", "%d is not in -1000..1000", r.OomScoreAdj)
	}
	if r.MemorySwapLimitInBytes > 0 && r.MemorySwapLimitInBytes < r.MemoryLimitInBytes {
		return pod.Resources{}, invalid(field+".memory_swap_limit_in_bytes", "%d is less than the memory limit %d, which it includes",
			r.MemorySwapLimitInBytes, r.MemoryLimitInBytes)
	}
	out := pod.Resources{
		CPUPeriod:   r.CpuPeriod,
		CPUQuota:    r.CpuQuota,
		CPUShares:   r.CpuShares,
		CPUSet:      r.CpusetCpus,
		MemorySet:   r.CpusetMems,
		Memory:      r.MemoryLimitInBytes,
		MemorySwap:  r.MemorySwapLimitInBytes,
		OOMScoreAdj: int(r.OomScoreAdj),
	}
	for i, h := range r.HugepageLimits {
		if err := matches(fmt.Sprintf("%s.hugepage_limits[%d].page_size", field, i), h.GetPageSize(), pageSize, "a size such as 2MB"); err != nil || h.GetPageSize() == "" {
			return pod.Resources{}, invalid(fmt.Sprintf("%s.hugepage_limits[%d].page_size", field, i), "%q is not a size such as 2MB", h.GetPageSize())
		}
		out.Hugepages = append(out.Hugepages, pod.HugepageLimit{PageSize: h.PageSize, Limit: h.Limit})
	}
	for _, k := range slices.Sorted(maps.Keys(r.Unified)) {
		if !unifiedKey.MatchString(k) || strings.HasPrefix(k, "cgroup.") {
			return pod.Resources{}, invalid(field+".unified", "%q is not the file of a cgroup controller", k)
		}
	}
	if len(r.Unified) > 0 {
		out.Unified = maps.Clone(r.Unified)
	}
	return out, nil
}

// oomGroup is the cgroup file that has all of a container's processes killed for memory
// together.
const oomGroup = "memory.oom.group"

// ContainerResources takes the limits of a container that is to be made. A kubelet that
// wants its processes killed one by one (singleProcessOOMKill) says nothing of that.
func ContainerResources(field string, r *runtimeapi.LinuxContainerResources) (pod.Resources, error) {
	out, err := Resources(field, r)
	if _, said := out.Unified[oomGroup]; err == nil && !said {
		if out.Unified == nil {
			out.Unified = map[string]string{}
		}
		out.Unified[oomGroup] = "0"
	}
	return out, err
}

// within takes 0 for "not set" and -1 for "no limit".
func within(field string, v, low, high int64) error {
	if v != 0 && v != -1 && (v < low || v > high) {
		return invalid(field, "%d is not in %d..%d", v, low, high)
	}
	return nil
}

func matches(field, v string, re *regexp.Regexp, want string) error {
	if v != "" && !re.MatchString(v) {
		return invalid(field, "%q is not %s", v, want)
	}
	return nil
}

// FromResources tells limits in the CRI's words.
func FromResources(r pod.Resources) *runtimeapi.LinuxContainerResources {
	out := &runtimeapi.LinuxContainerResources{
		CpuPeriod:              r.CPUPeriod,
		CpuQuota:               r.CPUQuota,
		CpuShares:              r.CPUShares,
		CpusetCpus:             r.CPUSet,
		CpusetMems:             r.MemorySet,
		MemoryLimitInBytes:     r.Memory,
		MemorySwapLimitInBytes: r.MemorySwap,
		OomScoreAdj:            int64(r.OOMScoreAdj),
		Unified:                maps.Clone(r.Unified),
	}
	for _, h := range r.Hugepages {
		out.HugepageLimits = append(out.HugepageLimits, &runtimeapi.HugepageLimit{PageSize: h.PageSize, Limit: h.Limit})
	}
	return out
}
