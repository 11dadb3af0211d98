package cli

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"

	"gantry/internal/engine"
	"gantry/internal/pod"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestMain: the test binary is gantry, too, with a fake engine whose state is in
// the directory that FAKE names.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"gantry":       func() { os.Exit(Main(context.Background(), fakeEnv(), os.Args[1:])) },
		"kubelet-pod":  func() { exit(kubeletPod(os.Args[1])) },
		"wait-running": func() { exit(waitRunning(os.Args[1])) },
		"wait-log":     func() { exit(waitLog(os.Args[1], os.Args[2])) },
	})
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func fakeEnv() Env {
	f := &fakeEngine{root: os.Getenv("FAKE")}
	f.store = images{f}
	uid, _ := strconv.Atoi(os.Getenv("FAKE_UID"))
	return Env{
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, UID: uid, Now: fakeNow, Version: "v1.2.3",
		Open: func(context.Context, OpenOptions) (*Backend, error) {
			return &Backend{Engine: f, Images: f.store, Root: f.root, Close: func() error { return nil }}, nil
		},
		OpenTeardown: func(OpenOptions) (Teardown, error) { return f, nil },
	}
}

// kubeletPod puts a pod of a kubelet into the state.
func kubeletPod(name string) error {
	f := &fakeEngine{root: os.Getenv("FAKE")}
	p, err := f.CreatePod(context.Background(), pod.Pod{Owner: pod.OwnerCRI, Name: name, Namespace: "kube-system", UID: "u1"})
	if err != nil {
		return err
	}
	return f.change(func(s *fakeState) error {
		a := &pod.App{ID: s.id(), Pod: p.ID, Name: "main", Created: s.now(), Argv: []string{"sleep"}, LogPath: filepath.Join(f.dir(p.ID), "main.log"), Image: pod.Image{Name: "registry.k8s.io/main"}}
		st := s.pod(p.ID)
		st.Apps = append(st.Apps, pod.AppStatus{App: a, Phase: pod.Running, Started: s.now(), PID: 1234})
		return nil
	})
}

// waitRunning waits until an app of a pod runs.
func waitRunning(name string) error {
	return until(func(p pod.PodStatus) bool { return p.Name == name && len(inPhase(p.Apps, pod.Running)) > 0 })
}

// waitLog waits until an app of a pod has printed a text.
func waitLog(name, text string) error {
	return until(func(p pod.PodStatus) bool {
		if p.Name != name {
			return false
		}
		data, err := os.ReadFile(p.Apps[0].LogPath)
		return err == nil && strings.Contains(string(data), text)
	})
}

func until(ok func(pod.PodStatus) bool) error {
	f := &fakeEngine{root: os.Getenv("FAKE")}
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		pods, err := f.Pods(engine.Filter{})
		if err != nil {
			return err
		}
		if slices.ContainsFunc(pods, ok) {
			return nil
		}
		<-time.After(5 * time.Millisecond)
	}
	return errors.New("waited for 20 s in vain")
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		UpdateScripts:       *update,
		Setup: func(e *testscript.Env) error {
			// Relative, so that paths in answers are the same everywhere.
			const fake = ".fake"
			e.Setenv("FAKE", fake)
			e.Setenv("FAKE_UID", "0")
			return os.MkdirAll(filepath.Join(e.WorkDir, fake, "pods"), 0o700)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"code": code},
	})
}

// code runs a command and checks its exit code: "code 42 gantry run …".
func code(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N command...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// TestReference: docs/cli.md says what the commands say.
func TestReference(t *testing.T) {
	t.Parallel()
	const path = "../../docs/cli.md"
	var got bytes.Buffer
	if err := markdown(&got, newRoot(&Env{})); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(path, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got.String()); d != "" {
		t.Errorf("docs/cli.md is out of date, run make golden (-want +got):\n%s", d)
	}
}

// TestManPages: each command has a page that says something.
func TestManPages(t *testing.T) {
	t.Parallel()
	root := newRoot(&Env{})
	eachCommand(root, func(cmd *cobra.Command) {
		var b bytes.Buffer
		if err := manPage(&b, cmd); err != nil {
			t.Fatal(err)
		}
		if cmd.Short == "" || !strings.Contains(b.String(), ".SH \"EXIT STATUS\"") {
			t.Errorf("%s: %s", cmd.CommandPath(), b.String())
		}
		for line := range strings.SplitSeq(b.String(), "\n") {
			if strings.HasPrefix(line, "'") {
				t.Errorf("%s: a line is a control line by accident: %s", cmd.CommandPath(), line)
			}
		}
	})
}
