package kvm

import (
	"fmt"
	"strconv"
	"strings"

	"gantry/internal/initproc"
	"gantry/internal/isolator/recipe"
	"gantry/internal/pod"
	"gantry/internal/unit"
)

// files are the files of a cgroup that systemd's properties stand for. Processors and
// nodes of memory are the host's: those of the machine are others.
var files = map[string]string{
	"CPUWeight": "cpu.weight", "MemoryMax": "memory.max", "MemorySwapMax": "memory.swap.max", "MemoryHigh": "memory.high",
	"MemoryLow": "memory.low", "MemoryMin": "memory.min", "TasksMax": "pids.max",
	"AllowedCPUs": "", "AllowedMemoryNodes": "", "CPUQuotaPeriodUSec": "", "CPUQuotaPerSecUSec": "",
}

// limits are those of an app, in the machine. What there is no file for is refused.
func limits(r pod.Resources) ([]initproc.CgroupFile, error) {
	properties, exact, err := recipe.Resources(r)
	if err != nil {
		return nil, err
	}
	// A process that is killed for memory takes the others of its app along.
	out := []initproc.CgroupFile{{Name: "memory.oom.group", Value: "1"}}
	set := func(name, value string) {
		for i, f := range out {
			if f.Name == name {
				out[i].Value = value
				return
			}
		}
		out = append(out, initproc.CgroupFile{Name: name, Value: value})
	}
	for _, p := range properties {
		name, known := files[p.Name]
		if !known {
			return nil, fmt.Errorf("resources: %s: %w by this isolator", p.Name, pod.ErrUnsupported)
		}
		if name == "" {
			continue
		}
		n, ok := p.Value.(unit.Uint64)
		if !ok {
			return nil, fmt.Errorf("resources: %s: %w by this isolator", p.Name, pod.ErrUnsupported)
		}
		value := strconv.FormatUint(uint64(n), 10)
		if n == unit.Infinity {
			value = "max"
		}
		set(name, value)
	}
	for _, f := range exact {
		if strings.HasPrefix(f.Name, "hugetlb.") {
			if f.Value == "0" { // a kubelet says so of every app that wants none; there are none
				continue
			}
			return nil, fmt.Errorf("resources: huge pages: %w by this isolator", pod.ErrUnsupported)
		}
		set(f.Name, f.Value)
	}
	return out, nil
}
