package recipe

import (
	"errors"
	"slices"
	"testing"

	"gantry/internal/pod"
)

func TestWeight(t *testing.T) {
	t.Parallel()
	// The ends and the default are what cgroup v1 and v2 have in common.
	for shares, want := range map[int64]uint64{1: 1, 2: 1, 10: 4, 102: 17, 512: 59, 1024: 100, 2048: 174, 262144: 10000, 1 << 40: 10000} {
		if got := weight(shares); got != want {
			t.Errorf("weight(%d) = %d, want %d", shares, got, want)
		}
	}
}

func TestParseSet(t *testing.T) {
	t.Parallel()
	for list, want := range map[string][]byte{
		"0": {1}, "0-7": {0xff}, "8": {0, 1}, "1,3, 9": {0x0a, 0x02}, "0-3,2-4": {0x1f},
	} {
		got, err := parseSet(list)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("parseSet(%q) = %x, %v; want %x", list, got, err, want)
		}
	}
	for _, list := range []string{"", ",", "a", "3-1", "-1", "1-", "0-99999", "1--2", "8192"} {
		if _, err := parseSet(list); !errors.Is(err, pod.ErrInvalid) {
			t.Errorf("parseSet(%q): want pod.ErrInvalid, got %v", list, err)
		}
	}
}

// TestSeccompDefault checks that the profile follows architecture and
// capabilities, and that resolving one leaves the profile as it was.
func TestSeccompDefault(t *testing.T) {
	t.Parallel()
	p, err := DefaultSeccomp(nil)
	if err != nil {
		t.Fatal(err)
	}
	allows := func(arch, call string, caps ...string) bool {
		for _, rule := range p.Resolve(arch, caps).Syscalls {
			if rule.Action == "SCMP_ACT_ALLOW" && len(rule.Args) == 0 && slices.Contains(rule.Names, call) {
				return true
			}
		}
		return false
	}
	for _, test := range []struct {
		arch, call string
		caps       []string
		want       bool
	}{
		{"amd64", "read", nil, true},
		{"amd64", "mount", nil, false},
		{"amd64", "mount", []string{"CAP_SYS_ADMIN"}, true},
		{"amd64", "arch_prctl", nil, true},
		{"arm64", "arch_prctl", nil, false},
		{"amd64", "ptrace", nil, true}, // needs a kernel that we require anyway
		{"amd64", "mount", nil, false},
	} {
		if got := allows(test.arch, test.call, test.caps...); got != test.want {
			t.Errorf("%s on %s with %v: allowed is %v, want %v", test.call, test.arch, test.caps, got, test.want)
		}
	}
	if got := p.Resolve("arm64", nil).Architectures; len(got) == 0 || got[0] != "SCMP_ARCH_AARCH64" {
		t.Errorf("architectures on arm64: %v", got)
	}
}

func TestUnified(t *testing.T) {
	t.Parallel()
	for key, value := range map[string]string{
		"cgroup.procs": "1", "cgroup.kill": "1", "../cgroup.procs": "1", "memory": "1", "memory.max": "much", "memory.high": "-1",
		"cpu.max": "", "pids.max": "0", "cpu.weight": "0", "io.max": "8:0 rbps=1\n8:1 rbps=1", "memory.oom.group": "2", ".x": "1", "x.": "1",
	} {
		_, _, err := Resources(pod.Resources{Unified: map[string]string{key: value}})
		if !errors.Is(err, pod.ErrInvalid) {
			t.Errorf("%s=%q: want pod.ErrInvalid, got %v", key, value, err)
		}
	}
	for key, value := range map[string]string{
		"memory.high": "max", "cpu.max": "max 100000", "cpu.idle": "1", "io.max": "8:0 rbps=1", "cgroup.max.depth": "3", "misc.max": "res_a 1",
	} {
		if _, _, err := Resources(pod.Resources{Unified: map[string]string{key: value}}); err != nil {
			t.Errorf("%s=%q: %v", key, value, err)
		}
	}
}
