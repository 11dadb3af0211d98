package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/disk"
	"gantry/internal/image"
	"gantry/internal/namespace"
	"gantry/internal/network"
	"gantry/internal/pod"
	"gantry/internal/systemd"
	"gantry/internal/unit"
)

// GC removes what nobody owns any more: half-made and half-deleted directories,
// units, namespaces, exits and leases of pods that are gone, and what the options
// add. It is fail-closed: when something cannot be read, what depends on it is
// kept. It never touches a pod of the other owner than the CLI's.
func (e *Engine) GC(ctx context.Context, o GCOptions) (GCReport, error) {
	g := &gc{e: e, o: o}
	pods, err := e.Pods(Filter{})
	if err != nil {
		return g.report, err
	}
	g.pods = map[pod.ID]pod.PodStatus{}
	for _, p := range pods {
		g.pods[p.ID] = p
	}
	if g.units, err = e.units(ctx); err != nil {
		return g.report, err
	}
	for _, part := range []func(context.Context) error{
		g.exitedPods, g.unfinished, g.leftovers, g.orphanUnits, g.orphanNamespaces, g.orphanExits, g.execs, g.network, g.checkNetworks, g.images,
	} {
		err = errors.Join(err, part(ctx))
	}
	return g.report, err
}

type gc struct {
	e      *Engine
	o      GCOptions
	pods   map[pod.ID]pod.PodStatus
	units  map[string]systemd.State
	report GCReport
}

// take reports an item and, unless this is a dry run, removes it.
func (g *gc) take(item GCItem, remove func() error) error {
	if !g.o.DryRun {
		if err := remove(); err != nil {
			return fmt.Errorf("gc: %s %s: %w", item.Kind, item.Name, err)
		}
	}
	g.report.Items = append(g.report.Items, item)
	return nil
}

func (g *gc) exitedPods(ctx context.Context) error {
	if g.o.ExitedPods <= 0 {
		return nil
	}
	var errs []error
	for _, p := range g.pods {
		if p.Owner != pod.OwnerCLI {
			continue
		}
		if g.e.hides(p.ID) {
			continue
		}
		if !longDead(p, g.o.ExitedPods) {
			errs = append(errs, g.dateLost(p))
			continue
		}
		why := fmt.Sprintf("all its apps exited more than %s ago", g.o.ExitedPods)
		if len(p.Apps) == 0 {
			why = fmt.Sprintf("it was made more than %s ago and never got an app", g.o.ExitedPods)
		}
		item := GCItem{Kind: "pod", Name: string(p.ID), Why: why}
		errs = append(errs, g.take(item, func() error { return g.e.RemovePod(ctx, p.ID) }))
	}
	return errors.Join(errs...)
}

// longDead: an app whose end nobody saw may have run until a moment ago; dateLost
// gives it a time. One that was never started in a pod that is down never will be.
func longDead(p pod.PodStatus, age time.Duration) bool {
	for _, a := range p.Apps {
		switch {
		case a.Phase == pod.Exited && !a.Lost && time.Since(a.Finished) >= age:
		case a.NeverStarts(p.Ready) && time.Since(a.Created) >= age:
		default:
			return false
		}
	}
	return len(p.Apps) > 0 || time.Since(p.Created) >= age
}

// dateLost records the end of apps that were lost, with a power cut for example: it
// was seen now, and their age is counted from then.
func (g *gc) dateLost(p pod.PodStatus) error {
	var errs []error
	for _, a := range p.Apps {
		if !a.Lost || g.o.DryRun {
			continue
		}
		exit := *a.Exit
		exit.Finished = time.Now()
		errs = append(errs, g.e.recordLost(a.App, &exit))
	}
	return errors.Join(errs...)
}

// unfinished is for pods of the CLI whose creation or stop was interrupted: those
// that never were whole are removed, and of the others that are down is given back
// what they still hold. Their records stay, for longDead.
func (g *gc) unfinished(ctx context.Context) error {
	var errs []error
	for _, p := range g.pods {
		if p.Owner != pod.OwnerCLI || p.Ready {
			continue
		}
		if len(p.Apps) == 0 || g.holds(&p) {
			errs = append(errs, g.finish(ctx, p.ID))
		}
	}
	return errors.Join(errs...)
}

// holds tells whether a pod that is down has namespaces or a unit.
func (g *gc) holds(p *pod.PodStatus) bool {
	_, err := os.Lstat(g.e.runDir(p.ID))
	return err == nil || g.units[unit.Pod(string(p.ID))].Running()
}

