package engine

import (
	"errors"
	"fmt"
	"strings"

	"gantry/internal/disk"
	"gantry/internal/pod"
	"gantry/internal/podstore"
	"gantry/internal/systemd"
	"gantry/internal/unit"
)

// Records are written in one piece, but disks fail and people make mistakes. What is up
// must be in kubelet's lists all the same, or it starts a second copy of it: the last
// record that was read counts for one that is damaged.

func (e *Engine) lastKnown(id pod.ID) *entry {
	e.view.mu.RLock()
	defer e.view.mu.RUnlock()
	return e.view.entries[id]
}

// podRecord reads a pod's record, or takes the one that was read last.
func (e *Engine) podRecord(id pod.ID) (*pod.Pod, error) {
	p, err := e.store.ReadPod(id)
	if old := e.lastKnown(id); old != nil && errors.Is(err, pod.ErrInvalid) {
		return old.pod, nil
	}
	return p, err
}

// readApp reads an app's records, or takes those that were read last.
func (e *Engine) readApp(p, app pod.ID, old *appEntry) (podstore.Record, error) {
	rec, err := e.store.ReadApp(p, app)
	if errors.Is(err, pod.ErrInvalid) && old != nil {
		e.toldDamaged(p, err)
		return old.Record, nil
	}
	return rec, err
}

func (e *Engine) toldDamaged(id pod.ID, err error) {
	e.log.Error("a record is damaged: the last known one is used", "pod", id, "dir", e.store.Pod(id), "err", err)
}

// mayHide is for a pod whose records are damaged, and were never read by this program.
// It may be left out if it is down: kubelet makes it again. It must not be if something of
// it is up: a second copy would use the same volumes. What it is cannot be made up of
// the rest, down to the UID by which kubelet knows it, so that nothing is listed then. That
// is hard on a node's other pods, but they run on, it takes a server that was started after
// the damage, and one command ends it. Programs that look once serve no kubelet.
func (e *Engine) mayHide(id pod.ID, units map[string]systemd.State, why error) error {
	up, err := e.unitsUp(id, units)
	if err != nil {
		return fmt.Errorf("%w: %w", pod.ErrUnavailable, err)
	}
	p, err := e.store.ReadPod(id)
	if len(up) == 0 || !e.isLive() || err == nil && p.Owner != pod.OwnerCRI {
		e.log.Error("a pod whose records are damaged is hidden", "pod", id, "dir", e.store.Pod(id), "err", why)
		return nil
	}
	return fmt.Errorf("pod %s is up and a record in %s is damaged (%w): put it right, or run \"systemctl stop %s\", remove that directory and run \"gantry gc\": %w",
		id, e.store.Pod(id), unkind(why), strings.Join(up, " "), pod.ErrUnavailable)
}

// unitsUp are the units of a pod that systemd has, with those of its apps.
func (e *Engine) unitsUp(id pod.ID, units map[string]systemd.State) (up []string, err error) {
	apps, err := e.store.AppIDs(id)
	if err != nil {
		return nil, err
	}
	found := []systemd.State{units[unit.Pod(string(id))]}
	for _, app := range apps {
		found = append(found, appUnit(units, app))
	}
	for _, s := range found {
		if s.Loaded() && s.Active != systemd.Failed && s.Active != systemd.Inactive {
			up = append(up, s.Name)
		}
	}
	return up, nil
}

// unreadPods are those that are not known whole, and are on disk still: what they have
// is not to be taken from them.
func (e *Engine) unreadPods() (ids []pod.ID) {
	e.view.mu.RLock()
	defer e.view.mu.RUnlock()
	for id := range e.view.unread {
		if disk.Exists(e.store.Pod(id)) { // no signal tells of one that was removed by hand
			ids = append(ids, id)
		}
	}
	return ids
}

// hides tells of a pod that has more than what is known of it.
func (e *Engine) hides(id pod.ID) bool {
	e.view.mu.RLock()
	defer e.view.mu.RUnlock()
	return e.view.unread[id] != nil
}

func (e *Engine) anyUnread() bool { return len(e.unreadPods()) > 0 }
