package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// process is one of the machine's, kernel threads left out.
type process struct {
	pid     int
	name    string // as the kernel has it: 15 characters at most
	cmdline string
}

func (p process) payload() bool { return p.cmdline == payload }

// processes lists them. One that ends meanwhile is not there.
func processes() ([]process, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var out []process
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		name, err := os.ReadFile(dir + "/comm")
		if err != nil {
			continue
		}
		args, err := os.ReadFile(dir + "/cmdline")
		if err != nil || len(args) == 0 {
			continue // it ended, or is a thread of the kernel
		}
		out = append(out, process{pid, strings.TrimSpace(string(name)), strings.TrimSpace(string(bytes.ReplaceAll(args, []byte{0}, []byte{' '})))})
	}
	return out, nil
}

// payloads counts the processes of idle pods.
func payloads() (int, error) {
	all, err := processes()
	n := 0
	for _, p := range all {
		if p.payload() {
			n++
		}
	}
	return n, err
}

// memory is the proportional set size of all processes but the payload and this
// program, in KB by name.
type memory map[string]float64

func (m memory) total() float64 {
	sum := 0.0
	for _, kb := range m {
		sum += kb
	}
	return sum
}

func measureMemory() (memory, error) {
	all, err := processes()
	if err != nil {
		return nil, err
	}
	m := memory{}
	for _, p := range all {
		if p.payload() || p.pid == os.Getpid() {
			continue
		}
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", p.pid))
		if err != nil {
			if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
				continue
			}
			return nil, err
		}
		m[p.name] += pss(data)
	}
	return m, nil
}

func pss(rollup []byte) float64 {
	for lines := bufio.NewScanner(bytes.NewReader(rollup)); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) >= 2 && fields[0] == "Pss:" {
			kb, _ := strconv.ParseFloat(fields[1], 64)
			return kb
		}
	}
	return 0
}

// grown tells whose memory changed, the largest change first.
func grown(before, after memory) string {
	names := map[string]bool{}
	for _, m := range []memory{before, after} {
		for name := range m {
			names[name] = true
		}
	}
	change := func(name string) float64 { return max(after[name]-before[name], before[name]-after[name]) }
	var parts []string
	for _, name := range slices.SortedFunc(maps.Keys(names), func(a, b string) int { return int(change(b) - change(a)) }) {
		if change(name) >= 10 {
			parts = append(parts, fmt.Sprintf("%s %.0f %.0f", name, before[name], after[name]))
		}
	}
	return strings.Join(parts, ", ")
}

const cgroupRoot = "/sys/fs/cgroup"

// cgroups are those that the engine's processes are in, and PID 1's and the bus's.
func (e *engine) cgroups() ([]string, error) {
	all, err := processes()
	if err != nil {
		return nil, err
	}
	groups := map[string]bool{"/init.scope": true, "/system.slice/dbus.service": true}
	found := false
	for _, p := range all {
		if !e.mine(p) {
			continue
		}
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.pid))
		if err != nil {
			continue // it ended
		}
		found = true
		groups[strings.TrimPrefix(strings.TrimSpace(string(data)), "0::")] = true
	}
	if !found {
		return nil, fmt.Errorf("no process of %s runs", e.name)
	}
	return slices.Sorted(maps.Keys(groups)), nil
}

// cpuTime is what the groups have used so far.
func cpuTime(groups []string) (time.Duration, error) {
	var sum time.Duration
	for _, g := range groups {
		data, err := os.ReadFile(filepath.Join(cgroupRoot, g, "cpu.stat"))
		if err != nil {
			return 0, err
		}
		first, _, _ := strings.Cut(string(data), "\n")
		usec, err := strconv.ParseInt(strings.TrimPrefix(first, "usage_usec "), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read CPU time of %s: %w", g, err)
		}
		sum += time.Duration(usec) * time.Microsecond
	}
	return sum, nil
}

// settle waits until the machine has nothing to do, so that nobody pays for what
// went before. It gives up after a while: a busy machine is measured as it is.
func settle(ctx context.Context) error {
	const calm, limit = 0.9, 20 * time.Second
	unix.Sync()
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); {
		before, err := idleShare()
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(400 * time.Millisecond):
		}
		after, err := idleShare()
		if err != nil {
			return err
		}
		if all := after.all - before.all; all > 0 && (after.idle-before.idle)/all >= calm {
			return nil
		}
	}
	return nil
}

type ticks struct{ idle, all float64 }

func idleShare() (ticks, error) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return ticks{}, err
	}
	first, _, _ := strings.Cut(string(data), "\n")
	var t ticks
	for i, field := range strings.Fields(first)[1:] {
		n, err := strconv.ParseFloat(field, 64)
		if err != nil {
			return ticks{}, fmt.Errorf("read /proc/stat: %w", err)
		}
		t.all += n
		if i == 3 || i == 4 { // idle, iowait
			t.idle += n
		}
	}
	return t, nil
}

// command runs a program and gives what it said if it fails.
func command(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}
