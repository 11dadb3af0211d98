package criserver

import (
	"errors"
	"fmt"
	"slices"

	"gantry/internal/engine"
	"gantry/internal/pod"
)

// Pods of other owners do not exist for kubelet: it would kill them. Asking for
// one by its ID finds nothing; an attempt to change one says whose it is.

// pods lists what the CRI may see. A pod that is being made is not among them: to kubelet
// one without an address has failed, and instead of asking for it again, which joins the
// call under way, it would end it and want another.
func (s *Server) pods() ([]pod.PodStatus, error) {
	all, err := s.cfg.Engine.Pods(engine.Filter{Owner: pod.OwnerCRI})
	return slices.DeleteFunc(all, func(p pod.PodStatus) bool { return p.Making }), err
}

// findPod looks a pod up by its ID, or by as much of it as is unique.
func (s *Server) findPod(id string) (pod.PodStatus, error) {
	return findPod(s.cfg.Engine, id)
}

func findPod(e engine.API, id string) (pod.PodStatus, error) {
	if full, err := pod.ParseID(id); err == nil {
		p, err := e.Pod(full)
		if err == nil && p.Owner != pod.OwnerCRI {
			return pod.PodStatus{}, &foreignError{id}
		}
		return p, err
	}
	if id == "" || !pod.IsIDPrefix(id) {
		return pod.PodStatus{}, fmt.Errorf("pod %q: %w", id, pod.ErrNotFound)
	}
	all, err := e.Pods(engine.Filter{Owner: pod.OwnerCRI})
	if err != nil {
		return pod.PodStatus{}, err
	}
	return only("pod", id, all, func(p pod.PodStatus) pod.ID { return p.ID })
}

// findApp looks a container up by its ID, or by as much of it as is unique.
func findApp(e engine.API, id string) (pod.AppStatus, error) {
	if full, err := pod.ParseID(id); err == nil {
		a, err := e.App(full)
		if err != nil {
			return pod.AppStatus{}, err
		}
		_, err = findPod(e, string(a.Pod))
		return a, err
	}
	if id == "" || !pod.IsIDPrefix(id) {
		return pod.AppStatus{}, fmt.Errorf("container %q: %w", id, pod.ErrNotFound)
	}
	all, err := e.Pods(engine.Filter{Owner: pod.OwnerCRI})
	if err != nil {
		return pod.AppStatus{}, err
	}
	var apps []pod.AppStatus
	for _, p := range all {
		apps = append(apps, p.Apps...)
	}
	return only("container", id, apps, func(a pod.AppStatus) pod.ID { return a.ID })
}

func (s *Server) findApp(id string) (pod.AppStatus, error) { return findApp(s.cfg.Engine, id) }

// only returns the one of all whose ID begins with prefix.
func only[T any](kind, prefix string, all []T, id func(T) pod.ID) (found T, err error) {
	n := 0
	for _, v := range all {
		if len(id(v)) >= len(prefix) && string(id(v)[:len(prefix)]) == prefix {
			found = v
			n++
		}
	}
	switch n {
	case 0:
		return found, fmt.Errorf("%s %s: %w", kind, prefix, pod.ErrNotFound)
	case 1:
		return found, nil
	}
	return found, fmt.Errorf("%s %s: %d have IDs that begin so: %w", kind, prefix, n, pod.ErrInvalid)
}

// foreignError is a pod that the CRI does not own: not found, for all but those
// who want to change it.
type foreignError struct{ id string }

func (e *foreignError) Error() string        { return "pod " + e.id + ": not found among the pods of the CRI" }
func (e *foreignError) Is(target error) bool { return target == pod.ErrNotFound }

// gone makes a stop or a remove of something that is not there succeed, as the CRI
// demands, but does not claim that somebody else's pod was stopped, nor that one is
// gone because something that it needs is. find looks for it.
func gone(err error, find func() error) error {
	var foreign *foreignError
	switch {
	case errors.As(err, &foreign):
		return fmt.Errorf("pod %s: %w", foreign.id, pod.ErrNotOwner)
	case errors.Is(err, pod.ErrNotFound) && errors.Is(find(), pod.ErrNotFound):
		return nil
	}
	return err
}

func (s *Server) goneApp(err error, id string) error {
	return gone(err, func() error { _, err := s.findApp(id); return err })
}

func (s *Server) gonePod(err error, id string) error {
	return gone(err, func() error { _, err := s.findPod(id); return err })
}
