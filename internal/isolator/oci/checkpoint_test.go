package oci

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"gantry/internal/isolator"
	"gantry/internal/pod"
	"gantry/internal/unit"
)

// TestCheckpoint: crun gets a copy of its record that names the cgroup, the record itself
// stays, and the unit's end thaws the cgroup.
func TestCheckpoint(t *testing.T) {
	t.Parallel()
	root, dir := t.TempDir(), t.TempDir()
	o, err := New(Config{Runtime: []string{"/usr/bin/crun", "--root=" + root, "--cgroup-manager=disabled"}, Init: "/init"})
	if err != nil {
		t.Fatal(err)
	}
	in := isolator.App{Pod: &pod.Pod{Name: "p"}, App: &pod.App{ID: pod.NewID(), Name: "a", TTY: true}}
	record := filepath.Join(root, string(in.App.ID))
	status := `{"pid": 7, "cgroup-path": "", "bundle": "/b"}`
	if err := errors.Join(os.Mkdir(record, 0o700), os.WriteFile(filepath.Join(record, "status"), []byte(status), 0o600)); err != nil {
		t.Fatal(err)
	}
	u, err := o.Checkpoint(in, dir, "/a.slice/b.service", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if got, ok := u.Get("ExecStopPost").(unit.Commands); !ok || len(got) != 2 || !got[0].IgnoreFailure || got[1].Args[2] != got[0].Args[2] {
		t.Errorf("one killed thaw leaves the app frozen: %v", u.Get("ExecStopPost"))
	}
	if got := u.Get("ExecStopPost"); got == nil || got.(unit.Commands)[0].Args[2] != "/a.slice/b.service" {
		t.Errorf("the end of %s does %v", u.Name, got)
	}
	data, err := os.ReadFile(filepath.Join(dir, checkpointRoot, string(in.App.ID), "status"))
	if err != nil {
		t.Fatal(err)
	}
	var copied map[string]any
	if err := json.Unmarshal(data, &copied); err != nil || copied["cgroup-path"] != "/a.slice/b.service" || copied["pid"] != 7.0 || copied["bundle"] != "/b" {
		t.Errorf("the copy is %s, %v", data, err)
	}
	if data, err := os.ReadFile(filepath.Join(record, "status")); err != nil || string(data) != status {
		t.Errorf("the record is %s, %v", data, err)
	}
	other, err := New(Config{Runtime: []string{"/usr/bin/runc"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Checkpoint(in, t.TempDir(), "/a", time.Minute); !errors.Is(err, pod.ErrUnsupported) {
		t.Errorf("another runtime: %v", err)
	}
	if _, err := withCgroup([]byte(`{"pid": 7}`), "/a"); !errors.Is(err, pod.ErrUnsupported) {
		t.Errorf("a record without cgroups: %v", err)
	}
}
