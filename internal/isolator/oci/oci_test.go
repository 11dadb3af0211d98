package oci

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"gantry/internal/isolator"
	"gantry/internal/isolator/isolatortest"
	"gantry/internal/pod"
)

func newOCI(t testing.TB) *OCI {
	o, err := New(Config{StdioSocket: "/run/gantry/stdio.sock", Arch: "amd64", SELinux: true})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func TestContract(t *testing.T) {
	t.Parallel()
	isolatortest.Run(t, newOCI(t), nil)
}

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
	o := newOCI(t)
	allows := func(arch, call string, caps ...string) bool {
		for _, rule := range o.seccomp.resolve(arch, caps).Syscalls {
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
	if got := o.seccomp.resolve("arm64", nil).Architectures; len(got) == 0 || got[0] != "SCMP_ARCH_AARCH64" {
		t.Errorf("architectures on arm64: %v", got)
	}
}

func TestSameDeviceTwice(t *testing.T) {
	t.Parallel()
	in := base()
	fuse := pod.Device{Path: "/dev/fuse", Source: "/dev/fuse", Permissions: "rwm", Type: "c", Major: 10, Minor: 229}
	again := fuse
	again.Permissions = "r"
	in.App.Devices = []pod.Device{fuse, again}
	if _, err := newOCI(t).App(in); err != nil {
		t.Error(err)
	}
	in.App.Devices[1].Minor = 200
	if _, err := newOCI(t).App(in); !errors.Is(err, pod.ErrInvalid) {
		t.Errorf("two devices at one path: %v", err)
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

// FuzzPlan feeds pods and apps of any shape: plans must not panic, and the same
// input must give the same plan or the same error.
func FuzzPlan(f *testing.F) {
	for _, dir := range []string{"pod", "app", "exec"} {
		files, err := filepath.Glob(filepath.Join("testdata", dir, "*.txtar"))
		if err != nil || len(files) == 0 {
			f.Fatalf("no seeds: %v", err)
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			part := map[string][]byte{}
			for _, p := range txtar.Parse(data).Files {
				part[p.Name] = p.Data
			}
			f.Add(part["pod"], part["app"], part["input"], part["profile"], "a\x00b")
		}
	}
	f.Fuzz(func(t *testing.T, podJSON, appJSON, inputJSON, profile []byte, word string) {
		make := func() isolator.App {
			in := base()
			// What does not parse leaves a half-filled pod: as good as any.
			_ = json.Unmarshal(inputJSON, &in)
			if in.Pod != nil {
				_ = json.Unmarshal(podJSON, in.Pod)
			}
			if in.App != nil {
				_ = json.Unmarshal(appJSON, in.App)
				in.Resources = in.App.Resources
			}
			in.SeccompProfile = profile
			in.Secret.Env = append(in.Secret.Env, word)
			return in
		}
		o := newOCI(t)
		if a, b := text(o.App(make())), text(o.App(make())); a != b {
			t.Errorf("two plans of one app:\n%s\n%s", a, b)
		}
		in := make()
		sandbox := isolator.Sandbox{Pod: in.Pod, Dir: in.Dir}
		if a, b := text(o.Sandbox(sandbox)), text(o.Sandbox(sandbox)); a != b {
			t.Errorf("two plans of one pod:\n%s\n%s", a, b)
		}
		e1, err1 := o.Exec(make(), pod.Process{Argv: []string{word}})
		e2, err2 := o.Exec(make(), pod.Process{Argv: []string{word}})
		if string(e1.Process) != string(e2.Process) || (err1 == nil) != (err2 == nil) {
			t.Errorf("two execs: %s %v, %s %v", e1.Process, err1, e2.Process, err2)
		}
	})
}

// TestRuntimeState: only of crun, and only without cgroups of its own, is known
// that its directory is all there is to forget.
func TestRuntimeState(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		runtime []string
		want    string
	}{
		{nil, "/run/gantry/crun/bbb"},
		{[]string{"/opt/crun", "--root", "/run/x", "--cgroup-manager=disabled"}, "/run/x/bbb"},
		{[]string{"/usr/bin/crun", "--root=/run/x"}, ""},
		{[]string{"/usr/bin/crun", "--cgroup-manager=disabled"}, ""},
		{[]string{"/usr/bin/runc", "--root=/run/x", "--cgroup-manager=disabled"}, ""},
	} {
		o, err := New(Config{Runtime: c.runtime})
		if err != nil {
			t.Fatal(err)
		}
		if got := o.runtimeState("bbb"); got != c.want {
			t.Errorf("%q: state is in %q, want %q", c.runtime, got, c.want)
		}
	}
}
