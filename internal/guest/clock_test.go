package guest

import (
	"testing"
	"time"

	"gantry/internal/guest/guestpb"
)

// TestClock: of two that saw the clock be wrong, one moves it.
func TestClock(t *testing.T) {
	t.Parallel()
	var moved []time.Duration
	a := &Agent{clock: clock{move: func(by time.Duration) error { moved = append(moved, by); return nil }}}
	ask := func(adjust time.Duration, changes uint64) *guestpb.ClockResponse {
		t.Helper()
		r, err := a.Clock(t.Context(), &guestpb.ClockRequest{Adjust: int64(adjust), Changes: changes})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	first, second := ask(0, 0), ask(0, 0)
	if d := time.Since(time.Unix(0, first.Time)); d < 0 || d > time.Minute {
		t.Errorf("it is %s behind", d)
	}
	ask(time.Hour, first.Changes)
	last := ask(time.Hour, second.Changes)
	if len(moved) != 1 || moved[0] != time.Hour || last.Changes != first.Changes+1 {
		t.Errorf("moved by %v, %d changes", moved, last.Changes)
	}
}
