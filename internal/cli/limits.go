package cli

import (
	"strings"

	"github.com/spf13/pflag"

	"gantry/internal/manifest"
	"gantry/internal/pod"
)

// limitFlags are the limits of an app, when it is made and while it runs.
type limitFlags struct {
	memory, cpus string
	pids         int64
}

func (l *limitFlags) add(f *pflag.FlagSet) {
	f.StringVarP(&l.memory, "memory", "m", "", "limit the memory to `SIZE`, such as 64Mi or 1.5Gi")
	f.StringVar(&l.cpus, "cpus", "", "limit the CPU time to `N` processors, such as 0.5")
	f.Int64Var(&l.pids, "pids-limit", 0, "limit the number of processes and threads to `N`")
}

func (l *limitFlags) resources() (pod.Resources, error) {
	var r pod.Resources
	if l.memory != "" {
		q, err := manifest.ParseQuantity(strings.TrimSuffix(l.memory, "b"))
		if err != nil || q.Value() <= 0 || !q.Whole() { // 64m is not 64M
			return r, usagef("--memory %q: want a size such as 64Mi or 1.5Gi", l.memory)
		}
		// As under a kubelet: no swap beyond the limit.
		r.Memory, r.MemorySwap = q.Value(), q.Value()
	}
	if l.cpus != "" {
		q, err := manifest.ParseQuantity(l.cpus)
		if err != nil || q.MilliValue() <= 0 {
			return r, usagef("--cpus %q: want a number such as 0.5 or 2", l.cpus)
		}
		setCPU(&r, q.MilliValue(), 0)
	}
	if l.pids < 0 {
		return r, usagef("--pids-limit %d: want more than 0", l.pids)
	}
	r.Pids = l.pids
	return r, nil
}

// setCPU sets a limit and a weight from thousandths of a CPU; 0 leaves one out.
func setCPU(r *pod.Resources, limit, request int64) {
	if limit > 0 {
		// The kernel takes no quota below a millisecond.
		r.CPUPeriod, r.CPUQuota = cpuPeriod, max(limit*cpuPeriod/1000, 1000)
	}
	if request > 0 {
		r.CPUShares = min(max(request*1024/1000, 2), 262144)
	}
}
