package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"gantry/internal/isolator"
	"gantry/internal/pod"
	"gantry/internal/podstore"
	"gantry/internal/unit"
)

// rewriteLimits is for the end of a daemon-reload. PID 1 has written the limits of
// all units anew, as it knows them: rounded, and without those that it has no
// property for. Pods are done at once, each under its lock, so that an update or a
// start under way is not undone; those without such limits are not touched.
func (e *Engine) rewriteLimits(ctx context.Context) {
	for _, p := range e.limitedPods() {
		go func() {
			ctx, cancel := context.WithTimeout(ctx, opTime)
			defer cancel()
			err := noPanic(e.log, "write limits again", func() error { return e.rewritePod(ctx, p) })
			if err != nil && ctx.Err() == nil {
				e.log.Warn("cannot write the limits of a pod's apps again after a daemon-reload", "pod", p.ID, "err", err)
			}
		}()
	}
}

// limitedPods are those with an app that may run and has limits written by us.
func (e *Engine) limitedPods() []*pod.Pod {
	e.view.mu.RLock()
	defer e.view.mu.RUnlock()
	var out []*pod.Pod
	for _, t := range e.view.entries {
		for _, a := range t.apps {
			if files, err := e.exactLimits(t.pod, a.Record); a.Exit == nil && (err != nil || len(files) > 0) {
				out = append(out, t.pod)
				break
			}
		}
	}
	return out
}

func (e *Engine) exactLimits(p *pod.Pod, rec podstore.Record) ([]isolator.CgroupFile, error) {
	iso, ok := e.iso[p.Isolator].(resizer)
	if !ok {
		return nil, nil
	}
	r := rec.App.Resources
	if rec.Updated != nil {
		r = *rec.Updated
	}
	_, files, err := iso.Resources(r)
	return files, err
}

// rewritePod reads the records again: the view may not know yet what the last
// holder of the lock did, nor what another program did.
func (e *Engine) rewritePod(ctx context.Context, p *pod.Pod) error {
	lock, err := e.lockPod(ctx, p.ID)
	if err != nil {
		return ignore(err, pod.ErrNotFound)
	}
	apps, err := e.store.AppIDs(p.ID)
	errs := []error{err}
	for _, id := range apps {
		rec, err := e.store.ReadApp(p.ID, id)
		if err == nil && rec.Run != nil && rec.Exit == nil {
			err = e.stops.unlessKilled(id, func() error { return e.rewriteApp(p, rec) })
		}
		errs = append(errs, ignore(err, pod.ErrNotFound))
	}
	return errors.Join(append(errs, lock.Unlock())...)
}

// rewriteApp writes into the cgroup of an app, if that is there: the app may have
// just ended.
func (e *Engine) rewriteApp(p *pod.Pod, rec podstore.Record) error {
	files, err := e.exactLimits(p, rec)
	if err != nil {
		return fmt.Errorf("app %s: %w", rec.App.ID, err)
	}
	dir := filepath.Join(e.cfg.Cgroups, unit.CgroupOf(p.Slice), unit.App(string(rec.App.ID)))
	var errs []error
	for _, f := range files {
		err := writeExisting(filepath.Join(dir, f.Name), f.Value)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("app %s: %s = %s: %w", rec.App.ID, f.Name, f.Value, err))
		}
	}
	return errors.Join(errs...)
}

func writeExisting(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}
