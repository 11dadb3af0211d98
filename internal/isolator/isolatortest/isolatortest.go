// Package isolatortest holds what every isolator must keep to, as a test suite: a
// new isolator costs one call of Run in a test.
package isolatortest

import (
	"encoding/json"
	"errors"
	"path"
	"regexp"
	"strings"
	"testing"
	"time"

	"gantry/internal/isolator"
	"gantry/internal/pod"
	"gantry/internal/unit"
)

const (
	podID  = "aaaaaaaaaaaaaaaaaaaaaaaa"
	appID  = "bbbbbbbbbbbbbbbbbbbbbbbb"
	secret = "hunter2-and-a-half"
)

// Run checks an isolator against the contract of isolator.Isolator. change, which
// may be nil, makes the suite's pods such as the isolator takes.
func Run(t *testing.T, iso isolator.Isolator, change func(*isolator.App)) {
	s := suite{iso, change}
	t.Run("name", s.name)
	t.Run("a plan is pure", s.pure)
	t.Run("units", s.units)
	t.Run("files", s.files)
	t.Run("secrets stay secret", s.secrets)
	t.Run("features are honoured or refused", s.features)
	t.Run("nonsense is refused", s.nonsense)
	t.Run("cleanup is idempotent", s.cleanup)
}

type suite struct {
	iso    isolator.Isolator
	change func(*isolator.App)
}

// input is a plain pod and app, made anew for each use.
func (s suite) input() isolator.App {
	created := time.Date(2026, 11, 2, 12, 0, 0, 0, time.UTC)
	p := &pod.Pod{
		Version: 1, ID: podID, Owner: pod.OwnerCLI, Name: "web", Namespace: "shop", Created: created,
		Isolator: s.iso.Name(), Hostname: "web", Slice: unit.PodSlice(podID), DNS: &pod.DNS{Servers: []string{"192.0.2.1"}},
		Namespaces: pod.Namespaces{Network: pod.NamespacePod, PID: pod.NamespaceApp, IPC: pod.NamespacePod},
	}
	a := &pod.App{
		Version: 1, ID: appID, Pod: podID, Name: "app", Created: created, Image: pod.Image{ID: "sha256:cc"},
		Argv: []string{"run", "$HOME", "%n"}, WorkingDir: "/", StopSignal: 15, StopTimeout: time.Second,
		Namespaces: p.Namespaces, Mounts: []pod.Mount{{Path: "/data", Source: "/srv/data"}},
		Resources: pod.Resources{Memory: 64 << 20, CPUQuota: 50000, CPUPeriod: 100000, OOMScoreAdj: 7},
	}
	in := isolator.App{
		Pod: p, App: a, Secret: pod.Secret{Env: []string{"TOKEN=" + secret}}, Resources: a.Resources,
		Dir: isolator.Dirs{
			Pod: "/var/lib/gantry/pods/" + podID, App: "/var/lib/gantry/pods/" + podID + "/apps/" + appID, Run: "/run/gantry/pods/" + podID,
		},
		Rootfs: isolator.Tree{Path: "/run/gantry/images/cc", Unit: unit.Mount("/run/gantry/images/cc")},
	}
	if s.change != nil {
		s.change(&in)
	}
	return in
}

func (s suite) sandbox(in isolator.App) (isolator.Plan, error) {
	dir := in.Dir
	dir.App = ""
	return s.iso.Sandbox(isolator.Sandbox{Pod: in.Pod, Dir: dir})
}

// plans returns the plans of the pod and of the app.
func (s suite) plans(t *testing.T, in isolator.App) (sandbox, app isolator.Plan) {
	t.Helper()
	sandbox, err := s.sandbox(in)
	if err != nil {
		t.Fatalf("Sandbox: %v", err)
	}
	app, err = s.iso.App(in)
	if err != nil {
		t.Fatalf("App: %v", err)
	}
	return sandbox, app
}

func (s suite) name(t *testing.T) {
	if !regexp.MustCompile(`^[a-z][a-z0-9-]*$`).MatchString(s.iso.Name()) {
		t.Errorf("name %q: want lower case letters, digits and hyphens", s.iso.Name())
	}
}

// pure checks that the same pod yields the same plan, and is left as it was.
func (s suite) pure(t *testing.T) {
	in := s.input()
	before := dump(t, in)
	pod1, app1 := s.plans(t, in)
	if dump(t, in) != before {
		t.Error("planning changed its input")
	}
	pod2, app2 := s.plans(t, s.input())
	if dump(t, pod1) != dump(t, pod2) || dump(t, app1) != dump(t, app2) {
		t.Error("the same pod yields another plan")
	}
}

