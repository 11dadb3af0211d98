package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gantry/internal/disk"
	"gantry/internal/isolator"
	"gantry/internal/pod"
	"gantry/internal/systemd"
	"gantry/internal/systemd/systemdtest"
	"gantry/internal/unit"
)

// freezing is an isolator that can write checkpoints.
type freezing struct{ isolator.Isolator }

func (freezing) Checkpoint(in isolator.App, _, _ string, _ time.Duration) (unit.Unit, error) {
	return unit.Unit{Name: unit.Checkpoint(string(in.App.ID))}, nil
}

// broken is a PID 1 that runs nothing, and counts what it was told to stop.
type broken struct {
	*systemdtest.Fake
	err   error
	stops int
}

func (x *broken) Launch(context.Context, unit.Unit, ...unit.Unit) error { return x.err }
func (x *broken) Stop(context.Context, string) error                    { x.stops++; return nil }

// TestCheckpointThaws: an app whose checkpoint failed goes on, whatever should have seen
// to that was killed. One that another checkpoint holds is left to that.
func TestCheckpointThaws(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		launch, want error
		gone         bool
		frozen       string
		stops        int
	}{
		"failed":          {&systemd.JobError{Unit: "x", Result: systemd.Failed}, nil, false, "0", 0},
		"another":         {systemd.ErrUnitExists, pod.ErrState, false, "1", 0},
		"late":            {context.Canceled, context.Canceled, true, "0", 1},
		"late, another's": {systemd.ErrUnitExists, pod.ErrState, true, "1", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newLiveWorld(t)
			manager := &broken{Fake: w.manager.Fake, err: c.launch}
			w.cfg.Systemd, w.cfg.Cgroups = manager, t.TempDir()
			w.iso["oci"] = freezing{w.iso["oci"]}
			a := w.app(w.pod())
			w.run(a)
			w.load()
			s, err := w.App(a.ID)
			if err != nil {
				t.Fatal(err)
			}
			work, err := w.newCheckpoint(s)
			if err != nil {
				t.Fatal(err)
			}
			dir := filepath.Join(w.cfg.Cgroups, unit.CgroupOf(work.pod.Slice), unit.App(string(a.ID)))
			freeze := filepath.Join(dir, "cgroup.freeze")
			if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(freeze, []byte("1"), 0o600)); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if c.gone {
				cancel()
			}
			if err := work.dump(ctx, time.Minute); err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if got, err := os.ReadFile(freeze); string(got) != c.frozen || err != nil {
				t.Errorf("cgroup.freeze is %q, want %q (%v)", got, c.frozen, err)
			}
			if manager.stops != c.stops {
				t.Errorf("%d stops, want %d", manager.stops, c.stops)
			}
			if err := work.close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestCheckpointRefused: an isolator that cannot write checkpoints is named, whatever else
// is lacking, and nothing is left.
func TestCheckpointRefused(t *testing.T) {
	t.Parallel()
	w := newLiveWorld(t)
	w.iso["oci"] = struct{ isolator.Isolator }{w.iso["oci"]} // that cannot
	a := w.app(w.pod())
	w.run(a)
	w.load()
	to := filepath.Join(t.TempDir(), "c.tar")
	err := w.CheckpointApp(t.Context(), a.ID, to, 0)
	if !errors.Is(err, pod.ErrUnsupported) || !strings.Contains(err.Error(), "isolator oci: not supported") {
		t.Errorf("got %v", err)
	}
	left, err := os.ReadDir(w.store.Prepare())
	if err != nil || len(left) != 0 || disk.Exists(to) {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestArchiveHasNoNameBefore: whoever is killed over an archive leaves nothing, and one that is
// there stays as it is.
func TestArchiveHasNoNameBefore(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	to := filepath.Join(dir, "c.tar")
	for i, c := range []struct{ err, want error }{{errors.New("cut off"), nil}, {nil, nil}, {nil, os.ErrExist}} {
		out, publish, err := openArchive(to)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprintf(out, "try %d", i); err != nil {
			t.Error(err)
		}
		if files, err := os.ReadDir(dir); err != nil || len(files) > 1 || len(files) == 1 && files[0].Name() != "c.tar" {
			t.Errorf("before it is published there are %v, %v", files, err)
		}
		if err := publish(c.err); c.err == nil && !errors.Is(err, c.want) || c.err != nil && err == nil {
			t.Errorf("try %d: %v", i, err)
		}
		out.Close()
	}
	if got, err := os.ReadFile(to); string(got) != "try 1" || err != nil {
		t.Errorf("the archive is %q, %v", got, err)
	}
}
