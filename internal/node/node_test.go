package node

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"gantry/internal/network"
	"gantry/internal/network/networktest"
	"gantry/internal/pod"
	"gantry/internal/podstore"
	"gantry/internal/podstore/writer"
)

const plugin = "fake"

// TestMain is also the CNI plugin that the tests install.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == plugin {
		os.Exit(networktest.Main())
	}
	os.Exit(m.Run())
}

// TestTeardown gives back a network where nothing but files and plugins is there:
// a machine that goes down has no bus to systemd any more.
func TestTeardown(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	log := filepath.Join(dir, "calls")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := networktest.Install(dir, plugin, self, networktest.Script{Log: log}); err != nil {
		t.Fatal(err)
	}
	o := Options{Root: filepath.Join(dir, "lib"), Run: filepath.Join(dir, "run"), NetworkConfDir: filepath.Join(dir, "net.d"), NetworkBinDirs: []string{dir}}
	p := attached(t, o.Root)
	d, err := OpenTeardown(o)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for range 2 { // it is idempotent
		if err := d.NetworkDown(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	calls, err := networktest.Calls(log)
	if err != nil || len(calls) == 0 || calls[0].Command != "DEL" || calls[0].ID != string(p) {
		t.Errorf("plugin was called with %+v, %v; want DEL of %s", calls, err, p)
	}
	if _, err := os.Stat(filepath.Join(o.Root, "pods", string(p), podstore.NetworkFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the network record is still there: %v", err)
	}
	if err := d.NetworkDown(t.Context(), pod.NewID()); err != nil {
		t.Errorf("a pod that is gone: %v", err)
	}
}

// attached puts a pod with a network on disk.
func attached(t *testing.T, root string) pod.ID {
	t.Helper()
	w, err := writer.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	p := &pod.Pod{ID: pod.NewID(), Owner: pod.OwnerCLI, Name: "p", Namespaces: pod.Namespaces{Network: pod.NamespacePod}}
	lock, err := w.CreatePod(p, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := lock.Unlock(); err != nil {
		t.Fatal(err)
	}
	const list = `{"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "` + plugin + `"}]}`
	public, private := network.Result{ConfList: []byte(list)}.Split()
	if err := w.WriteNetwork(p.ID, public, private); err != nil {
		t.Fatal(err)
	}
	return p.ID
}
