package engine

import (
	"context"
	"io"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// outflow copies what a process prints to whoever asked for it, and knows how far
// it is.
type outflow struct {
	from *os.File
	to   io.Writer

	taken, given atomic.Int64 // bytes read from the process, and passed on
}

// run copies until the end. When the reader has gone the rest is read and dropped:
// the process must not be stopped by a full pipe.
func (o *outflow) run() {
	buf := make([]byte, 32<<10)
	gone := o.to == nil
	for {
		n, err := o.from.Read(buf)
		o.taken.Add(int64(n))
		if n > 0 && !gone {
			_, writeErr := o.to.Write(buf[:n])
			gone = writeErr != nil
		}
		o.given.Add(int64(n))
		if err != nil {
			return
		}
	}
}

// unread are the bytes that the process wrote and nobody read yet.
func (o *outflow) unread() (n int64) {
	raw, err := o.from.SyscallConn()
	if err != nil {
		return 0
	}
	_ = raw.Control(func(fd uintptr) { // what is closed has none
		if have, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ); err == nil {
			n = int64(have)
		}
	})
	return n
}

// goal is how much must be given for all that was printed so far. It may be too much
// by what is read at this moment: through knows that.
func (o *outflow) goal() int64 { return o.unread() + o.taken.Load() }

func (o *outflow) through(goal int64) bool {
	given := o.given.Load()
	return given >= goal || o.unread() == 0 && o.taken.Load() == given
}

// drainTime is how long the end of the output is waited for after the process
// ended: a daemon may have kept it open.
const drainTime = 2 * time.Second

// drain waits for the end of the output. If that does not come in time, it waits for
// what was printed until then, however slow the reader is.
func (s *session) drain(ctx context.Context, patience time.Duration) {
	select {
	case <-s.out:
		return
	case <-ctx.Done():
		return
	case <-time.After(patience):
	}
	flows := s.flows()
	goals := make([]int64, len(flows))
	for i, o := range flows {
		goals[i] = o.goal()
	}
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for !allThrough(flows, goals) {
		select {
		case <-s.out:
			return
		case <-ctx.Done():
			return
		case <-look.C:
		}
	}
}

func allThrough(flows []*outflow, goals []int64) bool {
	for i, o := range flows {
		if !o.through(goals[i]) {
			return false
		}
	}
	return true
}

func (s *session) flow(from *os.File, to io.Writer) *outflow {
	o := &outflow{from: from, to: to}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.outflows = append(s.outflows, o)
	return o
}

func (s *session) flows() []*outflow {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.outflows
}
