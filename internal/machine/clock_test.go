package machine

import (
	"context"
	"testing"
	"time"

	"gantry/internal/guest/guestpb"
)

// lateClock is a clock that is wrong, of a machine that needs its time to answer.
type lateClock struct {
	behind, slow time.Duration
	moved        []time.Duration
}

func (c *lateClock) Clock(_ context.Context, r *guestpb.ClockRequest) (*guestpb.ClockResponse, error) {
	<-time.After(c.slow)
	if r.Adjust != 0 {
		c.moved = append(c.moved, time.Duration(r.Adjust))
	}
	return &guestpb.ClockResponse{Time: time.Now().Add(-c.behind).UnixNano()}, nil
}

// TestFollow: a clock is moved if it is further off than what the answers' time can tell.
func TestFollow(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		clock lateClock
		moves bool
	}{
		{lateClock{behind: time.Hour}, true},
		{lateClock{behind: -time.Minute}, true},
		{lateClock{behind: time.Millisecond}, false},
		{lateClock{slow: 100 * time.Millisecond}, false},
	} {
		c := test.clock
		if err := follow(t.Context(), &c); err != nil {
			t.Fatal(err)
		}
		if (len(c.moved) == 1) != test.moves {
			t.Errorf("%+v: moved by %v", test.clock, c.moved)
		}
		if test.moves && (c.moved[0]-test.clock.behind).Abs() > time.Second {
			t.Errorf("behind by %s, moved by %s", test.clock.behind, c.moved[0])
		}
	}
}
