// Package contract holds what every isolator must keep to, as checks that need no machine:
// a test runs them (package isolatortest), and "gantry isolator check" does.
package contract

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"gantry/internal/isolator"
	"gantry/internal/pod"
	"gantry/internal/unit"
)

const (
	podID = "aaaaaaaaaaaaaaaaaaaaaaaa"
	appID = "bbbbbbbbbbbbbbbbbbbbbbbb"

	// Secret is the value of a variable that the app of the checks is given.
	Secret = "hunter2-and-a-half"
)

// Check is a part of the contract.
type Check struct {
	Name string
	// Run returns all that is wrong.
	Run func(ctx context.Context) error
}

// Checks are those of an isolator. change, which may be nil, makes the pods such as the
// isolator takes.
func Checks(iso isolator.Isolator, change func(*isolator.App)) []Check {
	s := suite{iso, change}
	pure := func(check func() error) func(context.Context) error {
		return func(context.Context) error { return check() }
	}
	return []Check{
		{"name", pure(s.name)},
		{"a plan is pure", pure(s.pure)},
		{"units", pure(s.units)},
		{"late units", pure(s.late)},
		{"files", pure(s.files)},
		{"secrets stay secret", pure(s.secrets)},
		{"features are honoured or refused", pure(s.features)},
		{"nonsense is refused", pure(s.nonsense)},
		{"cleanup is idempotent", s.cleanup},
	}
}

// Input is the plain pod and app of the checks, made anew for each use.
func Input(iso isolator.Isolator) isolator.App { return suite{iso: iso}.input() }

// wrong collects what is.
type wrong struct{ errs []error }

func (w *wrong) add(format string, args ...any) { w.errs = append(w.errs, fmt.Errorf(format, args...)) }

func (w *wrong) all() error { return errors.Join(w.errs...) }

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
		Pod: p, App: a, Secret: pod.Secret{Env: []string{"TOKEN=" + Secret}}, Resources: a.Resources,
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
func (s suite) plans(in isolator.App) (sandbox, app isolator.Plan, err error) {
	if sandbox, err = s.sandbox(in); err != nil {
		return sandbox, app, fmt.Errorf("sandbox: %w", err)
	}
	if app, err = s.iso.App(in); err != nil {
		return sandbox, app, fmt.Errorf("app: %w", err)
	}
	return sandbox, app, nil
}

// ValidName tells whether an isolator may be called so.
func ValidName(name string) bool { return regexp.MustCompile(`^[a-z][a-z0-9-]*$`).MatchString(name) }

func (s suite) name() error {
	if !ValidName(s.iso.Name()) {
		return fmt.Errorf("name %q: want lower case letters, digits and hyphens", s.iso.Name())
	}
	return nil
}

// pure checks that the same pod yields the same plan, and is left as it was.
func (s suite) pure() error {
	in := s.input()
	before := dump(in)
	pod1, app1, err := s.plans(in)
	if err != nil {
		return err
	}
	var w wrong
	if dump(in) != before {
		w.add("planning changed its input")
	}
	pod2, app2, err := s.plans(s.input())
	if err != nil {
		return err
	}
	if dump(pod1) != dump(pod2) || dump(app1) != dump(app2) {
		w.add("the same pod yields another plan")
	}
	return w.all()
}

func dump(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(data)
}

func (s suite) units() error {
	in := s.input()
	sandbox, app, err := s.plans(in)
	if err != nil {
		return err
	}
	var w wrong
	// What stands for an app of another kernel may have many: the app's is that of its own.
	elsewhere := s.iso.Features().Isolation == isolator.IsolationMachine
	for _, units := range [][]unit.Unit{sandbox.Units, sandbox.Late, app.Units} {
		for _, u := range units {
			if err := u.Validate(); err != nil {
				w.add("%w", err)
			}
			if u.Get("CollectMode") == nil && !strings.HasSuffix(u.Name, ".slice") {
				w.add("%s: without CollectMode= a failed unit stays for ever", u.Name)
			}
			if r, ok := u.Get("Restart").(unit.String); ok && r != "no" && !(elsewhere && r == "on-abort") {
				w.add("%s: Restart=%s: an app has one life", u.Name, r)
			}
		}
	}
	if got := lastUnit(sandbox).Name; got != unit.Pod(podID) {
		w.add("the pod's unit is %s, want %s", got, unit.Pod(podID))
	}
	u := lastUnit(app)
	if u.Name != unit.App(appID) {
		w.add("the app's unit is %s, want %s", u.Name, unit.App(appID))
	}
	if got := u.Get("Slice"); got != unit.String(in.Pod.Slice) {
		w.add("the app is in slice %v, want %s", got, in.Pod.Slice)
	}
	if stops, ok := u.Get("ExecStopPost").(unit.Commands); !ok || len(stops) == 0 {
		w.add("nothing records the app's exit")
	}
	for _, rel := range []string{"After", "Requisite"} {
		if !lists(u.Get(rel), unit.Pod(podID)) {
			w.add("%s= of the app lacks the pod's unit", rel)
		}
	}
	if !lists(u.Get("Requires"), in.Rootfs.Unit) || !lists(u.Get("After"), in.Rootfs.Unit) {
		w.add("the app does not keep its image mounted: want Requires= and After= its mount unit")
	}
	return w.all()
}

