package oci

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"gantry/internal/isolator"
	"gantry/internal/pod"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// A golden file is a txtar archive: the inputs first (JSON laid over base, so that
// a case says only what it is about), then the plan, which is txtar itself.
var inputs = map[string]bool{
	"config": true, "pod": true, "app": true, "secret": true, "input": true, "profile": true, "process": true,
}

const (
	podID = "aaaaaaaaaaaaaaaaaaaaaaaa"
	appID = "bbbbbbbbbbbbbbbbbbbbbbbb"
)

func base() isolator.App {
	created := time.Date(2026, 11, 2, 12, 0, 0, 0, time.UTC)
	p := &pod.Pod{
		Version: 1, ID: podID, Owner: pod.OwnerCRI, Name: "web", Namespace: "shop", UID: "u-1", Created: created,
		Isolator: "oci", Hostname: "web", Slice: "kubepods-podu_1.slice", CgroupParent: "/kubepods.slice/kubepods-podu_1.slice",
		DNS:        &pod.DNS{Servers: []string{"10.96.0.10"}, Searches: []string{"shop.svc", "svc"}, Options: []string{"ndots:5"}},
		Namespaces: pod.Namespaces{Network: pod.NamespacePod, PID: pod.NamespaceApp, IPC: pod.NamespacePod},
	}
	a := &pod.App{
		Version: 1, ID: appID, Pod: podID, Name: "nginx", Created: created,
		Image: pod.Image{ID: "sha256:cc", Name: "nginx"}, Argv: []string{"nginx", "-g", "daemon off;"}, WorkingDir: "/srv",
		StopSignal: 3, StopTimeout: 30 * time.Second, Namespaces: p.Namespaces,
		Security: pod.Security{
			Seccomp: pod.Profile{Kind: pod.ProfileUnconfined}, AppArmor: pod.Profile{Kind: pod.ProfileUnconfined},
		},
	}
	return isolator.App{
		Pod: p, App: a, Secret: pod.Secret{Env: []string{"PATH=/bin", "TOKEN=hunter2"}},
		Dir: isolator.Dirs{
			Pod: "/var/lib/gantry/pods/" + podID, App: "/var/lib/gantry/pods/" + podID + "/apps/" + appID,
			Run: "/run/gantry/pods/" + podID,
		},
		Rootfs: isolator.Tree{Path: "/run/gantry/images/cc", Unit: "run-gantry-images-cc.mount"},
	}
}

// golden is a parsed case.
type golden struct {
	oci     *OCI
	in      isolator.App
	process pod.Process
	archive *txtar.Archive // of the inputs
	want    string
}

func readGolden(t *testing.T, file string) golden {
	t.Helper()
	all, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	g := golden{in: base(), archive: &txtar.Archive{Comment: all.Comment}}
	cfg := Config{StdioSocket: "/run/gantry/stdio.sock", Arch: "amd64"}
	var rest txtar.Archive
	for _, f := range all.Files {
		if !inputs[f.Name] {
			rest.Files = append(rest.Files, f)
			continue
		}
		g.archive.Files = append(g.archive.Files, f)
		into := map[string]any{
			"config": &cfg, "pod": g.in.Pod, "app": g.in.App, "secret": &g.in.Secret, "input": &g.in, "process": &g.process,
		}[f.Name]
		if f.Name == "profile" {
			g.in.SeccompProfile = f.Data
			continue
		}
		dec := json.NewDecoder(bytes.NewReader(f.Data))
		dec.DisallowUnknownFields()
		if err := dec.Decode(into); err != nil {
			t.Fatalf("%s: %v", f.Name, err)
		}
	}
	// As the engine does: what the app does not say itself is the pod's, and its
	// resources are in force.
	g.in.App.Namespaces.User = g.in.Pod.Namespaces.User
	g.in.Resources = g.in.App.Resources
	g.want = string(txtar.Format(&rest))
	if g.oci, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	return g
}

func (g golden) check(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		data := append(txtar.Format(g.archive), got...)
		if err := os.WriteFile(file, data, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(g.want, got); diff != "" {
		t.Errorf("plan differs (-want +got; go test -update rewrites):\n%s", diff)
	}
}

func goldens(t *testing.T, dir string, plan func(t *testing.T, g golden) string) {
	files, err := filepath.Glob(filepath.Join("testdata", dir, "*.txtar"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files in %s: %v", dir, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			t.Parallel()
			g := readGolden(t, file)
			g.check(t, file, plan(t, g))
		})
	}
}

// text is the plan, or why there is none.
func text(p isolator.Plan, err error) string {
	if err == nil {
		return p.Text()
	}
	kind := "?"
	for name, k := range map[string]error{"invalid": pod.ErrInvalid, "unsupported": pod.ErrUnsupported, "state": pod.ErrState} {
		if errors.Is(err, k) {
			kind = name
		}
	}
	return fmt.Sprintf("-- error (%s) --\n%v\n", kind, err)
}

func TestPod(t *testing.T) {
	t.Parallel()
	goldens(t, "pod", func(_ *testing.T, g golden) string {
		dir := g.in.Dir
		dir.App = ""
		return text(g.oci.Sandbox(isolator.Sandbox{Pod: g.in.Pod, Dir: dir}))
	})
}

func TestApp(t *testing.T) {
	t.Parallel()
	goldens(t, "app", func(_ *testing.T, g golden) string { return text(g.oci.App(g.in)) })
}

// TestOtherRuntimes: what differs from crun's plans.
func TestOtherRuntimes(t *testing.T) {
	t.Parallel()
	goldens(t, "runtimes", func(_ *testing.T, g golden) string { return text(g.oci.App(g.in)) })
}

func TestExec(t *testing.T) {
	t.Parallel()
	goldens(t, "exec", func(_ *testing.T, g golden) string {
		e, err := g.oci.Exec(g.in, g.process)
		if err != nil {
			return text(isolator.Plan{}, err)
		}
		var v any
		dec := json.NewDecoder(bytes.NewReader(e.Process))
		dec.UseNumber()
		if err := dec.Decode(&v); err != nil {
			t.Fatal(err)
		}
		how := fmt.Sprintf("%s: %q\n", e.Path, e.Args)
		if e.Outside {
			how += fmt.Sprintf("(stays outside of the app; group below %q, terminal %t)\n", e.Group, e.Terminal)
		}
		return fmt.Sprintf("-- command --\n%s-- process file --\n%s\n", how, pretty(v))
	})
}
