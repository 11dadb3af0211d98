package external

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gantry/internal/isolator"
	"gantry/internal/isolator/contract"
	"gantry/internal/pod"
	"gantry/internal/unit"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name+".txt")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("plan differs (-want +got; go test -update rewrites):\n%s", diff)
	}
}

func config() Config {
	return Config{
		Init: "/usr/libexec/gantry/gantry-init", StdioSocket: "/run/gantry/stdio.sock", Arch: "amd64", AnyOwner: true,
		Limit: time.Minute, // of a machine that is busy
	}
}

const (
	usualFeatures = `{"version":1,"features":{"isolation":"namespaces","podNetwork":true,"hostNetwork":true,"tty":true}}`
	usualApp      = `{"version":1,"plan":{"run":{"argv":["/usr/bin/wrap","{app}"]}}}`
	usualExec     = `{"version":1,"exec":{"argv":["/usr/bin/enter","{app}"]}}`
)

// script is an isolator that does a thing for each verb, in the shell's words.
func script(t *testing.T, verbs map[string]string) *External {
	t.Helper()
	var b strings.Builder
	b.WriteString("#!/bin/sh\ncat >request-$1 2>/dev/null\ncase $1 in\n")
	usual := map[string]string{
		verbFeatures: "echo '" + usualFeatures + "'", verbApp: "echo '" + usualApp + "'", verbExec: "echo '" + usualExec + "'",
		"*": `echo '{"version":1}'`,
	}
	for _, verb := range []string{verbFeatures, verbApp, verbExec, verbSandbox, verbCleanup, "*"} {
		do, ok := verbs[verb]
		if !ok {
			do = usual[verb]
		}
		if do != "" {
			fmt.Fprintf(&b, "%s)\n%s\n;;\n", verb, do)
		}
	}
	b.WriteString("esac\n")
	return executable(t, strings.Replace(b.String(), "cat >request-$1 2>/dev/null", "cat >/dev/null", 1))
}

// writeProgram lets no other test start a process meanwhile: that one would have the file
// open for writing, and the kernel runs no such file.
func writeProgram(t *testing.T, path, text string) {
	t.Helper()
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

func executable(t *testing.T, text string) *External {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mine")
	writeProgram(t, path, text)
	x, err := New(path, config())
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// TestProgram: an answer without {app} is all of the app.
func TestProgram(t *testing.T) {
	t.Parallel()
	x := script(t, map[string]string{verbApp: `cat <<'END'
{"version":1,"plan":{
  "run":{"argv":["/usr/bin/machine","--config","/x/config"],"env":["KEY=of the machine"]},
  "files":[{"path":"config","text":"a secret"},{"path":"bin/hook","text":"a program\n","public":true,"executable":true}],
  "devices":[{"path":"/dev/kvm","permissions":"rw"}],
  "properties":{"LockPersonality":true}}}
END`})
	p, err := x.App(contract.Input(x))
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "program", p.Text())
}

func TestExec(t *testing.T) {
	t.Parallel()
	p := pod.Process{Argv: []string{"true"}, TTY: true}
	x := script(t, nil)
	got, err := x.Exec(contract.Input(x), p)
	if err != nil {
		t.Fatal(err)
	}
	in := contract.Input(x)
	want := "/usr/bin/enter " + x.cfg.Init + " exec " + in.Dir.App + " {process} {log} {console}"
	if strings.Join(got.Args, " ") != want || got.Path != "/usr/bin/enter" {
		t.Errorf("got %q, want %q", got.Args, want)
	}
	own := script(t, map[string]string{verbExec: `echo '{"version":1,"exec":{"argv":["/usr/bin/machine","run","{process}"],"input":"what"}}'`})
	if _, err := own.Exec(in, p); !errors.Is(err, pod.ErrUnsupported) {
		t.Errorf("a terminal that the command has no place for: %v", err)
	}
	p.TTY = false
	if got, err := own.Exec(in, p); err != nil || string(got.Process) != "what" {
		t.Errorf("input %q, %v", got.Process, err)
	}
}

// TestHostile: whatever an executable does, there is an error in time that names it.
func TestHostile(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		do   string
		want string
		kind error
	}{
		"nothing":         {"true", "end of JSON", nil},
		"garbage":         {"echo hello", "invalid character", nil},
		"not JSON's kind": {"echo '[1]'", "cannot unmarshal", nil},
		"fails":           {"echo sorry >&2; exit 3", "exit status 3: it says: sorry", nil},
		"fails, answers":  {"echo '" + usualApp + "'; exit 3", "exit status 3", nil},
		"killed":          {"kill -9 $$", "signal: killed", nil},
		"huge":            {"yes '{' | head -c 4000000", "more than 1048576 bytes", nil},
		"endless":         {"yes", "more than 1048576 bytes", nil},
		"says much":       {"head -c 1000000 /dev/zero | tr '\\0' x >&2; exit 1", "xxx…", nil},
		"other version":   {`echo '{"version":2,"what":"ever"}'`, "speaks version 2", pod.ErrUnsupported},
		"no version":      {`echo '{}'`, "speaks version 0", pod.ErrUnsupported},
		"two documents":   {"echo '" + usualApp + usualApp + "'", "invalid character", nil},
		"unknown word":    {`echo '{"version":1,"plan":{"run":{"argv":["/a"]},"limit":1}}'`, `unknown field "limit"`, nil},
		"other part":      {"echo '" + usualExec + "'", `with "plan": false`, nil},
		"two parts":       {`echo '{"version":1,"plan":{"run":{"argv":["/a"]}},"exec":{"argv":["/a","{app}"]}}'`, `with "exec": true`, nil},
		"refuses":         {`echo '{"version":1,"error":{"kind":"unsupported","message":"no  such   thing"}}'; exit 1`, "no such thing", pod.ErrUnsupported},
		"odd refusal":     {`echo '{"version":1,"error":{"kind":"fancy"}}'`, `kind "fancy"`, nil},
		"prints secrets":  {"echo got " + contract.Secret + " >&2; exit 1", "got …", nil},
		"leaves a child":  {"echo '" + usualApp + "'; (trap '' HUP; exec sleep 1000) &", "left a process behind", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := script(t, map[string]string{verbApp: c.do})
			_, err := x.App(contract.Input(x))
			kind := c.kind
			if kind == nil {
				kind = pod.ErrUnavailable
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || !errors.Is(err, kind) {
				t.Fatalf("want %v with %q, got %v", kind, c.want, err)
			}
			if strings.Contains(err.Error(), contract.Secret) || len(err.Error()) > 3000 || !strings.Contains(err.Error(), "isolator mine: app: ") {
				t.Errorf("unfit: %v", err)
			}
		})
	}
}

