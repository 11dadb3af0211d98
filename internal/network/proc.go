package network

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/pod"
)

// KillStale ends the plugins that run for a pod longer than any operation may
// take: their caller was killed, they hang, and they hold its lock. Call it while
// waiting for that lock. Plugins that are within their time are left alone.
func (n *Network) KillStale(ctx context.Context, id pod.ID) error {
	if id == "" {
		return fmt.Errorf("network: kill stale plugins: no pod: %w", pod.ErrInvalid)
	}
	prefix := callEnv + "=" + string(id) + "."
	killed := killMarked(func(env []string, age time.Duration) bool {
		if age < n.cfg.Timeout {
			return false
		}
		for _, kv := range env {
			if strings.HasPrefix(kv, prefix) {
				return true
			}
		}
		return false
	})
	if killed > 0 {
		n.log.Warn("killed plugins that outlived their caller and their time", "pod", id, "processes", killed)
	}
	return ctx.Err()
}

// killMarked kills every process that match picks by its environment and age, and
// looks again until it finds none: what is being killed may still fork.
func killMarked(match func(env []string, age time.Duration) bool) int {
	total := 0
	for range 20 {
		killed := 0
		dirs, err := filepath.Glob("/proc/[0-9]*")
		if err != nil {
			return total
		}
		for _, d := range dirs {
			pid, err := strconv.Atoi(filepath.Base(d))
			if err == nil && pid != os.Getpid() && killIf(pid, match) {
				killed++
			}
		}
		if killed == 0 {
			return total
		}
		total += killed
	}
	return total
}

// killIf kills one process. The pidfd comes first, so that what is judged is what
// is killed.
func killIf(pid int, match func(env []string, age time.Duration) bool) bool {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil || len(env) == 0 { // a kernel thread, or dead already
		return false
	}
	if !match(strings.Split(string(env), "\x00"), processAge(pid)) {
		return false
	}
	return unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) == nil
}

// clockTicks is USER_HZ, which is 100 on every architecture that Go runs on.
const clockTicks = 100

// processAge is 0 if it cannot be told.
func processAge(pid int) time.Duration {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The name, in parentheses, may hold anything; the start time is field 22.
	i := bytes.LastIndexByte(data, ')')
	if i < 0 {
		return 0
	}
	fields := strings.Fields(string(data[i+1:]))
	if len(fields) < 20 {
		return 0
	}
	ticks, err := strconv.ParseInt(fields[19], 10, 64)
	if err != nil {
		return 0
	}
	var now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) != nil {
		return 0
	}
	return time.Duration(now.Nano()) - time.Duration(ticks)*time.Second/clockTicks
}
