package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"gantry/internal/network"
	"gantry/internal/pod"
)

// checkTime bounds how long gc looks at networks: a plugin may hang, for each pod.
const checkTime = time.Minute

// checkNetworks asks whether the networks of pods that are up are as they were
// made: whoever flushes the firewall, or restarts what keeps it, takes the pods'
// rules along, and nobody else would notice. It changes nothing, whatever it finds.
func (g *gc) checkNetworks(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, checkTime, fmt.Errorf("the %s for all networks are over", checkTime))
	defer cancel()
	for _, p := range g.pods {
		if !p.Ready || p.HostNetwork() {
			continue
		}
		if err := g.checkNetwork(ctx, p); err != nil {
			g.report.Networks = append(g.report.Networks, GCNetwork{p.Pod, err.Error(), errors.Is(err, pod.ErrState)})
		}
	}
	slices.SortFunc(g.report.Networks, func(a, b GCNetwork) int { return strings.Compare(string(a.Pod.ID), string(b.Pod.ID)) })
	return nil
}

// checkNetwork takes no lock: nobody waits for gc. What it finds of a pod that is
// not up any more by then is no fault.
func (g *gc) checkNetwork(ctx context.Context, p pod.PodStatus) error {
	if ctx.Err() != nil {
		return fmt.Errorf("network check: not done: %w", context.Cause(ctx))
	}
	var saved *network.Result
	var res network.Result
	ok, err := g.e.store.ReadNetwork(p.ID, &res)
	if ok && err == nil {
		saved = &res
		err = g.e.store.ReadAttachment(p.ID, saved)
	}
	if err == nil {
		err = g.e.cfg.Network.Check(ctx, g.e.down.attachment(p.Pod, nil), saved)
	}
	if err == nil {
		return nil
	}
	if now, again := g.e.Pod(p.ID); again == nil && now.Ready {
		return err
	}
	return nil
}
