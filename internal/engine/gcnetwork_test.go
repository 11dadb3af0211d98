package engine

import (
	"context"
	"errors"
	"strings"
	"testing"

	"gantry/internal/pod"
	"gantry/internal/unit"
)

// TestGCChecksNetworks: of a pod that is up, one that is down, and one whose turn
// does not come.
func TestGCChecksNetworks(t *testing.T) {
	t.Parallel()
	w := newLiveWorld(t)
	up, down := w.pod(), w.pod()
	w.stop(unit.Pod(string(down.ID)))
	w.load()
	check := func(ctx context.Context) []GCNetwork {
		g := &gc{e: w.Engine, pods: map[pod.ID]pod.PodStatus{}}
		for _, id := range []pod.ID{up.ID, down.ID} {
			s, err := w.Pod(id)
			if err != nil {
				t.Fatal(err)
			}
			g.pods[id] = s
		}
		if err := g.checkNetworks(ctx); err != nil {
			t.Error(err)
		}
		return g.report.Networks
	}
	got := check(t.Context())
	if len(got) != 1 || got[0].Pod.ID != up.ID || !got[0].Gone || !strings.Contains(got[0].Why, "network check: network namespace") {
		t.Errorf("gc finds %+v, want that pod %s has no network namespace", got, up.ID)
	}
	over, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("it is late"))
	if got := check(over); len(got) != 1 || got[0].Gone || got[0].Why != "network check: not done: it is late" {
		t.Errorf("when the time is over gc says %+v", got)
	}
}
