package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/isolator"
	"gantry/internal/pod"
	"gantry/internal/stdio"
	"gantry/internal/systemd"
	"gantry/internal/unit"
)

// StartApp starts a prepared app, once.
func (e *Engine) StartApp(ctx context.Context, id pod.ID) error {
	_, err := e.joins.do(ctx, startKey(id), func(ctx context.Context) (pod.ID, error) {
		ctx, cancel := context.WithTimeout(ctx, opTime)
		defer cancel()
		return id, e.startApp(ctx, id)
	})
	return err
}

func (e *Engine) startApp(ctx context.Context, id pod.ID) error {
	app, err := e.App(id)
	if err != nil {
		return err
	}
	lock, err := e.lockPod(ctx, app.Pod)
	if err != nil {
		return err
	}
	defer lock.Unlock()
	s, err := e.Pod(app.Pod)
	if err != nil {
		return err
	}
	if started(s, id) {
		return nil // by a call whose caller did not live to hear of it
	}
	if err = e.mayStart(s, id); err == nil {
		st := &starting{e: e, p: s.Pod, a: app}
		err = e.run(ctx, st.operation())
	}
	if err != nil && s.Owner == pod.OwnerCRI {
		err = also(err, e.neverStarted(context.WithoutCancel(ctx), app, err))
	}
	return also(err, e.reloadApp(s.ID, id, err == nil))
}

// neverStarted records that an app's start failed before it had a process. Kubelet starts
// none twice: without an end it would make another at once, again and again, whatever the
// pod's restart policy says.
func (e *Engine) neverStarted(ctx context.Context, a pod.AppStatus, why error) error {
	rec, err := e.store.ReadApp(a.Pod, a.ID)
	if err != nil || rec.Run != nil || rec.Exit != nil {
		return ignore(err, pod.ErrNotFound)
	}
	ctx, cancel := context.WithTimeout(ctx, undoTime)
	defer cancel()
	units, err := e.cfg.Systemd.Units(ctx, unit.App(string(a.ID)), unit.Exit(string(a.ID)))
	if err != nil || slices.ContainsFunc(units, func(s systemd.State) bool {
		return s.Loaded() && (s.Name == unit.App(string(a.ID)) || s.Running() || s.Job)
	}) {
		return nil // it may be on its way, or its end is being recorded
	}
	return e.store.WriteExit(a.App, &pod.Exit{
		Code: pod.ExitCodeStartError, Reason: pod.ReasonStartError, Message: why.Error(), Finished: time.Now(), BootID: e.bootID,
	})
}

func started(s pod.PodStatus, id pod.ID) bool {
	return slices.ContainsFunc(s.Apps, func(a pod.AppStatus) bool { return a.ID == id && a.Phase == pod.Running })
}

func (e *Engine) mayStart(s pod.PodStatus, id pod.ID) error {
	if !s.Ready {
		return fmt.Errorf("start app %s: pod %s is not ready: %w", id, s.ID, pod.ErrState)
	}
	for _, a := range s.Apps {
		if a.ID != id {
			continue
		}
		if a.Phase != pod.Prepared {
			return fmt.Errorf("start app %s: it is %s already: %w", id, a.Phase, pod.ErrState)
		}
		if err := e.mayReplace(s, a.App); err != nil {
			return err
		}
	}
	if s.CgroupParent == "" {
		return nil
	}
	// Systemd would make the slice again, without the limits kubelet gave it.
	dir := filepath.Join(e.cfg.Cgroups, unit.CgroupOf(s.Slice))
	if _, err := os.Stat(dir); err != nil {
		return fmt.Errorf("start app %s: the pod's cgroup %s is gone: %w", id, dir, pod.ErrState)
	}
	return nil
}

type starting struct {
	e    *Engine
	p    *pod.Pod
	a    pod.AppStatus
	unit unit.Unit
	aux  []unit.Unit
}

func (st *starting) operation() operation {
	return operation{"start app", []step{
		{"plan", st.makePlan, nil}, // the files go with the app; a second start writes them anew
		{"unit", st.startUnit, st.stopUnit},
	}}
}

// makePlan writes the plan's files. They are not synced: an app whose machine went
// down is never started again.
func (st *starting) makePlan(ctx context.Context) error {
	secret, err := st.e.store.ReadSecret(st.p.ID, st.a.ID)
	if err != nil {
		return err
	}
	for _, id := range imagesOf(st.a.App) {
		if err := st.e.cfg.Images.EnsureTree(ctx, id); err != nil {
			return err
		}
	}
	join, err := st.e.joinedPIDs(ctx, st.p, st.a.App)
	if err != nil {
		return err
	}
	plan, aux, err := st.e.plan(st.p, st.a.App, secret, st.a.Current, join)
	if err != nil {
		return err
	}
	last := len(plan.Units) - 1
	st.unit, st.aux = plan.Units[last], append(aux, plan.Units[:last]...)
	spec, err := json.Marshal(st.stdioSpec())
	if err != nil {
		return err
	}
	files := append(plan.Files, isolator.File{Path: stdio.SpecName, Mode: 0o644, Data: spec})
	for _, f := range files {
		if err := st.e.writePlanFile(filepath.Join(st.e.store.App(st.p.ID, st.a.ID), f.Path), f); err != nil {
			return fmt.Errorf("write %s: %w", f.Path, err)
		}
	}
	return nil
}

