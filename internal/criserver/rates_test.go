package criserver

import (
	"testing"
	"time"
)

func TestRates(t *testing.T) {
	t.Parallel()
	var r rates
	born := time.Unix(1000, 0)
	at := func(s float64) time.Time { return born.Add(time.Duration(s * float64(time.Second))) }
	for _, c := range []struct {
		name        string
		at          float64
		nanos, want uint64
	}{
		{"since its birth", 10, 5e9, 5e8},
		{"too soon to tell anew", 10.5, 6e9, 5e8},
		{"since the last look", 12, 7e9, 1e9},
		{"it rested", 14, 7e9, 0},
		{"another cgroup of the same pod", 16, 1e9, 0},
		{"two CPUs", 18, 5e9, 2e9},
	} {
		if got := r.of("a", at(c.at), c.nanos, born).Value; got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
	if got := r.of("b", born, 1e9, at(100)).Value; got != 1e9 {
		t.Errorf("a clock that was set back: %d", got)
	}
	r.of("c", born.Add(time.Hour), 1, born)
	if len(r.last) != 1 {
		t.Errorf("%d pods are remembered", len(r.last))
	}
}
