package engine

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"gantry/internal/pod"
)

// checkHardware refuses resources that this machine does not have. Systemd and the
// kernel would leave them out, and the app would run without its limit.
func (e *Engine) checkHardware(r pod.Resources) error {
	for _, c := range []struct{ what, list, possible string }{
		{"CPU", r.CPUSet, "devices/system/cpu/possible"},
		{"memory node", r.MemorySet, "devices/system/node/possible"},
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
	return nil
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