// writePlanFile leaves a file that is as it should be: a start that a killed program
// began may be reading it.
func (e *Engine) writePlanFile(path string, f isolator.File) error {
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, f.Data) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW|unix.O_CLOEXEC, fs.FileMode(f.Mode))
	if err != nil {
		return err
	}
	_, err = out.Write(f.Data)
	return errors.Join(err, out.Chmod(fs.FileMode(f.Mode)), out.Close())
}

func (st *starting) stdioSpec() stdio.Spec {
	return stdio.Spec{
		App: st.a.ID, AppName: st.a.Name, Pod: st.p.ID, PodName: st.p.Name, Namespace: st.p.Namespace,
		Unit: unit.App(string(st.a.ID)), Log: st.a.LogPath,
		Stdin: st.a.Stdin, StdinOnce: st.a.StdinOnce, TTY: st.a.TTY, Journal: st.e.cfg.JournalMirror,
	}
}

func (e *Engine) joinedPIDs(ctx context.Context, p *pod.Pod, a *pod.App) (pids, error) {
	var join pids
	inside := e.ownKernel(p)
	if p.Namespaces.PID == pod.NamespacePod && !inside {
		s, err := e.cfg.Systemd.State(ctx, unit.Holder(string(p.ID)))
		if err != nil {
			return join, err
		}
		if join.holder = s.MainPID; join.holder == 0 {
			return join, fmt.Errorf("the holder of pod %s's PID namespace is gone: %w", p.ID, pod.ErrState)
		}
	}
	if a.Namespaces.PID != pod.NamespaceTarget {
		return join, nil
	}
	var err error
	join.target, err = e.targetPID(p, a)
	return join, err
}

// targetPID is the process whose PID namespace an app is to be in, 0 if it has its number
// elsewhere.
func (e *Engine) targetPID(p *pod.Pod, a *pod.App) (int, error) {
	target, err := e.App(a.Namespaces.Target)
	if err != nil {
		return 0, fmt.Errorf("target app: %w", err)
	}
	if target.Pod != p.ID {
		return 0, fmt.Errorf("target app %s is in another pod: %w", target.ID, pod.ErrInvalid)
	}
	if target.Phase != pod.Running || target.PID == 0 && !e.ownKernel(p) {
		return 0, fmt.Errorf("target app %s is %s: %w", target.ID, target.Phase, pod.ErrState)
	}
	return target.PID, nil
}

// ownKernel tells of a pod whose processes have their numbers in a kernel of its own.
func (e *Engine) ownKernel(p *pod.Pod) bool {
	iso, ok := e.iso[p.Isolator]
	return ok && iso.Features().OwnKernel
}

func (st *starting) startUnit(ctx context.Context) error {
	err := st.e.cfg.Systemd.Launch(ctx, st.unit, st.aux...)
	if errors.Is(err, systemd.ErrLost) {
		err = st.startAgain(ctx)
	}
	if errors.Is(err, systemd.ErrUnitExists) {
		err = st.joinStart(ctx)
	}
	var job *systemd.JobError
	if !errors.As(err, &job) {
		return err
	}
	rec, readErr := st.e.store.ReadApp(st.p.ID, st.a.ID)
	if readErr != nil || rec.Exit == nil {
		return err
	}
	if rec.Run != nil && rec.Exit.Reason != pod.ReasonStartError {
		return nil // it ran, and ended while the bus was away: its unit reads failed
	}
	if rec.Exit.Message == "" {
		return err
	}
	return fmt.Errorf("%s: %s", rec.Exit.Reason, rec.Exit.Message) // as gantry-init has recorded it
}

// startAgain is for a start of which the connection to PID 1 lost sight. An app
// that ran has left a record; one that has none never had a process.
func (st *starting) startAgain(ctx context.Context) error {
	rec, err := st.e.store.ReadApp(st.p.ID, st.a.ID)
	if err != nil || rec.Run != nil || rec.Exit != nil {
		return err
	}
	return st.e.cfg.Systemd.Launch(ctx, st.unit, st.aux...)
}

// joinStart waits for a start that is under way: the program that began it was
// killed, and PID 1 goes on with it.
func (st *starting) joinStart(ctx context.Context) error {
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		s, err := st.e.cfg.Systemd.State(ctx, st.unit.Name)
		switch {
		case err != nil:
			return err
		case s.Active == systemd.Active && !s.Job:
			return nil
		case !s.Job && s.Active != systemd.Activating && s.Active != systemd.Deactivating:
			return &systemd.JobError{Unit: st.unit.Name, Result: systemd.Failed}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// stopUnit gives no grace: what it stops was never said to run.
func (st *starting) stopUnit(ctx context.Context) error {
	if err := st.e.kill(ctx, st.a); err != nil {
		return err
	}
	return st.e.stopUnless(ctx, unit.App(string(st.a.ID)), func() bool { return st.e.appHangs(st.a.App) })
}
