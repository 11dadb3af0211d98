package cli

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gantry/internal/engine"
	"gantry/internal/pod"
)

// slowStart starts the app "second" some time after it was asked to, and attaches to
// none if told so.
type slowStart struct {
	*fakeEngine
	attachErr error
}

func (s *slowStart) StartApp(ctx context.Context, id pod.ID) error {
	a, err := s.App(id)
	if err != nil {
		return err
	}
	if a.Name == "second" {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	return s.fakeEngine.StartApp(ctx, id)
}

func (s *slowStart) Attach(ctx context.Context, id pod.ID, streams engine.Streams) error {
	if s.attachErr != nil {
		return s.attachErr
	}
	return s.fakeEngine.Attach(ctx, id, streams)
}

// twoApps is a runner of a pod whose first app has a terminal, with the user's keys.
func twoApps(t *testing.T, keys string, attachErr error) (*runner, *bytes.Buffer) {
	t.Helper()
	f := &slowStart{&fakeEngine{root: t.TempDir()}, attachErr}
	p, err := f.CreatePod(t.Context(), pod.Pod{Name: "both", Owner: pod.OwnerCLI})
	if err != nil {
		t.Fatal(err)
	}
	c := &created{pod: p}
	for _, spec := range []engine.AppSpec{
		{Name: "first", Command: []string{"cat"}, TTY: true, Stdin: true},
		{Name: "second", Command: []string{"sleep"}},
	} {
		spec.LogPath = filepath.Join(f.root, spec.Name+".log")
		a, err := f.CreateApp(t.Context(), p.ID, spec)
		if err != nil {
			t.Fatal(err)
		}
		c.apps = append(c.apps, a)
	}
	var stderr bytes.Buffer
	env := &Env{Stdin: strings.NewReader(keys), Stdout: &bytes.Buffer{}, Stderr: &stderr, Now: fakeNow}
	return &runner{env: env, be: &Backend{Engine: f}, created: c, interactive: true}, &stderr
}

func (r *runner) phases(t *testing.T) (out []pod.Phase) {
	t.Helper()
	s, err := r.be.Engine.Pod(r.created.pod.ID)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range s.Apps {
		out = append(out, a.Phase)
	}
	return out
}

// TestDetachBeforeAllStarted: who leaves while the second app is being started leaves
// a pod with two.
func TestDetachBeforeAllStarted(t *testing.T) {
	t.Parallel()
	r, stderr := twoApps(t, "\x10\x11", nil)
	if err := r.foreground(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := r.phases(t); got[0] != pod.Running || got[1] != pod.Running {
		t.Errorf("the apps are %v", got)
	}
	if !strings.Contains(stderr.String(), "the pod runs on: gantry attach both") {
		t.Errorf("said: %q", stderr)
	}
}

// TestSessionThatDoesNotBegin: where nobody can be attached no app is started.
func TestSessionThatDoesNotBegin(t *testing.T) {
	t.Parallel()
	away := errors.New("gantry-stdio is away")
	r, _ := twoApps(t, "", away)
	if err := r.foreground(t.Context()); !errors.Is(err, away) {
		t.Errorf("got %v", err)
	}
	for i, phase := range r.phases(t) {
		if phase == pod.Running {
			t.Errorf("app %d was started", i)
		}
	}
}
