package engine

import (
	"context"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// outflow copies what a process prints to whoever asked for it, and knows how far
// it is.
type outflow struct {
	from *os.File
	to   io.Writer

	mu    sync.Mutex
	taken int64        // bytes read from the process, of which there are no more in from
	idle  int          // looks in a row that found nothing to do
	given atomic.Int64 // bytes passed on
}

// run copies until the end. When the reader has gone the rest is read and dropped:
// the process must not be stopped by a full pipe.
func (o *outflow) run() {
	buf := make([]byte, 32<<10)
	gone := o.to == nil
	for {
		n, err := o.take(buf)
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

// take is a Read that counts in the same moment.
func (o *outflow) take(buf []byte) (n int, err error) {
	raw, err := o.from.SyscallConn()
	if err != nil {
		return 0, err
	}
	waitErr := raw.Read(func(fd uintptr) bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		for err = unix.EINTR; err == unix.EINTR; {
			n, err = unix.Read(int(fd), buf)
		}
		n = max(n, 0)
		o.taken += int64(n)
		return err != unix.EAGAIN
	})
	switch {
	case waitErr != nil:
		return n, waitErr
	case n == 0 && err == nil:
		return 0, io.EOF
	}
	return n, err
}

// terminalMost is what may wait in a terminal: the kernel does not tell how much does.
const terminalMost = 64 << 10

// goal is how much must be given for all that was printed so far. Of a terminal that
// is a bound, and reached as soon as nothing waits in it.
func (o *outflow) goal() int64 {
	have, tty := o.waiting()
	o.mu.Lock()
	defer o.mu.Unlock()
	if tty {
		have = terminalMost
	}
	return have + o.taken
}

// through tells whether that much was given, or all that there is: for a moment a
// terminal has nothing to read while the kernel moves more of it there.
func (o *outflow) through(goal int64) bool {
	if o.given.Load() >= goal {
		return true
	}
	have, tty := o.waiting()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.idle++; !tty || have > 0 || o.given.Load() < o.taken {
		o.idle = 0
	}
	return o.idle > 1
}

// waiting is how much can be read now; of a terminal, whether there is something.
func (o *outflow) waiting() (bytes int64, tty bool) {
	raw, err := o.from.SyscallConn()
	if err != nil {
		return 0, false
	}
	_ = raw.Control(func(fd uintptr) { // in what is closed nothing waits
		if have, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ); err == nil {
			bytes = int64(have)
		}
		_, err := unix.IoctlGetTermios(int(fd), unix.TCGETS)
		tty = err == nil
	})
	return bytes, tty
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
