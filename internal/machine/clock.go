package machine

import (
	"context"
	"fmt"
	"os"
	"time"

	"gantry/internal/guest/guestpb"
)

const (
	// clockTime is how often the machine's clock is compared with the host's.
	clockTime = 5 * time.Minute
	// clockMost is a difference that is let be.
	clockMost = 20 * time.Millisecond
)

// keepTime has the machine's clock follow the host's until ctx ends. It counts on its own
// from the boot on: what steers the host's clock does not reach it. All that stand for
// apps of the pod do so.
func (p *proxy) keepTime(ctx context.Context) {
	tick := time.NewTicker(clockTime)
	defer tick.Stop()
	for told := ""; ; {
		err := said(follow(ctx, p.client))
		if err != nil && ctx.Err() == nil && err.Error() != told {
			told = err.Error()
			fmt.Fprintln(os.Stderr, "gantry-guest: compare the machine's clock with the host's:", told)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// timekeeper is who has a clock.
type timekeeper interface {
	Clock(context.Context, *guestpb.ClockRequest) (*guestpb.ClockResponse, error)
}

// follow moves a clock to the host's time, as exactly as the fastest of some answers tells it.
func follow(ctx context.Context, c timekeeper) error {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	const tries = 3
	var behind, fastest time.Duration
	var changes uint64
	for i := range tries {
		asked := time.Now()
		r, err := c.Clock(ctx, &guestpb.ClockRequest{})
		if err != nil {
			return err
		}
		if took := time.Since(asked); i == 0 || took < fastest {
			fastest, changes = took, r.Changes
			behind = asked.Add(took / 2).Sub(time.Unix(0, r.Time))
		}
	}
	if behind.Abs() <= max(clockMost, fastest) {
		return nil
	}
	_, err := c.Clock(ctx, &guestpb.ClockRequest{Adjust: int64(behind), Changes: changes})
	return err
}
