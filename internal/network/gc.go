package network

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"gantry/internal/pod"
)

// GC releases what pods outside keep left behind: attachments that the journal
// still knows, leases of host-local that only its own files know, and whatever
// the plugins find themselves, if they know GC (CNI 1.1). Attachments of other
// programs on the same network are never touched. It goes on after an error.
func (n *Network) GC(ctx context.Context, keep []Attachment) error {
	start := time.Now()
	kept := make(map[pod.ID]bool, len(keep))
	for _, a := range keep {
		kept[a.Pod] = true
	}
	left := func(id pod.ID) bool {
		return !kept[id] && (n.cfg.Exists == nil || !n.cfg.Exists(id))
	}
	var errs []error
	ids, err := n.records()
	errs = append(errs, err)
	lists := n.knownLists(ctx, ids)
	dirs, networks := leaseDirs(n.leaseDir, lists...), map[string]bool{}
	for _, l := range lists {
		if l != nil {
			networks[l.Name] = true
		}
	}
	for _, id := range ids {
		if ctx.Err() == nil && left(id) {
			n.log.Info("attachment of a pod that is gone is released", "pod", id)
			errs = append(errs, n.Del(ctx, Attachment{Pod: id}, nil))
		}
	}
	errs = append(errs, n.sweepJournal(start))
	errs = append(errs, n.gcLeases(ctx, dirs, left), n.gcTorn(ctx, dirs, networks))
	errs = append(errs, n.gcPlugins(ctx, dirs, kept, left))
	if err := errors.Join(append(errs, ctx.Err())...); err != nil {
		return failed("gc", start, err)
	}
	return nil
}

// sweepJournal removes what writers left that were killed: they take no second.
func (n *Network) sweepJournal(now time.Time) error {
	torn, err := filepath.Glob(filepath.Join(n.recordDir(), newFile))
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range torn {
		if info, err := os.Lstat(path); err == nil && now.Sub(info.ModTime()) > time.Minute {
			errs = append(errs, os.Remove(path))
		}
	}
	return errors.Join(errs...)
}

// gcPlugins tells the plugins which attachments are valid.
func (n *Network) gcPlugins(ctx context.Context, dirs []string, kept map[pod.ID]bool, left func(pod.ID) bool) error {
	s := n.load(ctx)
	if s.list == nil || s.list.DisableGC || !knows(s.list, "1.1.0") {
		return nil
	}
	// No pod may begin to attach between the list of valid attachments and the end
	// of the plugins' work: its lease would be taken from it.
	unlock, err := n.lockGC(ctx, unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer unlock()
	ids, err := n.records()
	if err != nil {
		return err
	}
	for _, id := range ids {
		if !left(id) {
			kept[id] = true
		}
	}
	valid := []types.GCAttachment{}
	for id := range kept {
		valid = append(valid, types.GCAttachment{ContainerID: string(id), IfName: InterfaceName})
	}
	// Another runtime's pods may live on the same network.
	all, err := leases(dirs, s.list.Name)
	if err != nil {
		n.log.Warn("plugins are not told what is in use: what is not named they would take away", "err", err)
		return nil // the error is gcLeases', too
	}
	for _, l := range all {
		if _, err := pod.ParseID(l.id); err != nil {
			valid = append(valid, types.GCAttachment{ContainerID: l.id, IfName: l.ifname})
		}
	}
	slices.SortFunc(valid, func(a, b types.GCAttachment) int {
		return slices.Compare([]string{a.ContainerID, a.IfName}, []string{b.ContainerID, b.IfName})
	})
	ctx, cancel := context.WithTimeoutCause(ctx, n.cfg.Timeout, n.timeUp())
	defer cancel()
	return n.tellGC(ctx, s.list, slices.Compact(valid))
}

func (n *Network) tellGC(ctx context.Context, list *libcni.NetworkConfigList, valid []types.GCAttachment) error {
	c := &call{n: n, op: "gc"}
	var errs []error
	for _, p := range list.Plugins {
		// An early text of the specification had another name for the key.
		conf, err := libcni.InjectConf(p, map[string]any{"cni.dev/valid-attachments": valid, "cni.dev/attachments": valid})
		if err == nil {
			_, err = c.plugin(ctx, "GC", list, conf, record{}, nil, "")
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// lockGC takes the lock that keeps the plugins' GC and the beginning of an Add
// apart, in whatever process they are.
func (n *Network) lockGC(ctx context.Context, how int) (func(), error) {
	if err := os.MkdirAll(n.cfg.CacheDir, 0o700); err != nil {
		return nil, fmt.Errorf("lock network: %w", err)
	}
	unlock, err := flock(ctx, filepath.Join(n.cfg.CacheDir, "gc.lock"), how)
	if err != nil {
		return nil, fmt.Errorf("lock network: %w", err)
	}
	return unlock, nil
}

// flock locks a file, which it makes if need be, and returns what unlocks it.
func flock(ctx context.Context, path string, how int) (func(), error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	unlock, _, err := flockOpen(ctx, f, how)
	return unlock, err
}

// flockOpen locks an open file, tells which one it is, and returns what unlocks and closes it.
func flockOpen(ctx context.Context, f *os.File, how int) (func(), os.FileInfo, error) {
	for {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if err == nil {
			at, err := f.Stat()
			if err != nil {
				f.Close()
			}
			return func() { f.Close() }, at, err
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, nil, err
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, nil, fmt.Errorf("wait for %s: %w", f.Name(), context.Cause(ctx))
		case <-time.After(10 * time.Millisecond):
		}
	}
}