// finish ends what was interrupted, unless it has changed since we listed it.
func (g *gc) finish(ctx context.Context, id pod.ID) error {
	lock, err := g.tryLock(ctx, id)
	if err != nil || lock == nil {
		return err
	}
	defer lock.Unlock()
	p, err := g.e.Pod(id)
	if err != nil {
		return ignore(err, pod.ErrNotFound)
	}
	switch {
	case g.e.unfinished(&p):
		item := GCItem{Kind: "pod", Name: string(id), Why: "its creation was interrupted"}
		err = g.take(item, func() error { return g.e.removeLocked(ctx, p.Pod, lock) })
		if !g.o.DryRun && err == nil {
			delete(g.pods, id)
		}
		return err
	case !p.Ready:
		item := GCItem{Kind: "namespaces", Name: string(id), Why: "its pod is down: its stop was interrupted"}
		return g.take(item, func() error {
			return errors.Join(g.e.run(ctx, g.e.podStop(p.Pod, lock, noApps)), g.e.reloadPodAsIs(ctx, id))
		})
	}
	return nil
}

// tryLock returns no lock for a pod that somebody works on, or that is gone. The
// plugin of a killed program that has the lock for too long is ended: the next
// collection gets it.
func (g *gc) tryLock(ctx context.Context, id pod.ID) (*disk.Lock, error) {
	lock, err := g.e.store.TryLock(id)
	switch {
	case errors.Is(err, disk.ErrLocked):
		if !g.o.DryRun {
			g.e.killStale(ctx, id)
		}
		return nil, nil
	case errors.Is(err, pod.ErrNotFound):
		return nil, nil
	}
	return lock, err
}

func (g *gc) leftovers(context.Context) error {
	left, err := g.e.store.Leftovers()
	errs := []error{err}
	for _, l := range left {
		if _, err := pod.ParseID(filepath.Base(l.Path)); err != nil && filepath.Dir(l.Path) == g.e.store.Prepare() {
			continue // the image store's
		}
		errs = append(errs, g.take(GCItem{Kind: "directory", Name: l.Path, Why: l.Why}, func() error { return g.e.store.Sweep(l) }))
	}
	return errors.Join(errs...)
}

// known tells whether a pod is on disk now: one that was made since we listed is.
func (g *gc) known(id pod.ID) bool {
	_, err := os.Lstat(g.e.store.Pod(id))
	return !errors.Is(err, fs.ErrNotExist)
}

func (g *gc) knownApp(id pod.ID) bool {
	for _, p := range g.pods {
		for _, a := range p.Apps {
			if a.ID == id {
				return true
			}
		}
	}
	// Made since? Look at the disk, whatever pod it is in.
	pods, err := os.ReadDir(g.e.store.Pods())
	if err != nil {
		return true // what cannot be read is kept
	}
	return slices.ContainsFunc(pods, func(p fs.DirEntry) bool {
		_, err := os.Lstat(g.e.store.App(pod.ID(p.Name()), id))
		return !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR)
	})
}

func (g *gc) orphanUnits(ctx context.Context) error {
	units, err := g.e.cfg.Systemd.Units(ctx, "gantry-app-*", "gantry-pod-*", "gantry-holder-*", "gantry-machine-*", "gantry-files-*", "gantry-*.slice")
	if err != nil {
		return err
	}
	var errs []error
	for _, u := range units {
		if !g.orphan(u) {
			continue
		}
		item := GCItem{Kind: "unit", Name: u.Name, Why: "its pod or app is not on disk"}
		errs = append(errs, g.take(item, func() error { return g.stop(ctx, u.Name) }))
	}
	return errors.Join(errs...)
}

// stop does not wait for what cannot die: systemd goes on by itself.
func (g *gc) stop(ctx context.Context, name string) error {
	bounded, cancel := context.WithTimeout(ctx, killTime)
	defer cancel()
	err := g.e.cfg.Systemd.Stop(bounded, name)
	if bounded.Err() != nil && ctx.Err() == nil {
		g.e.log.Warn("leaving a unit to systemd: it takes long to stop", "unit", name)
		return nil
	}
	return err
}

func (g *gc) orphan(u systemd.State) bool {
	if id, ok := unit.AppID(u.Name); ok {
		return !g.knownApp(pod.ID(id))
	}
	id, ok := unit.PodOf(u.Name)
	if _, err := pod.ParseID(id); !ok || err != nil || g.known(pod.ID(id)) {
		return false
	}
	return u.Running() || !strings.HasSuffix(u.Name, ".slice") // systemd knows slices that are none
}

