package engine

import (
	"sync"

	"gantry/internal/pod"
)

// peaks remembers the most huge pages that each app was seen to use.
type peaks struct {
	mu    sync.Mutex
	known map[pod.ID]map[string]uint64 // by page size
}

// raise takes new readings, and fills in the peaks.
func (p *peaks) raise(id pod.ID, now []HugepageUsage) {
	if len(now) == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.known == nil {
		p.known = map[pod.ID]map[string]uint64{}
	}
	if p.known[id] == nil {
		p.known[id] = map[string]uint64{}
	}
	for i, h := range now {
		now[i].Peak = max(h.Bytes, p.known[id][h.Size])
		p.known[id][h.Size] = now[i].Peak
	}
}

// forget is for an app that is removed.
func (p *peaks) forget(id pod.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.known, id)
}
