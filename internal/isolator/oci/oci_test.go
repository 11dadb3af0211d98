package oci

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
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

// TestContractOfEachKind: what a runtime cannot do is refused.
func TestContractOfEachKind(t *testing.T) {
	t.Parallel()
	for _, kind := range Kinds() {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			o, err := New(Config{Name: "other", Kind: kind, Runtime: []string{"/opt/bin/x"}, StdioSocket: "/run/gantry/stdio.sock"})
			if err != nil {
				t.Fatal(err)
			}
			isolatortest.Run(t, o, nil)
		})
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

// TestRuntimeState: only of crun and runc is known that their directory is all there is
// to forget, and not of what wraps them.
func TestRuntimeState(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		runtime []string
		want    string
	}{
		{nil, "/run/gantry/crun/bbb"},
		{[]string{"/opt/crun", "--root", "/run/x", "--cgroup-manager=disabled"}, "/run/x/bbb"},
		{[]string{"/usr/bin/crun", "--root=/run/x"}, "/run/x/bbb"},
		{[]string{"/usr/bin/crun-1.20"}, "/run/gantry/crun/bbb"},
		{[]string{"/usr/bin/runc"}, "/run/gantry/runc/bbb"},
		{[]string{"/usr/bin/youki"}, ""},
		{[]string{"/usr/bin/wrapper", "/usr/bin/crun", "--root=/run/x", "--cgroup-manager=disabled"}, ""},
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