func TestHangs(t *testing.T) {
	t.Parallel()
	x := script(t, map[string]string{verbApp: "sleep 1000", verbCleanup: "sleep 1000"})
	in := contract.Input(x)
	if err := x.Usable(); err != nil {
		t.Fatal(err)
	}
	x.cfg.Limit = 50 * time.Millisecond
	if _, err := x.App(in); !errors.Is(err, pod.ErrUnavailable) || !strings.Contains(err.Error(), "no answer within 50ms") {
		t.Errorf("got %v", err)
	}
	x.cfg.Limit = time.Minute
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := x.Cleanup(ctx, in.Pod); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("cleanup: %v", err)
	}
}

// TestGetsNothing: of our environment, and of descriptors, an executable has nothing.
func TestGetsNothing(t *testing.T) {
	t.Setenv("GANTRY_TEST_SECRET", "hunter2")
	dir := t.TempDir()
	x := script(t, map[string]string{verbApp: "env >" + dir + "/env; ls -l /proc/self/fd >" + dir + "/fds; echo $# $0 >" + dir + "/args; echo '" + usualApp + "'"})
	if _, err := x.App(contract.Input(x)); err != nil {
		t.Fatal(err)
	}
	for file, bad := range map[string]string{"env": "hunter2", "fds": " 4 -> ", "args": contract.Secret} {
		data, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil || len(data) == 0 || strings.Contains(string(data), bad) {
			t.Errorf("%s: %s%v", file, data, err)
		}
	}
}

// TestUnit: what the engine relies on is there, whatever is answered.
func TestUnit(t *testing.T) {
	t.Parallel()
	x := script(t, nil)
	in := contract.Input(x)
	in.App.Devices = nil
	p, err := x.App(in)
	if err != nil {
		t.Fatal(err)
	}
	u := p.Units[len(p.Units)-1]
	if u.Get("KillMode") != unit.String("control-group") || u.Get("NotifyAccess") != unit.String("all") || u.Get("Slice") != unit.String(in.Pod.Slice) {
		t.Errorf("unit:\n%s", u.Text())
	}
}

func TestRefusedBeforeItIsAsked(t *testing.T) {
	t.Parallel()
	x := script(t, map[string]string{verbApp: "kill -9 $$", verbSandbox: `echo '{"version":1,"error":{"kind":"forbidden","message":"not you"}}'`})
	in := contract.Input(x)
	in.App.Security.Privileged = true
	if _, err := x.App(in); !errors.Is(err, pod.ErrUnsupported) {
		t.Errorf("privileged: %v", err)
	}
	if _, err := x.Sandbox(isolator.Sandbox{Pod: in.Pod, Dir: in.Dir}); !errors.Is(err, pod.ErrForbidden) {
		t.Errorf("a pod that it refuses: %v", err)
	}
}

// TestCannotUndo: what cannot be asked is not what failed.
func TestCannotUndo(t *testing.T) {
	t.Parallel()
	x := script(t, map[string]string{verbFeatures: "exit 1", verbCleanup: "exit 1"}) // for lack of memory, say
	in := contract.Input(x)
	for _, gone := range []bool{false, true} {
		if gone {
			if err := os.Remove(x.path); err != nil {
				t.Fatal(err)
			}
		}
		for _, err := range []error{x.Cleanup(t.Context(), in.Pod), x.Forget(t.Context(), in.App.ID)} {
			if err == nil || errors.Is(err, isolator.ErrCannotUndo) != gone {
				t.Errorf("gone: %v; got %v", gone, err)
			}
		}
	}
}

// TestReplaced: a file that was replaced is asked anew.
func TestReplaced(t *testing.T) {
	t.Parallel()
	x := script(t, nil)
	if !x.Features().TTY {
		t.Fatal("no TTY")
	}
	text := strings.Replace("#!/bin/sh\necho '"+usualFeatures+"'\n", `,"tty":true`, "", 1)
	next := x.path + ".next"
	writeProgram(t, next, text)
	if err := os.Rename(next, x.path); err != nil {
		t.Fatal(err)
	}
	if x.Features().TTY {
		t.Error("the features are those of the old file")
	}
	if err := os.Remove(x.path); err != nil {
		t.Fatal(err)
	}
	if err := x.Usable(); !errors.Is(err, pod.ErrUnavailable) || x.Features() != (isolator.Features{Isolation: isolator.IsolationMachine}) {
		t.Errorf("a file that is gone: %v", err)
	}
}
