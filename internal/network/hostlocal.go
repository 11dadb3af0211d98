package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	"golang.org/x/sys/unix"

	"gantry/internal/pod"
)

// host-local keeps one file for each address it gave, named by the address, with
// the container's ID and the interface in it. Of all address plugins it is the
// one without a memory elsewhere that could be asked, and the one everybody uses.

const defaultLeaseDir = "/var/lib/cni/networks"

type lease struct {
	dir     string // of all networks
	network string
	addr    string // as the file is named
	id      string
	ifname  string
}

func (l lease) path() string { return filepath.Join(l.dir, l.network, l.addr) }

// leaseDirs are the directories where host-local may keep leases: the usual one
// and those that the lists name.
func leaseDirs(usual string, lists ...*libcni.NetworkConfigList) []string {
	dirs := []string{usual}
	for _, list := range lists {
		if list == nil {
			continue
		}
		for _, p := range list.Plugins {
			var c struct {
				IPAM struct {
					Type    string `json:"type"`
					DataDir string `json:"dataDir"`
				} `json:"ipam"`
			}
			if json.Unmarshal(p.Bytes, &c) == nil && c.IPAM.Type == "host-local" && filepath.IsAbs(c.IPAM.DataDir) {
				dirs = append(dirs, filepath.Clean(c.IPAM.DataDir))
			}
		}
	}
	slices.Sort(dirs)
	return slices.Compact(dirs)
}

// knownLists are the configuration of now and those of the journal.
func (n *Network) knownLists(ctx context.Context, ids []pod.ID) []*libcni.NetworkConfigList {
	lists := []*libcni.NetworkConfigList{n.load(ctx).list}
	for _, id := range ids {
		if rec := n.readRecord(id); rec != nil {
			if list, err := parseSaved(rec.ConfList); err == nil {
				lists = append(lists, list)
			}
		}
	}
	return lists
}

// leases are all of a network, "" of every one, that can be read; the error tells of the others.
func leases(dirs []string, network string) (all []lease, err error) {
	var errs []error
	list := func(dir string) []os.DirEntry {
		found, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
			errs = append(errs, fmt.Errorf("read leases: %w", err))
		}
		return found
	}
	for _, d := range dirs {
		for _, net := range list(d) {
			if network != "" && net.Name() != network {
				continue
			}
			for _, f := range list(filepath.Join(d, net.Name())) {
				l := lease{dir: d, network: net.Name(), addr: f.Name()}
				found, err := l.read()
				if err != nil {
					errs = append(errs, err)
				}
				if found {
					all = append(all, l)
				}
			}
		}
	}
	return all, errors.Join(errs...)
}

// read tells whether it is a lease, and reads it.
func (l *lease) read() (bool, error) {
	if _, err := netip.ParseAddr(l.addr); err != nil {
		return false, nil // last_reserved_ip.0, lock
	}
	if info, err := os.Stat(l.path()); errors.Is(err, os.ErrNotExist) || err == nil && !info.Mode().IsRegular() {
		return false, nil
	}
	data, err := readRegular(l.path())
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read lease %s: %w", l.path(), err)
	}
	id, ifname, _ := strings.Cut(strings.TrimSpace(string(data)), "\n")
	l.id, l.ifname = strings.TrimSpace(id), strings.TrimSpace(ifname)
	return l.id != "", nil
}

// gcLeases releases leases of pods of ours that are left over.
func (n *Network) gcLeases(ctx context.Context, dirs []string, left func(pod.ID) bool) error {
	all, err := leases(dirs, "")
	errs := []error{err}
	done := map[string]bool{}
	for _, l := range all {
		id, err := pod.ParseID(l.id)
		if err != nil || !left(id) || ctx.Err() != nil {
			continue
		}
		n.log.Info("lease of a pod that is gone is released", "pod", id, "network", l.network, "address", l.addr)
		if !done[l.id] {
			done[l.id] = true
			if err := n.Del(ctx, Attachment{Pod: id}, nil); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		// The network of now may be another one, or keep its leases elsewhere.
		again := l
		if there, err := again.read(); err != nil {
			errs = append(errs, err)
		} else if there && again.id == l.id {
			errs = append(errs, n.releaseLease(ctx, l))
		}
	}
	return errors.Join(errs...)
}

// releaseLease lets host-local itself drop all leases of a container in one
// network, with a configuration made up for it: it takes its own lock.
func (n *Network) releaseLease(ctx context.Context, l lease) error {
	start := time.Now()
	addr, err := netip.ParseAddr(l.addr)
	if err != nil {
		return err
	}
	bits := 24
	if addr.Is6() {
		bits = 64
	}
	subnet, err := addr.Prefix(bits)
	if err != nil {
		return err
	}
	plugin := map[string]any{
		"type": "host-local",
		"ipam": map[string]any{"type": "host-local", "dataDir": l.dir, "ranges": [][]ipRange{{{Subnet: subnet.String()}}}},
	}
	data, err := json.Marshal(map[string]any{"name": l.network, "cniVersion": "0.4.0", "plugins": []any{plugin}, "loadOnlyInlinedPlugins": true})
	if err != nil {
		return err
	}
	list, err := parseSaved(data)
	if err != nil {
		return fmt.Errorf("release lease %s: %w", l.path(), err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, n.cfg.Timeout, n.timeUp())
	defer cancel()
	c := &call{n: n, op: "del", pod: pod.ID(l.id)}
	rec := record{Pod: pod.ID(l.id)}
	if err := c.delList(ctx, list, rec, nil, ""); err != nil {
		return failed("del", start, fmt.Errorf("release lease %s: %w", l.path(), err))
	}
	return nil
}
