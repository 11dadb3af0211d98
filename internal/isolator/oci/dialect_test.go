package oci

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gantry/internal/isolator"
	"gantry/internal/pod"
)

// TestCommandLines: a runtime gets the options that it cannot do without, and keeps its own.
func TestCommandLines(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		cfg  Config
		want string
	}{
		{Config{}, "/usr/bin/crun --root=/run/gantry/crun --cgroup-manager=disabled"},
		{Config{Runtime: []string{"/x/crun", "--root", "/r", "--debug"}}, "/x/crun --root /r --debug --cgroup-manager=disabled"},
		{Config{Runtime: []string{"/usr/sbin/runc"}}, "/usr/sbin/runc --root=/run/gantry/runc"},
		{Config{Name: "runc", Runtime: []string{"/usr/sbin/runc"}}, "/usr/sbin/runc --root=/run/gantry/runtimes/runc"},
		{Config{Name: "r12", Runtime: []string{"/opt/runc-1.2", "--root=/r"}}, "/opt/runc-1.2 --root=/r"},
		{Config{Name: "fast", Runtime: []string{"/opt/crun"}}, "/opt/crun --root=/run/gantry/runtimes/fast --cgroup-manager=disabled"},
		{Config{Name: "odd", Kind: "crun", Runtime: []string{"/opt/odd"}}, "/opt/odd --root=/run/gantry/runtimes/odd --cgroup-manager=disabled"},
		{Config{Name: "gvisor", Runtime: []string{"/opt/runsc", "--platform=kvm"}}, "/opt/runsc --platform=kvm --root=/run/gantry/runtimes/gvisor --overlay2=none"},
		{Config{Name: "gvisor", Runtime: []string{"/opt/runsc", "--overlay2=all:memory"}}, "/opt/runsc --overlay2=all:memory --root=/run/gantry/runtimes/gvisor"},
		{Config{Name: "odd", Runtime: []string{"/opt/odd"}}, "/opt/odd --root=/run/gantry/runtimes/odd"},
	} {
		o, err := New(c.cfg)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(o.cfg.Runtime, " "); got != c.want {
			t.Errorf("%+v: %s, want %s", c.cfg, got, c.want)
		}
	}
}

func TestRefusedCommandLines(t *testing.T) {
	t.Parallel()
	for want, c := range map[string]Config{
		`isolator a: kind "x" of runtime: want one of crun, runc, runsc, youki`: {Name: "a", Kind: "x", Runtime: []string{"/a"}},
		"isolator a: option --systemd-cgroup of /usr/sbin/runc":                 {Name: "a", Runtime: []string{"/usr/sbin/runc", "--systemd-cgroup"}},
		"isolator oci: option --cgroup-manager=systemd of /usr/bin/crun":        {Runtime: []string{"/usr/bin/crun", "--cgroup-manager=systemd"}},
		"isolator b: option --cgroup-manager=cgroupfs of /usr/bin/crun":         {Name: "b", Runtime: []string{"/usr/bin/crun", "--cgroup-manager", "cgroupfs"}},
	} {
		if _, err := New(c); !errors.Is(err, pod.ErrInvalid) || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// TestMissingRuntime: who asks for it is told the path and what to do.
func TestMissingRuntime(t *testing.T) {
	t.Parallel()
	missing := func(string) error { return errors.New("there is no such file") }
	for name, key := range map[string]string{"": "oci.runtime ", "runc": "oci.runtimes "} {
		o, err := New(Config{Name: name, Runtime: []string{"/opt/runc"}, Installed: missing})
		if err != nil {
			t.Fatal(err)
		}
		in := base()
		_, podErr := o.Sandbox(isolator.Sandbox{Pod: in.Pod, Dir: in.Dir})
		_, appErr := o.App(in)
		for _, err := range []error{podErr, appErr} {
			if !errors.Is(err, pod.ErrUnavailable) || !strings.Contains(err.Error(), "/opt/runc (there is no such file): install it, or correct "+key) {
				t.Errorf("%q: %v", name, err)
			}
		}
	}
}

// TestKindsAreOneList: what New takes for Config.Kind, in the order of the words.
func TestKindsAreOneList(t *testing.T) {
	t.Parallel()
	if got := Kinds(); !slices.Equal(got, []string{"crun", "runc", "runsc", "youki"}) {
		t.Error(got)
	}
}

// TestKindsIsolate: a pod of one with a kernel of its own may not become one of the host's by
// a word.
func TestKindsIsolate(t *testing.T) {
	t.Parallel()
	for kind, d := range dialects() {
		want := isolator.IsolationNamespaces
		if d.kernel {
			want = isolator.IsolationKernel
		}
		if got := d.features.Isolation; got != want {
			t.Errorf("%s: %v, want %v", kind, got, want)
		}
	}
}

// TestRuncIsNotCheckpointed: its checkpoints take cgroups that are its own.
func TestRuncIsNotCheckpointed(t *testing.T) {
	t.Parallel()
	o, err := New(Config{Name: "runc", Runtime: []string{"/usr/sbin/runc"}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = o.Checkpoint(base(), t.TempDir(), "/a", time.Minute)
	if !errors.Is(err, pod.ErrUnsupported) || !strings.Contains(err.Error(), "isolator runc: checkpoints need crun") {
		t.Error(err)
	}
}

// TestForget: a record goes whatever the runtime says, be it a directory or files, and no
// other app's.
func TestForget(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	o, err := New(Config{Name: "runsc", Kind: "runsc", Runtime: []string{"/bin/false", "--root=" + root}})
	if err != nil {
		t.Fatal(err)
	}
	app, other := pod.NewID(), pod.NewID()
	for _, name := range []string{string(app) + "_sandbox.state", string(app) + ".lock", string(other)} {
		if err := os.WriteFile(filepath.Join(root, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := o.Forget(t.Context(), app); err != nil {
			t.Fatal(err)
		}
	}
	left, err := os.ReadDir(root)
	if err != nil || len(left) != 1 || left[0].Name() != string(other) {
		t.Errorf("left are %v, %v", left, err)
	}
}