// late checks that what is started after the pod's unit ends with it, and can be found again
// by who did not start it.
func (s suite) late() error {
	in := s.input()
	sandbox, app, err := s.plans(in)
	if err != nil {
		return err
	}
	var w wrong
	if len(app.Late) > 0 {
		w.add("the app has late units: it has one program")
	}
	names := []string{}
	for _, u := range sandbox.Late {
		names = append(names, u.Name)
		if got := u.Get("Slice"); got != unit.String(in.Pod.Slice) {
			w.add("%s is in slice %v, want %s", u.Name, got, in.Pod.Slice)
		}
		for _, rel := range []string{"After", "Requisite", "PartOf"} {
			if !lists(u.Get(rel), unit.Pod(podID)) {
				w.add("%s= of %s lacks the pod's unit", rel, u.Name)
			}
		}
	}
	slices.Reverse(names)
	known := []string{}
	if b, ok := s.iso.(isolator.Belated); ok {
		known = b.LateUnits(podID)
	}
	if !slices.Equal(names, known) {
		w.add("LateUnits are %q, those of the plan %q, the last first", known, names)
	}
	return w.all()
}

func lastUnit(p isolator.Plan) unit.Unit {
	if len(p.Units) == 0 {
		return unit.Unit{Name: "(none)"}
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

func (s suite) files() error {
	sandbox, app, err := s.plans(s.input())
	if err != nil {
		return err
	}
	var w wrong
	for _, p := range []isolator.Plan{sandbox, app} {
		seen := map[string]bool{}
		for _, f := range p.Files {
			if path.IsAbs(f.Path) || path.Clean(f.Path) != f.Path || strings.HasPrefix(f.Path, "..") || f.Path == "." {
				w.add("file %q is not below the directory", f.Path)
			}
			if seen[f.Path] {
				w.add("file %q is written twice", f.Path)
			}
			seen[f.Path] = true
			if f.Mode&0o022 != 0 || f.Mode == 0 {
				w.add("file %q has mode %04o", f.Path, f.Mode)
			}
			if f.Secret && f.Mode&0o077 != 0 {
				w.add("secret file %q has mode %04o: others may read it", f.Path, f.Mode)
			}
		}
	}
	return w.all()
}

// secrets checks that an environment value is in secret files only.
func (s suite) secrets() error {
	in := s.input()
	_, app, err := s.plans(in)
	if err != nil {
		return err
	}
	var w wrong
	if strings.Contains(app.Text(), Secret) {
		w.add("the plan prints a secret")
	}
	found := false
	for _, f := range app.Files {
		switch {
		case !strings.Contains(string(f.Data), Secret):
		case f.Secret:
			found = true
		default:
			w.add("file %s has a secret and is not marked so", f.Path)
		}
	}
	if !found {
		w.add("the app does not get its environment")
	}
	in.Secret.Env = []string{"=" + Secret}
	if _, err := s.iso.App(in); err == nil || strings.Contains(err.Error(), Secret) {
		w.add("a bad variable: want an error that keeps the value to itself, got %v", err)
	}
	exec, err := s.iso.Exec(s.input(), pod.Process{Argv: []string{"true"}, Env: []string{"B=" + Secret}})
	if err != nil {
		return errors.Join(w.all(), fmt.Errorf("exec: %w", err))
	}
	args := strings.Join(exec.Args, " ")
	if strings.Contains(args, Secret) || !strings.Contains(args, isolator.ProcessArg) || !path.IsAbs(exec.Path) {
		w.add("Exec: command %s %s", exec.Path, args)
	}
	return w.all()
}

// nonsense checks what every isolator must refuse before anything was made.
func (s suite) nonsense() error {
	changes := map[string]func(*isolator.App){
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
	}
	var w wrong
	for _, what := range slices.Sorted(maps.Keys(changes)) {
		in := s.input()
		changes[what](&in)
		if _, err := s.iso.App(in); !errors.Is(err, pod.ErrInvalid) {
			w.add("%s: want pod.ErrInvalid, got %v", what, err)
		}
	}
	return w.all()
}

func (s suite) cleanup(ctx context.Context) error {
	for range 2 {
		if err := s.iso.Cleanup(ctx, s.input().Pod); err != nil {
			return fmt.Errorf("cleanup of a pod that left nothing: %w", err)
		}
	}
	return nil
}
