package engine

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gantry/internal/isolator"
	"gantry/internal/isolator/oci"
	"gantry/internal/network"
	"gantry/internal/pod"
	"gantry/internal/systemd/systemdtest"
	"gantry/internal/unit"
)

// TestGCKeepsTheNetworkOfAPodThatBecameReady: gc listed the pod while it was being
// made, and got its lock when it was ready.
func TestGCKeepsTheNetworkOfAPodThatBecameReady(t *testing.T) {
	t.Parallel()
	manager := systemdtest.New(nil)
	e := newTestEngine(t, manager)
	p := &pod.Pod{ID: pod.NewID(), Owner: pod.OwnerCRI, Name: "web", Isolator: "oci"}
	lock, err := e.store.CreatePod(p, nil)
	if err == nil {
		err = lock.Unlock()
	}
	if err == nil {
		public, private := network.Result{
			IPs: []string{"10.0.0.2"}, Raw: []byte(`{"cniVersion":"1.0.0"}`),
			ConfList: []byte(`{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"plug"}]}`),
		}.Split()
		err = e.store.WriteNetwork(p.ID, public, private)
	}
	if err != nil {
		t.Fatal(err)
	}
	u := unit.Unit{Name: unit.Pod(string(p.ID)), Properties: []unit.Property{
		{Name: "Type", Value: unit.String("oneshot")},
		{Name: "RemainAfterExit", Value: unit.Bool(true)},
		{Name: "ExecStart", Value: unit.Commands{{Path: "/bin/true", Args: []string{"/bin/true"}}}},
	}}
	if _, err := manager.Start(t.Context(), u); err != nil {
		t.Fatal(err)
	}
	g := &gc{e: e}
	listed := pod.PodStatus{Pod: p} // not ready then
	if err := g.stale(t.Context(), listed); err != nil {
		t.Error(err)
	}
	has := func() bool {
		t.Helper()
		var res network.Result
		ok, err := e.store.ReadNetwork(p.ID, &res)
		if err != nil {
			t.Fatal(err)
		}
		return ok
	}
	if !has() || len(g.report.Items) != 0 {
		t.Errorf("gc took the network of a pod that is up: %v", g.report.Items)
	}
	if err := manager.Stop(t.Context(), u.Name); err != nil {
		t.Fatal(err)
	}
	if err := g.stale(t.Context(), listed); err != nil {
		t.Error(err)
	}
	if has() || len(g.report.Items) != 1 {
		t.Errorf("gc left the network of a pod that is down: %v", g.report.Items)
	}
}

// TestGCOfAPodCutOff: a pod that had got its network when its making was cut off, and whose
// unit is gone, has it no longer after gc.
func TestGCOfAPodCutOff(t *testing.T) {
	t.Parallel()
	e := newTestEngine(t, systemdtest.New(nil))
	p := &pod.Pod{ID: pod.NewID(), Owner: pod.OwnerCRI, Name: "web", Isolator: "oci", Namespaces: pod.Namespaces{Network: pod.NamespacePod}}
	lock, err := e.store.CreatePod(p, nil)
	if err == nil {
		_, private := network.Result{ConfList: []byte(`{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"plug"}]}`)}.Split()
		err = errors.Join(e.store.WriteAttachment(p.ID, private), lock.Unlock())
	}
	if err != nil || !e.store.HasAttachment(p.ID) {
		t.Fatal(err)
	}
	g := &gc{e: e}
	if err := g.stale(t.Context(), pod.PodStatus{Pod: p}); err != nil {
		t.Error(err)
	}
	if e.store.HasAttachment(p.ID) || len(g.report.Items) != 1 {
		t.Errorf("it has its network still: %v", g.report.Items)
	}
}

