package criserver

import (
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/pod"
)

// rates turns the CPU time of pods into CPUs in use. Kubelet does that itself for
// containers, and not for pods. A server that is new begins with the average of a pod's
// life.
type rates struct {
	mu    sync.Mutex
	last  map[pod.ID]rate
	swept time.Time
}

type rate struct {
	at    time.Time
	nanos uint64
	cores uint64 // CPU nanoseconds per second
}

// rateWindow is the shortest time that is measured over; who asks again sooner hears the
// same.
const rateWindow = time.Second

// rateMemory is how long a pod that nobody asks for is remembered.
const rateMemory = 10 * time.Minute

// of returns the average since the last look; nanos is the CPU time used until at, of
// something that is there since born.
func (r *rates) of(id pod.ID, at time.Time, nanos uint64, born time.Time) *runtimeapi.UInt64Value {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sweep(at)
	was, ok := r.last[id]
	if !ok {
		was = rate{at: born}
	}
	over := at.Sub(was.at)
	switch {
	case ok && over < rateWindow:
		return number(was.cores)
	case over <= 0: // the clock was set
		over = rateWindow
	}
	now := rate{at: at, nanos: nanos}
	if nanos > was.nanos {
		now.cores = uint64(float64(nanos-was.nanos) / over.Seconds())
	}
	if r.last == nil {
		r.last = map[pod.ID]rate{}
	}
	r.last[id] = now
	return number(now.cores)
}

func (r *rates) sweep(now time.Time) {
	if now.Sub(r.swept) < rateMemory {
		return
	}
	r.swept = now
	for id, was := range r.last {
		if now.Sub(was.at) > rateMemory {
			delete(r.last, id)
		}
	}
}
