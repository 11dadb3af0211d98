package node

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"gantry/internal/config"
	"gantry/internal/isolator"
	"gantry/internal/isolator/oci"
	"gantry/internal/pod"
)

// TestRuntimes: each is an isolator of its name, beside Gantry's own.
func TestRuntimes(t *testing.T) {
	t.Parallel()
	c := config.Default()
	c.OCIRuntimes = []string{"runc=/usr/sbin/runc", "gvisor:runsc=/x --debug"}
	all, err := FromConfig(c).isolators(oci.Config{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, i := range all {
		names = append(names, i.Name())
	}
	if !slices.Equal(names, []string{"oci", "fly", "runc", "gvisor"}) {
		t.Errorf("isolators are %q", names)
	}
	if f := all[2].Features(); f.Isolation != isolator.IsolationNamespaces || f.UserNamespaces || !f.Hooks {
		t.Errorf("runc has %+v", f)
	}
	if all[3].Features().Hooks {
		t.Error("the kind that was told is not looked at")
	}
	c.OCIRuntimes = []string{"runc=/usr/sbin/runc --systemd-cgroup"}
	if _, err := FromConfig(c).isolators(oci.Config{}); !errors.Is(err, pod.ErrInvalid) {
		t.Errorf("cgroups of systemd's that are not ours: %v", err)
	}
}

// TestKindsOfTheConfiguration are those that there are.
func TestKindsOfTheConfiguration(t *testing.T) {
	t.Parallel()
	if !slices.Equal(config.RuntimeKinds[:], oci.Kinds()) {
		t.Errorf("%q, want %q", config.RuntimeKinds, oci.Kinds())
	}
}

func TestInstalled(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"program": 0o755, "text": 0o644} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]bool{dir + "/program": true, dir + "/text": false, dir + "/nothing": false, dir: false} {
		if err := installed(path); (err == nil) != want {
			t.Errorf("%s: %v", path, err)
		}
	}
}
