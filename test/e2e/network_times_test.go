//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gantry/internal/pod"
)

// TestNetworkTimes tells how long ADD and DEL take and where the time goes.
func TestNetworkTimes(t *testing.T) {
	guard(t)
	onlyLong(t)
	w := newWire(t, dualStack, "")
	const rounds = 10
	for _, ports := range []bool{false, true} {
		w.times.reset()
		for range rounds {
			a := w.attachment("e2e-times")
			if ports {
				a.Ports = []pod.Port{{Protocol: pod.TCP, PodPort: 80, HostPort: 18084}}
			}
			start := time.Now()
			r, err := w.Add(t.Context(), a)
			w.times.add("ADD, whole", time.Since(start))
			if err != nil {
				t.Fatal(err)
			}
			start = time.Now()
			if err := w.Del(t.Context(), a, &r); err != nil {
				t.Fatal(err)
			}
			w.times.add("DEL, whole", time.Since(start))
			sh(t, "ip netns del e2e-times")
		}
		t.Logf("host port: %v\n%s", ports, w.times)
	}
}

// pluginTimes is a log handler that keeps how long plugins ran.
type pluginTimes struct {
	mu   sync.Mutex
	took map[string][]time.Duration
}

func (p *pluginTimes) Enabled(context.Context, slog.Level) bool { return true }
func (p *pluginTimes) WithAttrs([]slog.Attr) slog.Handler       { return p }
func (p *pluginTimes) WithGroup(string) slog.Handler            { return p }

func (p *pluginTimes) Handle(_ context.Context, r slog.Record) error {
	var key string
	var took, cpu time.Duration
	r.Attrs(func(a slog.Attr) bool {
		switch a.Key {
		case "op", "plugin":
			key += a.Value.String() + " "
		case "took":
			took = a.Value.Duration()
		case "cpu":
			cpu = a.Value.Duration()
		}
		return true
	})
	if took > 0 {
		p.add(key, took)
		p.add(key+"cpu", cpu)
	}
	return nil
}

func (p *pluginTimes) add(what string, d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.took[what] = append(p.took[what], d)
}

func (p *pluginTimes) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.took)
}

func (p *pluginTimes) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var lines []string
	for what, d := range p.took {
		slices.Sort(d)
		lines = append(lines, fmt.Sprintf("%-22s n=%-3d median %-8s min %-8s max %s", what, len(d),
			d[len(d)/2].Round(time.Millisecond), d[0].Round(time.Millisecond), d[len(d)-1].Round(time.Millisecond)))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
