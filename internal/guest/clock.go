package guest

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"gantry/internal/guest/guestpb"
)

// clock counts how often the machine's was moved: who wants to knows by that whether
// another did so since it looked.
type clock struct {
	mu      sync.Mutex
	changes uint64
	move    func(by time.Duration) error // nil is the kernel's, for tests
}

// Clock tells the time, and moves the machine's clock first if that is asked for.
func (a *Agent) Clock(_ context.Context, r *guestpb.ClockRequest) (*guestpb.ClockResponse, error) {
	c := &a.clock
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.Adjust != 0 && r.Changes == c.changes {
		move := c.move
		if move == nil {
			move = moveClock
		}
		if err := move(time.Duration(r.Adjust)); err != nil {
			return nil, status.Errorf(codes.Aborted, "move the clock: %v", err)
		}
		c.changes++
	}
	return &guestpb.ClockResponse{Time: time.Now().UnixNano(), Changes: c.changes}, nil
}

// slewMost is a difference that goes away in minutes without a leap: the kernel has the
// clock run faster or slower by half a millisecond a second.
const slewMost = 200 * time.Millisecond

func moveClock(by time.Duration) error {
	if by.Abs() <= slewMost {
		_, err := unix.Adjtimex(&unix.Timex{Modes: adjOffsetSingleshot, Offset: by.Microseconds()})
		return err
	}
	now := unix.NsecToTimespec(time.Now().Add(by).UnixNano())
	return unix.ClockSettime(unix.CLOCK_REALTIME, &now)
}

// adjOffsetSingleshot is ADJ_OFFSET_SINGLESHOT of linux/timex.h.
const adjOffsetSingleshot = 0x8001
