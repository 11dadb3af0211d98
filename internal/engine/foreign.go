package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"gantry/internal/pod"
)

// Pods of the command line are made and started by programs that come and go. Of
// these a live view sees pods come and apps end, but not apps come and start: they
// are read anew whenever somebody asks for them. Kubelet's lists, which must be
// quick, never do.

// readForeign reads the pods of other programs anew, if there are any.
func (e *Engine) readForeign() error {
	e.view.mu.RLock()
	var ids []pod.ID
	for id, t := range e.view.entries {
		if t.pod.Owner == pod.OwnerCLI {
			ids = append(ids, id)
		}
	}
	live := e.view.live
	e.view.mu.RUnlock()
	if !live || len(ids) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(e.life, lookTime)
	defer cancel()
	e.view.change.Lock()
	defer e.view.change.Unlock()
	units, err := e.units(ctx)
	if err != nil {
		return errors.Join(pod.ErrUnavailable, err)
	}
	defer e.view.write()()
	for _, id := range ids {
		t, err := e.loadPod(id, units, e.view.entries[id])
		switch {
		case errors.Is(err, pod.ErrNotFound):
			e.dropLocked(id)
		case err != nil:
			return err
		default:
			e.dropLocked(id)
			e.view.entries[id] = t
			delete(e.view.unread, id)
			if t.hidden != nil {
				e.view.unread[id] = t.hidden
			}
			for app := range t.apps {
				e.view.owner[app] = id
			}
		}
	}
	return nil
}

// imageCache are the images of apps that the view does not know, by app. An app's
// record never changes.
type imageCache struct {
	mu  sync.Mutex
	ids map[pod.ID][]string
}

// ImagesOf tells which images the apps of one owner's pods need. It is asked for in
// each of kubelet's lists of images: a live view answers without systemd, and opens
// records of apps that it has never seen only.
func (e *Engine) ImagesOf(owner pod.Owner) (map[string]bool, error) {
	if err := e.look(); err != nil {
		return nil, err
	}
	seen := map[pod.ID]map[pod.ID][]string{} // pod -> app -> images
	e.view.mu.RLock()
	live := e.view.live
	for id, t := range e.view.entries {
		if t.pod.Owner != owner {
			continue
		}
		seen[id] = map[pod.ID][]string{}
		for app, a := range t.apps {
			seen[id][app] = imagesOf(a.App)
		}
	}
	e.view.mu.RUnlock()
	if live && owner != pod.OwnerCRI {
		if err := e.seeForeign(seen); err != nil {
			return nil, err
		}
	}
	used := map[string]bool{}
	for _, apps := range seen {
		for _, ids := range apps {
			for _, id := range ids {
				used[id] = true
			}
		}
	}
	return used, nil
}

// seeForeign replaces the apps of pods by those that are on disk now: other programs
// make and remove them.
func (e *Engine) seeForeign(seen map[pod.ID]map[pod.ID][]string) error {
	e.images.mu.Lock()
	defer e.images.mu.Unlock()
	unknown := map[pod.ID][]string{}
	for p, old := range seen {
		apps, err := e.store.AppIDs(p)
		if err != nil {
			return fmt.Errorf("%w: %w", pod.ErrUnavailable, err)
		}
		seen[p] = map[pod.ID][]string{}
		for _, app := range apps {
			ids, ok := old[app]
			if !ok {
				if ids, err = e.foreignImages(p, app); err != nil {
					return err
				}
				unknown[app] = ids
			}
			seen[p][app] = ids
		}
	}
	e.images.ids = unknown
	return nil
}

func (e *Engine) foreignImages(p, app pod.ID) ([]string, error) {
	if ids, ok := e.images.ids[app]; ok {
		return ids, nil
	}
	rec, err := e.store.ReadApp(p, app)
	if err != nil {
		return nil, ignore(err, pod.ErrNotFound) // removed while we looked
	}
	return imagesOf(rec.App), nil
}

// imagesOf are the images an app needs: its own, and those it mounts.
func imagesOf(a *pod.App) []string {
	ids := []string{a.Image.ID}
	for _, m := range a.Mounts {
		if m.Image != nil {
			ids = append(ids, m.Image.ID)
		}
	}
	return ids
}
