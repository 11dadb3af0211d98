package engine

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"gantry/internal/pod"
)

// hostMounts reads those mounts of the host that a path may be on: apps are started in
// its mount namespace, while this program may be in one of its own, where nothing is
// shared.
func (e *Engine) hostMounts(path string) ([]*mountinfo.Info, error) {
	f, err := os.Open(filepath.Join(e.cfg.Proc, "1/mountinfo"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return mountinfo.GetMountsFromReader(f, mountinfo.ParentsFilter(path))
}

// mountOf finds the mount that a path without symbolic links is on.
func (e *Engine) mountOf(path string) (*mountinfo.Info, error) {
	all, err := e.hostMounts(path)
	if err != nil {
		return nil, fmt.Errorf("find the mount of %s: %w", path, err)
	}
	at := rootMount(all)
	if at == nil {
		return nil, fmt.Errorf("find the mount of %s: the mount table has no root", path)
	}
	return walkMounts(all, at), nil
}

// rootMount is the mount on / whose parent is none of the namespace.
func rootMount(all []*mountinfo.Info) *mountinfo.Info {
	for _, m := range all {
		isParent := func(o *mountinfo.Info) bool { return o.ID == m.Parent && o != m }
		if m.Mountpoint == "/" && !slices.ContainsFunc(all, isParent) {
			return m
		}
	}
	return nil
}

// walkMounts goes from mount to mount as the kernel does on its way along a path, of
// which all are parents, so that mounts which others hide do not count.
func walkMounts(all []*mountinfo.Info, at *mountinfo.Info) *mountinfo.Info {
	for {
		var next *mountinfo.Info
		for _, m := range all {
			if m.Parent == at.ID && m != at && (next == nil || len(m.Mountpoint) < len(next.Mountpoint)) {
				next = m
			}
		}
		if next == nil {
			return at
		}
		at = next
	}
}

// propagates tells whether mounts come through a mount from another, or go to another too.
func propagates(m *mountinfo.Info) (from, to bool) {
	for tag := range strings.FieldsSeq(m.Optional) {
		from = from || strings.HasPrefix(tag, "shared:") || strings.HasPrefix(tag, "master:")
		to = to || strings.HasPrefix(tag, "shared:")
	}
	return from, to
}

// checkPropagation refuses a mount that could not pass on what is asked for: the kernel
// makes it all the same, and no mount ever comes through.
func (e *Engine) checkPropagation(m pod.Mount) error {
	if m.Propagation != pod.PropagationSlave && m.Propagation != pod.PropagationShared {
		return nil
	}
	on, err := e.mountOf(m.Source)
	if err != nil {
		return err
	}
	switch from, to := propagates(on); {
	case m.Propagation == pod.PropagationShared && !to:
		return fmt.Errorf("propagation to the host: %s is not a shared mount (mount --make-shared %s makes it one): %w", on.Mountpoint, on.Mountpoint, pod.ErrInvalid)
	case !from:
		return fmt.Errorf("propagation from the host: %s is neither a shared mount nor a slave of one (mount --make-shared %s makes it one): %w", on.Mountpoint, on.Mountpoint, pod.ErrInvalid)
	}
	return nil
}

// idMapRefused says why a mount cannot have users of its own, with the file system's name.
func (e *Engine) idMapRefused(source string, why unix.Errno) error {
	what := "its file system"
	if on, err := e.mountOf(source); err == nil {
		what = fmt.Sprintf("%s, of type %s,", on.Mountpoint, on.FSType)
	}
	if why != unix.EINVAL && why != unix.EPERM {
		return fmt.Errorf("try whether %s can have ID-mapped mounts: %w", what, why)
	}
	return fmt.Errorf("the pod has a user namespace, and %s cannot have ID-mapped mounts (%w): %w", what, why, pod.ErrInvalid)
}
