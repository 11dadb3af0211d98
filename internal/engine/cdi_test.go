package engine

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gantry/internal/pod"
)

// TestCDI: what a specification says is looked up when an app is created, and is in
// its record: the file may change or go later.
func TestCDI(t *testing.T) {
	t.Parallel()
	b := newBench(t, false, nil)
	dir := t.TempDir()
	b.cfg.CDIDirs = []string{dir}
	spec := `{"cdiVersion":"0.7.0","kind":"v.com/null","devices":[{"name":"all","containerEdits":{
		"env":["FROM_DEVICE=yes"], "additionalGids":[77],
		"deviceNodes":[{"path":"/dev/mine","hostPath":"/dev/null","permissions":"r"}],
		"mounts":[{"hostPath":"` + dir + `","containerPath":"/spec","options":["ro"]}],
		"hooks":[{"hookName":"createRuntime","path":"/bin/true"}]}}]}`
	if err := os.WriteFile(filepath.Join(dir, "null.json"), []byte(spec), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := b.CreatePod(t.Context(), hostPod("devices"))
	if err != nil {
		t.Fatal(err)
	}
	app := AppSpec{
		Name: "app", Image: b.image, Command: []string{"app"}, CDI: []string{"v.com/null=all"}, User: "5:6",
		Mounts: []pod.Mount{{Path: "/spec", HostPath: t.TempDir()}},
	}
	a, err := b.CreateApp(t.Context(), p.ID, app)
	if err != nil {
		t.Fatal(err)
	}
	source, err := filepath.EvalSymlinks(dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]pod.Mount{{Path: "/spec", HostPath: dir, Source: source, ReadOnly: true, Propagation: pod.PropagationPrivate}}, a.Mounts); diff != "" {
		t.Error(diff)
	}
	want := []pod.Device{{Path: "/dev/mine", Source: "/dev/null", Permissions: "r", Type: "c", Major: 1, Minor: 3, Mode: 0o666, UID: 5, GID: 6}}
	if diff := cmp.Diff(want, a.Devices); diff != "" {
		t.Error(diff)
	}
	if !slices.Contains(a.Security.Groups, 77) || len(a.Hooks) != 1 || !slices.Equal(a.CDI, app.CDI) {
		t.Errorf("app = %+v", a)
	}
	secret, err := b.Engine.store.ReadSecret(p.ID, a.ID)
	if err != nil || !slices.Contains(secret.Env, "FROM_DEVICE=yes") {
		t.Errorf("environment = %v, %v", secret.Env, err)
	}
	app.Name, app.CDI = "other", []string{"v.com/null=none"}
	if _, err := b.CreateApp(t.Context(), p.ID, app); !errors.Is(err, pod.ErrInvalid) || !strings.Contains(err.Error(), "v.com/null=all") {
		t.Errorf("a device that is not there: %v", err)
	}
}