func (g *gc) orphanNamespaces(context.Context) error {
	dir := filepath.Join(g.e.cfg.Run, "pods")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return ignore(err, fs.ErrNotExist)
	}
	var errs []error
	for _, entry := range entries {
		id, err := pod.ParseID(entry.Name())
		if err != nil || g.known(id) {
			continue
		}
		item := GCItem{Kind: "netns", Name: filepath.Join(dir, entry.Name()), Why: "its pod is not on disk"}
		errs = append(errs, g.take(item, func() error { return namespace.Remove(item.Name) }))
	}
	return errors.Join(errs...)
}

func (g *gc) orphanExits(context.Context) error {
	dir := filepath.Join(g.e.cfg.Run, "exits")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return ignore(err, fs.ErrNotExist)
	}
	var errs []error
	for _, entry := range entries {
		if id := pod.ID(entry.Name()); !g.knownApp(id) {
			item := GCItem{Kind: "exit", Name: entry.Name(), Why: "its app is not on disk"}
			errs = append(errs, g.take(item, func() error { return g.e.forgetExit(id) }))
		}
	}
	return errors.Join(errs...)
}

func (g *gc) execs(ctx context.Context) error { return g.e.staleExecs(ctx, g.take) }

// network takes leases back that no pod holds. Pods that are stopped but could
// not give theirs back keep their record, and are tried again here.
func (g *gc) network(ctx context.Context) error {
	var keep []network.Attachment
	var errs []error
	for _, p := range g.pods {
		if p.Ready || p.HostNetwork() {
			keep = append(keep, g.e.down.attachment(p.Pod, nil))
			continue
		}
		goes := func(i GCItem) bool { return i.Name == string(p.ID) }
		if g.o.DryRun && slices.ContainsFunc(g.report.Items, goes) {
			continue // its network goes with it
		}
		errs = append(errs, g.stale(ctx, p))
	}
	for _, id := range g.e.unreadPods() { // whether they are up is not looked at
		keep = append(keep, network.Attachment{Pod: id})
	}
	if !g.o.DryRun { // which of the leases that no pod has would go only the plugins know
		errs = append(errs, g.e.cfg.Network.GC(ctx, keep))
	}
	return errors.Join(errs...)
}

// stale gives back the network of a pod that is not up, if it has one still. A
// pod that is locked is being worked on; it may have become ready by the time we
// have the lock, so both questions are asked under it.
func (g *gc) stale(ctx context.Context, p pod.PodStatus) error {
	lock, err := g.tryLock(ctx, p.ID)
	if err != nil || lock == nil {
		return err
	}
	var saved network.Result
	has, err := g.e.store.ReadNetwork(p.ID, &saved)
	has = has || g.e.store.HasAttachment(p.ID)
	if err == nil && has {
		var s systemd.State
		s, err = g.e.cfg.Systemd.State(ctx, unit.Pod(string(p.ID)))
		has = !s.Running()
	}
	if err == nil && has {
		item := GCItem{Kind: "lease", Name: string(p.ID), Why: "its pod is not running"}
		err = g.take(item, func() error { return g.e.down.delNetwork(ctx, p.Pod, lock) })
	}
	return errors.Join(err, lock.Unlock())
}

func (g *gc) images(ctx context.Context) error {
	items, err := g.e.cfg.Images.GC(ctx, image.GCOptions{DryRun: g.o.DryRun, Images: g.o.Images, Keep: g.e.ImageInUse})
	for _, i := range items {
		g.report.Items = append(g.report.Items, GCItem{Kind: i.Kind, Name: i.Name, Why: i.Why, Bytes: i.Bytes})
	}
	return err
}

// ImageInUse tells whether an app, of whatever owner and phase, needs an image.
// When that cannot be found out it is in use.
func (e *Engine) ImageInUse(id string) bool {
	pods, err := e.Pods(Filter{})
	if err != nil {
		return true
	}
	if e.anyUnread() {
		return true
	}
	for _, p := range pods {
		for _, a := range p.Apps {
			if slices.Contains(imagesOf(a.App), id) {
				return true
			}
		}
	}
	return false
}

// recordLost writes down the end of an app of which there is no record.
func (e *Engine) recordLost(a *pod.App, exit *pod.Exit) error {
	if err := e.store.WriteExit(a, exit); err != nil {
		return err
	}
	return e.reloadApp(a.Pod, a.ID, false)
}
