package engine

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"gantry/internal/pod"
)

// checkHardware refuses resources that this machine does not have. Systemd and the
// kernel would leave them out, and the app would run without its limit.
func (e *Engine) checkHardware(r pod.Resources) error {
	for _, c := range []struct{ what, list, possible string }{
		{"CPU", r.CPUSet, "devices/system/cpu/possible"},
		{"CPU", r.Unified["cpuset.cpus"], "devices/system/cpu/possible"},
		{"memory node", r.MemorySet, "devices/system/node/possible"},
		{"memory node", r.Unified["cpuset.mems"], "devices/system/node/possible"},
	} {
		data, err := os.ReadFile(filepath.Join(e.cfg.Sys, c.possible))
		if err != nil || c.list == "" {
			continue // a kernel without NUMA does not tell
		}
		if most, want := highest(string(data)), highest(c.list); want > most {
			return fmt.Errorf("%s %d: this machine has none above %d: %w", c.what, want, most, pod.ErrInvalid)
		}
	}
	for _, h := range r.Hugepages {
		if size, ok := kilobytes(h.PageSize); ok {
			dir := filepath.Join(e.cfg.Sys, fmt.Sprintf("kernel/mm/hugepages/hugepages-%dkB", size))
			if _, err := os.Stat(dir); err != nil {
				return fmt.Errorf("huge pages of %s: this machine has none: %w", h.PageSize, pod.ErrInvalid)
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(r.Unified)) {
		if !e.hasCgroupFile(key) {
			return fmt.Errorf("unified %s: this machine's kernel has no such file of a cgroup: %w", key, pod.ErrInvalid)
		}
	}
	return nil
}

// hasCgroupFile tells whether the kernel has a file of a controller. It need not be where
// one could look yet: a controller is switched on for the cgroups that use it. What cannot
// be known may be.
func (e *Engine) hasCgroupFile(name string) bool {
	controller, _, _ := strings.Cut(name, ".")
	known, err := os.ReadFile(filepath.Join(e.cfg.Cgroups, "cgroup.controllers"))
	if err != nil || controller == "cgroup" {
		return true
	}
	if !slices.Contains(strings.Fields(string(known)), controller) {
		return false
	}
	files, err := filepath.Glob(filepath.Join(e.cfg.Cgroups, "*.slice", controller+".*"))
	return err != nil || len(files) == 0 || slices.ContainsFunc(files, func(f string) bool { return filepath.Base(f) == name })
}

// highest is the highest number of a list such as 0-3,7.
func highest(list string) (most int) {
	for _, field := range strings.FieldsFunc(list, func(r rune) bool { return r < '0' || r > '9' }) {
		if n, err := strconv.Atoi(field); err == nil {
			most = max(most, n)
		}
	}
	return most
}

// kilobytes reads a page size as the kernel writes it: 64KB, 2MB, 1GB.
func kilobytes(size string) (int64, bool) {
	for unit, factor := range map[string]int64{"KB": 1, "MB": 1 << 10, "GB": 1 << 20} {
		if digits, ok := strings.CutSuffix(size, unit); ok {
			n, err := strconv.ParseInt(digits, 10, 32)
			return n * factor, err == nil
		}
	}
	return 0, false
}
