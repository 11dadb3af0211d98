package engine

import (
	"context"
	"errors"

	"gantry/internal/disk"
	"gantry/internal/namespace"
	"gantry/internal/network"
	"gantry/internal/pod"
	"gantry/internal/podstore/writer"
)

// Teardown gives back the networks of pods, and needs no more than the records and
// the plugins for it: when the machine goes down, a pod's unit is stopped at a time
// when the bus to systemd has gone already.
type Teardown struct {
	store   *writer.Writer
	network *network.Network
	run     string
}

// NewTeardown opens the state on disk.
func NewTeardown(root, run string, n *network.Network) (*Teardown, error) {
	store, err := writer.Open(root)
	if err != nil {
		return nil, err
	}
	return &Teardown{store, n, run}, nil
}

// NetworkDown gives a pod's network back, for "systemctl stop" of the pod's unit:
// everything else of the pod is systemd's and gantry-init's to undo. Whoever holds
// the pod's lock may be waiting for that very stop, so no lock is taken.
func (d *Teardown) NetworkDown(ctx context.Context, id pod.ID) error {
	p, err := d.store.ReadPod(id)
	if errors.Is(err, pod.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return d.delNetwork(ctx, p, nil)
}

func (d *Teardown) delNetwork(ctx context.Context, p *pod.Pod, lock *disk.Lock) error {
	if p.HostNetwork() {
		return nil
	}
	var saved *network.Result
	var res network.Result
	ok, err := d.store.ReadNetwork(p.ID, &res)
	if ok {
		saved = &res
		err = d.store.ReadAttachment(p.ID, saved)
	}
	if err != nil {
		return err
	}
	if !ok && !d.network.Attached(p.ID) {
		d.network.DelUnrecorded(ctx, d.attachment(p, lock))
		return d.store.RemoveNetwork(p.ID)
	}
	if err := d.network.Del(ctx, d.attachment(p, lock), saved); err != nil {
		return err
	}
	return d.store.RemoveNetwork(p.ID)
}

func (d *Teardown) attachment(p *pod.Pod, lock *disk.Lock) network.Attachment {
	a := network.Attachment{
		Pod: p.ID, Name: p.Name, Namespace: p.Namespace, UID: p.UID, NetNS: d.netns(p),
		Ports: p.Ports, Annotations: p.Annotations, DNS: p.DNS,
	}
	if lock != nil {
		a.Lock = lock.File()
	}
	return a
}

func (d *Teardown) netns(p *pod.Pod) string {
	if p.HostNetwork() {
		return ""
	}
	return namespace.Path(podRunDir(d.run, p.ID), namespace.Net)
}
