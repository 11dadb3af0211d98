package network

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"gantry/internal/pod"
)

// SetPodCIDRs is what UpdateRuntimeConfig said: the ranges of the pods' addresses,
// one or, in dual stack, two; an element may be a list with commas. They are kept
// on disk, for kubelet says them only when they change. What is no CIDR is left
// out with a warning.
func (n *Network) SetPodCIDRs(cidrs []string) {
	var ok []string
	for _, c := range strings.Split(strings.Join(cidrs, ","), ",") {
		c = strings.TrimSpace(c)
		if c == "" {
			continue
		}
		p, err := netip.ParsePrefix(c)
		if err != nil {
			n.log.Warn("pod CIDR is ignored", "cidr", c, "err", err)
			continue
		}
		ok = append(ok, p.Masked().String())
	}
	n.mu.Lock()
	same := slices.Equal(n.podCIDRs, ok)
	n.podCIDRs = ok
	n.mu.Unlock()
	if same {
		return
	}
	n.log.Info("pod CIDRs", "cidrs", ok)
	data, err := json.Marshal(ok)
	if err == nil {
		err = writeFile(podCIDRsPath(n.cfg.CacheDir), data)
	}
	if err != nil {
		n.log.Error("pod CIDRs are not kept for the next start", "err", err)
	}
}

func (n *Network) cidrs() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.podCIDRs
}

func cidrsReady(s *state, cidrs []string) error {
	if len(cidrs) == 0 && wantsPodCIDRs(s.list) {
		return fmt.Errorf("%s: network %s waits for the node's pod CIDRs: %w", s.file, s.list.Name, pod.ErrUnavailable)
	}
	return nil
}

func podCIDRsPath(dir string) string { return filepath.Join(dir, "podcidrs.json") }

func readPodCIDRs(dir string) ([]string, error) {
	data, err := os.ReadFile(podCIDRsPath(dir))
	if err != nil {
		return nil, err
	}
	var cidrs []string
	if err := json.Unmarshal(data, &cidrs); err != nil {
		return nil, fmt.Errorf("read pod CIDRs: %w", err)
	}
	return cidrs, nil
}
