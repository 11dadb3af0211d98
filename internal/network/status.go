package network

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containernetworking/cni/libcni"

	"gantry/internal/pod"
)

// statusFor is how long an answer of the plugins to STATUS is good for: asking
// costs a process for each.
const statusFor = 10 * time.Second

type statusAnswer struct {
	conf string // the configuration that was asked about
	err  error
	at   time.Time
}

// Info is what there is to tell about the network beyond ready or not.
type Info struct {
	File       string     `json:"file,omitempty"` // "" if none is valid
	Network    string     `json:"network,omitempty"`
	CNIVersion string     `json:"cniVersion,omitempty"`
	Plugins    []string   `json:"plugins,omitempty"`
	Rejected   []Rejected `json:"rejected,omitempty"` // files passed over
	PodCIDRs   []string   `json:"podCIDRs,omitempty"`
	// StatusAndGC tells whether the plugins are asked for STATUS and told to GC, which
	// they know from cniVersion 1.1.0 on. Without, a network counts as ready when it
	// is configured, and GC is done from the journal and host-local's files.
	StatusAndGC bool `json:"statusAndGC"`
}

// Info tells about the network as it is configured now.
func (n *Network) Info(ctx context.Context) Info {
	s := n.current(ctx)
	i := Info{File: s.file, Rejected: slices.Clone(s.rejected), PodCIDRs: n.cidrs()}
	if s.list != nil {
		i.Network, i.CNIVersion, i.Plugins = s.list.Name, s.list.CNIVersion, pluginTypes(s.list)
		i.StatusAndGC = knows(s.list, "1.1.0")
	}
	return i
}

// current is the state as Watch keeps it, or else as it is read now.
func (n *Network) current(ctx context.Context) *state {
	n.mu.Lock()
	s, fresh := n.state, n.watching
	n.mu.Unlock()
	if fresh && s != nil && s.list != nil {
		return s
	}
	return n.load(ctx)
}

// Status is nil when pods can be attached. Its text is made for a NodeCondition:
// it names every file that was passed over, with the reason.
func (n *Network) Status(ctx context.Context) error {
	start := time.Now()
	s := n.current(ctx)
	if s.list == nil {
		return s.unready(ctx)
	}
	if err := cidrsReady(s, n.cidrs()); err != nil {
		return err
	}
	if !knows(s.list, "1.1.0") {
		return nil
	}
	n.mu.Lock()
	last := n.status
	n.mu.Unlock()
	if last.conf == string(s.list.Bytes) && time.Since(last.at) < statusFor {
		return last.err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, n.cfg.Timeout/2, fmt.Errorf("took longer than %s: %w", n.cfg.Timeout/2, context.DeadlineExceeded))
	defer cancel()
	err := failed("status", start, n.askStatus(ctx, s.list))
	n.mu.Lock()
	n.status = statusAnswer{conf: string(s.list.Bytes), err: err, at: time.Now()}
	n.mu.Unlock()
	return err
}

func (n *Network) askStatus(ctx context.Context, list *libcni.NetworkConfigList) error {
	c := &call{n: n, op: "status"}
	for _, p := range list.Plugins {
		_, err := c.plugin(ctx, "STATUS", list, p, record{}, nil, "")
		var pe *pluginError
		if errors.As(err, &pe) && !errors.Is(err, pod.ErrUnavailable) {
			return fmt.Errorf("%w: %w", err, pod.ErrUnavailable)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