func dump(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func (s suite) units(t *testing.T) {
	in := s.input()
	sandbox, app := s.plans(t, in)
	for _, p := range []isolator.Plan{sandbox, app} {
		for _, u := range p.Units {
			if err := u.Validate(); err != nil {
				t.Error(err)
			}
			if u.Get("CollectMode") == nil && !strings.HasSuffix(u.Name, ".slice") {
				t.Errorf("%s: without CollectMode= a failed unit stays for ever", u.Name)
			}
			if r, ok := u.Get("Restart").(unit.String); ok && r != "no" {
				t.Errorf("%s: Restart=%s: an app has one life", u.Name, r)
			}
		}
	}
	if got := lastUnit(t, sandbox).Name; got != unit.Pod(podID) {
		t.Errorf("the pod's unit is %s, want %s", got, unit.Pod(podID))
	}
	u := lastUnit(t, app)
	if u.Name != unit.App(appID) {
		t.Errorf("the app's unit is %s, want %s", u.Name, unit.App(appID))
	}
	if got := u.Get("Slice"); got != unit.String(in.Pod.Slice) {
		t.Errorf("the app is in slice %v, want %s", got, in.Pod.Slice)
	}
	if stops, ok := u.Get("ExecStopPost").(unit.Commands); !ok || len(stops) == 0 {
		t.Error("nothing records the app's exit")
	}
	for _, rel := range []string{"After", "Requisite"} {
		if !lists(u.Get(rel), unit.Pod(podID)) {
			t.Errorf("%s= of the app lacks the pod's unit", rel)
		}
	}
	if !lists(u.Get("Requires"), in.Rootfs.Unit) || !lists(u.Get("After"), in.Rootfs.Unit) {
		t.Error("the app does not keep its image mounted: want Requires= and After= its mount unit")
	}
}

func lastUnit(t *testing.T, p isolator.Plan) unit.Unit {
	t.Helper()
	if len(p.Units) == 0 {
		t.Fatal("the plan has no unit")
	}
	return p.Units[len(p.Units)-1]
}

func lists(v unit.Value, name string) bool {
	names, _ := v.(unit.Strings)
	for _, n := range names {
		if n == name {
			return true
		}
	}
	return false
}

func (s suite) files(t *testing.T) {
	sandbox, app := s.plans(t, s.input())
	for _, p := range []isolator.Plan{sandbox, app} {
		seen := map[string]bool{}
		for _, f := range p.Files {
			if path.IsAbs(f.Path) || path.Clean(f.Path) != f.Path || strings.HasPrefix(f.Path, "..") || f.Path == "." {
				t.Errorf("file %q is not below the directory", f.Path)
			}
			if seen[f.Path] {
				t.Errorf("file %q is written twice", f.Path)
			}
			seen[f.Path] = true
			if f.Mode&0o022 != 0 || f.Mode == 0 {
				t.Errorf("file %q has mode %04o", f.Path, f.Mode)
			}
			if f.Secret && f.Mode&0o077 != 0 {
				t.Errorf("secret file %q has mode %04o: others may read it", f.Path, f.Mode)
			}
		}
	}
}

// secrets checks that an environment value is in secret files only.
func (s suite) secrets(t *testing.T) {
	in := s.input()
	_, app := s.plans(t, in)
	if strings.Contains(app.Text(), secret) {
		t.Error("the plan prints a secret")
	}
	found := false
	for _, f := range app.Files {
		switch {
		case !strings.Contains(string(f.Data), secret):
		case f.Secret:
			found = true
		default:
			t.Errorf("file %s has a secret and is not marked so", f.Path)
		}
	}
	if !found {
		t.Error("the app does not get its environment")
	}
	in.Secret.Env = []string{"=" + secret}
	if _, err := s.iso.App(in); err == nil || strings.Contains(err.Error(), secret) {
		t.Errorf("a bad variable: want an error that keeps the value to itself, got %v", err)
	}
	exec, err := s.iso.Exec(s.input(), pod.Process{Argv: []string{"true"}, Env: []string{"B=" + secret}})
	if err != nil {
		t.Fatalf("Exec: %v", err)
	}
	args := strings.Join(exec.Args, " ")
	if strings.Contains(args, secret) || !strings.Contains(args, isolator.ProcessArg) || !path.IsAbs(exec.Path) {
		t.Errorf("Exec: command %s %s", exec.Path, args)
	}
}

// nonsense checks what every isolator must refuse before anything was made.
func (s suite) nonsense(t *testing.T) {
	for what, change := range map[string]func(*isolator.App){
		"no command":       func(in *isolator.App) { in.App.Argv = nil },
		"empty command":    func(in *isolator.App) { in.App.Argv = []string{""} },
		"NUL in argv":      func(in *isolator.App) { in.App.Argv = []string{"a\x00b"} },
		"relative source":  func(in *isolator.App) { in.App.Mounts[0].Source = "data" },
		"source with ..":   func(in *isolator.App) { in.App.Mounts[0].Source = "/srv/../etc" },
		"mount on root":    func(in *isolator.App) { in.App.Mounts[0].Path = "/" },
		"missing volume":   func(in *isolator.App) { in.App.Mounts[0].Source = "" },
		"negative quota":   func(in *isolator.App) { in.Resources.CPUPeriod = -1 },
		"unknown profile":  func(in *isolator.App) { in.App.Security.Seccomp.Kind = "fancy" },
		"unknown pid mode": func(in *isolator.App) { in.App.Namespaces.PID = "fancy" },
		"no slice":         func(in *isolator.App) { in.Pod.Slice = "" },
		"a bad id":         func(in *isolator.App) { in.App.ID = "../../etc" },
	} {
		in := s.input()
		change(&in)
		if _, err := s.iso.App(in); !errors.Is(err, pod.ErrInvalid) {
			t.Errorf("%s: want pod.ErrInvalid, got %v", what, err)
		}
	}
}

func (s suite) cleanup(t *testing.T) {
	for range 2 {
		if err := s.iso.Cleanup(t.Context(), s.input().Pod); err != nil {
			t.Errorf("Cleanup of a pod that left nothing: %v", err)
		}
	}
}
