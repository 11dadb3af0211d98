package criserver

import (
	"cmp"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"gantry/internal/image"
)

// pullEvery is how often the journal tells of a pull that takes long.
const pullEvery = 30 * time.Second

// pulls are those under way: a large image takes minutes, and nothing else tells whether
// it comes.
type pulls struct {
	log *slog.Logger

	mu    sync.Mutex
	bytes uint64
	all   map[*pulling]bool
}

// pulling is a pull under way.
type pulling struct {
	of     *pulls
	image  string
	began  time.Time
	said   time.Time
	counts bool // another one of the same image counts the bytes, if it does not

	stage  string
	layers int
	done   map[int]int64 // compressed bytes by layer
	total  map[int]int64
}

// begin notes a pull. The caller has to end it.
func (p *pulls) begin(name string) *pulling {
	p.mu.Lock()
	defer p.mu.Unlock()
	one := &pulling{of: p, image: name, began: time.Now(), said: time.Now(), counts: true, done: map[int]int64{}, total: map[int]int64{}}
	for other := range p.all {
		one.counts = one.counts && other.image != name // they are one download
	}
	if p.all == nil {
		p.all = map[*pulling]bool{}
	}
	p.all[one] = true
	return one
}

func (one *pulling) end() {
	one.of.mu.Lock()
	defer one.of.mu.Unlock()
	delete(one.of.all, one)
}

// progress is called by the image store.
func (one *pulling) progress(n image.Progress) {
	p := one.of
	p.mu.Lock()
	defer p.mu.Unlock()
	if n.Stage != one.stage {
		p.log.Debug("pulling image", "image", one.image, "stage", n.Stage)
	}
	one.stage, one.layers = n.Stage, n.Layers
	if n.Stage == image.StageLayer {
		if grown := n.Bytes - one.done[n.Layer]; grown > 0 && one.counts && !n.Here {
			p.bytes += uint64(grown)
		}
		one.done[n.Layer], one.total[n.Layer] = n.Bytes, n.Total
	}
	if time.Since(one.said) >= pullEvery {
		one.said = time.Now()
		now := one.state()
		p.log.Info("still pulling image", "image", now.Image, "stage", now.Stage, "layers", now.Layers, "bytes", now.Bytes, "of", now.Total, "took", now.Took)
	}
}

// pullState is a pull as people see it.
type pullState struct {
	Image  string `json:"image"`
	Stage  string `json:"stage"`
	Layers int    `json:"layers"`
	Bytes  int64  `json:"bytes"` // compressed, of the layers that were begun
	Total  int64  `json:"total"`
	Took   string `json:"took"`
}

func (one *pulling) state() pullState {
	s := pullState{Image: one.image, Stage: one.stage, Layers: one.layers, Took: time.Since(one.began).Round(time.Second).String()}
	for layer, n := range one.done {
		s.Bytes += n
		s.Total += one.total[layer]
	}
	return s
}

// list is by name.
func (p *pulls) list() []pullState {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]pullState, 0, len(p.all))
	for one := range p.all {
		out = append(out, one.state())
	}
	slices.SortFunc(out, func(a, b pullState) int { return cmp.Compare(a.Image, b.Image) })
	return out
}

func (p *pulls) metrics() []prometheus.Collector {
	return []prometheus.Collector{
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "gantry_pulls_in_flight", Help: "Images that are being pulled for the CRI"}, func() float64 {
			p.mu.Lock()
			defer p.mu.Unlock()
			return float64(len(p.all))
		}),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "gantry_pull_bytes_total", Help: "Compressed bytes of layers that were pulled for the CRI"}, func() float64 {
			p.mu.Lock()
			defer p.mu.Unlock()
			return float64(p.bytes)
		}),
	}
}