// TestGCOfUnits: what is left of pods that are not on disk is stopped, their slices too; what
// is of a pod that is, or of nobody's, is not.
func TestGCOfUnits(t *testing.T) {
	t.Parallel()
	forever := func(ctx context.Context, p systemdtest.Process) systemdtest.Exit {
		select {
		case <-p.Signals:
		case <-ctx.Done():
		}
		return systemdtest.Exit{}
	}
	pid1 := systemdtest.New(forever)
	t.Cleanup(func() { pid1.Close() })
	e := newTestEngine(t, pid1)
	known := &pod.Pod{ID: pod.NewID(), Owner: pod.OwnerCRI, Name: "web", Isolator: "oci", CgroupParent: "x.slice"}
	lock, err := e.store.CreatePod(known, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Unlock()
	run := unit.Property{Name: "ExecStart", Value: unit.Commands{{Path: "/run", Args: []string{"/run"}}}}
	want := map[string]bool{}
	for id, stays := range map[string]bool{string(known.ID): true, string(pod.NewID()): false, "something": true} {
		for _, name := range []string{unit.Machine(id), unit.FileServer(id), unit.PodSlice(id)} {
			u := unit.Unit{Name: name}
			if !strings.HasSuffix(name, ".slice") {
				u.Properties = []unit.Property{run}
			}
			if err := pid1.Launch(t.Context(), u); err != nil {
				t.Fatal(err)
			}
			want[name] = stays
		}
	}
	g := &gc{e: e}
	if err := g.orphanUnits(t.Context()); err != nil {
		t.Error(err)
	}
	for name, stays := range want {
		if s, err := pid1.State(t.Context(), name); err != nil || s.Running() != stays {
			t.Errorf("%s runs: %t, want %t (%v)", name, s.Running(), stays, err)
		}
	}
	if n := len(g.report.Items); n != 3 {
		t.Errorf("it reports %d: %v", n, g.report.Items)
	}
}

// TestSliceOfAForgottenPod: it goes with the pod's record, if nothing has stopped it before.
func TestSliceOfAForgottenPod(t *testing.T) {
	t.Parallel()
	pid1 := systemdtest.New(nil)
	t.Cleanup(func() { pid1.Close() })
	e := newTestEngine(t, pid1)
	for parent, stays := range map[string]bool{"": false, "kubepods.slice": true} {
		p := &pod.Pod{ID: pod.NewID(), Owner: pod.OwnerCLI, Name: "web" + parent, Isolator: "oci", CgroupParent: parent}
		lock, err := e.store.CreatePod(p, nil)
		if err != nil {
			t.Fatal(err)
		}
		slice := unit.PodSlice(string(p.ID))
		if err := pid1.Launch(t.Context(), unit.Unit{Name: slice}); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(e.forgetPod(t.Context(), p), lock.Unlock()); err != nil {
			t.Error(err)
		}
		if s, err := pid1.State(t.Context(), slice); err != nil || s.Running() != stays {
			t.Errorf("below %q its slice runs: %t (%v)", parent, s.Running(), err)
		}
	}
}

// TestTeardownWithoutRecord: a pod that was detached before, or never attached, does
// not wait for a network configuration that is broken now.
func TestTeardownWithoutRecord(t *testing.T) {
	t.Parallel()
	e := newTestEngine(t, systemdtest.New(nil))
	p := &pod.Pod{ID: pod.NewID(), Owner: pod.OwnerCRI, Name: "web", Isolator: "oci", Namespaces: pod.Namespaces{Network: pod.NamespacePod}}
	lock, err := e.store.CreatePod(p, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Unlock()
	conf := filepath.Join(filepath.Dir(e.cfg.Root), "net.d")
	err = os.Mkdir(conf, 0o755)
	if err == nil {
		err = os.WriteFile(filepath.Join(conf, "10-net.conflist"), []byte("{"), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := e.down.delNetwork(t.Context(), p, lock); err != nil {
		t.Error(err)
	}
}

func newTestEngine(t *testing.T, m Manager) *Engine {
	t.Helper()
	iso, err := oci.New(oci.Config{})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	plugin := filepath.Join(dir, "bin", "plug") // agrees to everything
	if err := os.Mkdir(filepath.Dir(plugin), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(plugin, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	n, err := network.New(network.Config{ConfDir: dir + "/net.d", CacheDir: dir + "/cni", BinDirs: []string{dir + "/bin"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	e, err := New(t.Context(), Config{
		Root: dir + "/lib", Run: dir + "/run", Systemd: m, Network: n,
		Isolators: []isolator.Isolator{iso}, Isolator: iso.Name(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}
