package engine

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"gantry/internal/pod"
)

func TestCheckHardware(t *testing.T) {
	t.Parallel()
	sys, groups := t.TempDir(), t.TempDir()
	for _, step := range []error{
		os.MkdirAll(filepath.Join(sys, "devices/system/cpu"), 0o700),
		os.WriteFile(filepath.Join(sys, "devices/system/cpu/possible"), []byte("0-3\n"), 0o600),
		os.MkdirAll(filepath.Join(sys, "kernel/mm/hugepages/hugepages-2048kB"), 0o700),
		os.WriteFile(filepath.Join(groups, "cgroup.controllers"), []byte("cpuset cpu memory hugetlb\n"), 0o600),
		os.Mkdir(filepath.Join(groups, "system.slice"), 0o700),
		os.WriteFile(filepath.Join(groups, "system.slice", "memory.high"), nil, 0o600),
	} {
		if step != nil {
			t.Fatal(step)
		}
	}
	e := &Engine{cfg: Config{Sys: sys, Cgroups: groups}}
	unified := func(key, value string) pod.Resources {
		return pod.Resources{Unified: map[string]string{key: value}}
	}
	pages := func(size string) pod.Resources {
		return pod.Resources{Hugepages: []pod.HugepageLimit{{PageSize: size, Limit: 1}}}
	}
	for name, c := range map[string]struct {
		r  pod.Resources
		ok bool
	}{
		"nothing":            {pod.Resources{}, true},
		"a CPU":              {pod.Resources{CPUSet: "1,3"}, true},
		"a CPU too many":     {pod.Resources{CPUSet: "0-4"}, false},
		"a node, untold":     {pod.Resources{MemorySet: "9"}, true},
		"pages of 2 MB":      {pages("2MB"), true},
		"pages of 1 GB":      {pages("1GB"), false},
		"pages of odd bytes": {pages("3MB"), false},
		"unified CPUs":       {unified("cpuset.cpus", "0-3"), true},
		"unified, too many":  {unified("cpuset.cpus", "0-4"), false},
		"a file":             {unified("memory.high", "1"), true},
		"no such file":       {unified("memory.hihg", "1"), false},
		"no such controller": {unified("rdma.max", "1"), false},
		"a file of the core": {unified("cgroup.max.depth", "1"), true},
		"one not seen yet":   {unified("hugetlb.2MB.max", "1"), true},
	} {
		if err := e.checkHardware(c.r); (err == nil) != c.ok || err != nil && !errors.Is(err, pod.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
