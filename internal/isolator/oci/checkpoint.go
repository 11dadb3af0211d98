package oci

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"gantry/internal/isolator"
	"gantry/internal/isolator/recipe"
	"gantry/internal/pod"
	"gantry/internal/unit"
)

// checkpointRoot is where a copy of the runtime's record is.
const checkpointRoot = "runtime"

// Checkpoint prepares a directory for the state of a running app, and returns the unit
// that writes it there. The app goes on. The cgroup is frozen meanwhile: whatever
// becomes of the runtime, the unit's end thaws it.
//
// Crun freezes the cgroup that its record names, and ours name none, since their
// cgroups are systemd's: it is given a copy of the record that does.
func (o *OCI) Checkpoint(in isolator.App, dir, cgroup string, limit time.Duration) (unit.Unit, error) {
	state := o.runtimeState(in.App.ID)
	if state == "" || o.dialect.group {
		return unit.Unit{}, fmt.Errorf("isolator %s: checkpoints need crun: %w", o.cfg.Name, pod.ErrUnsupported)
	}
	if err := copyState(state, filepath.Join(dir, checkpointRoot, string(in.App.ID)), cgroup); err != nil {
		return unit.Unit{}, fmt.Errorf("copy the runtime's record: %w", err)
	}
	for _, name := range []string{isolator.CheckpointImages, isolator.CheckpointWork} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			return unit.Unit{}, err
		}
	}
	crun := o.cfg.Runtime[0]
	args := []string{
		crun, "--root", filepath.Join(dir, checkpointRoot), "--log", filepath.Join(dir, isolator.CheckpointLog), "checkpoint",
		"--image-path", filepath.Join(dir, isolator.CheckpointImages), "--work-path", filepath.Join(dir, isolator.CheckpointWork),
		"--leave-running", "--file-locks", "--tcp-established", "--manage-cgroups-mode=ignore",
	}
	if in.App.TTY {
		args = append(args, "--shell-job")
	}
	// Who kills the unit may meet the first, and the app would stand still for ever: then
	// the second runs.
	thaw := o.recipe.Run("thaw", cgroup)
	first := thaw
	first.IgnoreFailure = true
	return unit.Unit{Name: unit.Checkpoint(string(in.App.ID)), Properties: []unit.Property{
		{Name: "Description", Value: unit.String("Checkpoint of " + recipe.Describe(in.Pod.Namespace, in.Pod.Name, in.App.Name))},
		{Name: "Type", Value: unit.String("oneshot")},
		{Name: "ExecStart", Value: unit.Commands{{Path: crun, Args: append(args, string(in.App.ID))}}},
		{Name: "ExecStopPost", Value: unit.Commands{first, thaw}},
		{Name: "TimeoutStartUSec", Value: unit.Duration(limit)},
		{Name: "TimeoutStopUSec", Value: unit.Duration(10 * time.Second)},
		{Name: "CollectMode", Value: unit.String("inactive-or-failed")},
		{Name: "UMask", Value: unit.Uint32(0o077)},
		{Name: "Slice", Value: unit.String(unit.Slice)},
	}}, nil
}

// copyState copies a record of crun's that names no cgroup, and names one.
func copyState(from, to, cgroup string) error {
	if err := os.MkdirAll(to, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		data, err := os.ReadFile(filepath.Join(from, e.Name()))
		if err != nil {
			return err
		}
		if e.Name() == "status" {
			if data, err = withCgroup(data, cgroup); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(to, e.Name()), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func withCgroup(status []byte, cgroup string) ([]byte, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(status, &fields); err != nil {
		return nil, fmt.Errorf("status: %w", err)
	}
	if _, ok := fields["cgroup-path"]; !ok {
		return nil, fmt.Errorf("status: this crun says nothing of cgroups: %w", pod.ErrUnsupported)
	}
	path, err := json.Marshal(cgroup)
	if err != nil {
		return nil, err
	}
	fields["cgroup-path"] = path
	return json.Marshal(fields)
}
