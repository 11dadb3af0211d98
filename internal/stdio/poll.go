package stdio

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// poller hands streams that can be read to a few workers, one chunk a turn. The
// kernel's list of ready streams is first in, first out, and a stream is armed
// again after its turn: nobody can starve others.
//
// A stream that trickles is armed a moment later, so that a burst of small writes
// becomes one chunk; the first line of a burst is never late.
type poller struct {
	epoll int
	event int // eventfd: wakes one worker, or all of them for good

	mu       sync.Mutex
	naps     [2]napList
	waiting  int // workers that wait for an event
	watching int // those of them that look after the naps
	stopped  atomic.Bool
}

// The naps: what each is for, and how long it takes.
const (
	napShort = 0 // a stream that trickles
	napLong  = 1 // a log that cannot be written
)

var napTimes = [2]time.Duration{2 * time.Millisecond, 250 * time.Millisecond}

// napList is in order of the wake-up time, since all naps of a list take as long.
type napList struct {
	items []nap
}

type nap struct {
	st   *stream
	at   time.Time
	turn bool // take a turn then, whether there is something to read or not
}

func newPoller() (*poller, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create", err)
	}
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err == nil {
		err = unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, event, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: -1})
	}
	if err != nil {
		closeAll([]int{epoll, event})
		return nil, fmt.Errorf("make poller: %w", err)
	}
	return &poller{epoll: epoll, event: event}, nil
}

// add arms a stream for the first time, del forgets it. The descriptor lives on
// in systemd's store when it is closed here, so del is never left out.
func (p *poller) add(st *stream) error {
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(p.epoll, unix.EPOLL_CTL_ADD, st.src, interest(st)))
}

func (p *poller) del(st *stream) {
	_ = unix.EpollCtl(p.epoll, unix.EPOLL_CTL_DEL, st.src, nil)
}

// rearm needs st.c.mu: the descriptor must not be closed meanwhile.
func (p *poller) rearm(st *stream) {
	if st.src >= 0 && !st.eof {
		_ = unix.EpollCtl(p.epoll, unix.EPOLL_CTL_MOD, st.src, interest(st))
	}
}

func interest(st *stream) *unix.EpollEvent {
	return &unix.EpollEvent{
		Events: unix.EPOLLIN | unix.EPOLLONESHOT,
		Fd:     int32(st.c.index)<<1 | int32(st.id),
		Pad:    int32(st.c.gen),
	}
}

// rest arms a stream, or gives it a turn, when the nap is over.
func (p *poller) rest(st *stream, list int, turn bool) {
	p.mu.Lock()
	p.naps[list].items = append(p.naps[list].items, nap{st, time.Now().Add(napTimes[list]), turn})
	p.mu.Unlock()
}

// wakeUp arms what has rested, and appends to turns what is to have a turn now. It
// tells how many milliseconds the next has left, -1 for none.
func (p *poller) wakeUp(due, turns []nap) (_, _ []nap, timeout int) {
	due, turns = due[:0], turns[:0]
	timeout = -1
	p.mu.Lock()
	var now time.Time
	for i := range p.naps {
		l := &p.naps[i]
		if len(l.items) == 0 {
			continue
		}
		if now.IsZero() {
			now = time.Now()
		}
		n := 0
		for n < len(l.items) && !l.items[n].at.After(now) {
			n++
		}
		due = append(due, l.items[:n]...)
		l.items = append(l.items[:0], l.items[n:]...)
		if len(l.items) > 0 {
			ms := int(l.items[0].at.Sub(now)/time.Millisecond) + 1
			if timeout < 0 || ms < timeout {
				timeout = ms
			}
		}
	}
	p.mu.Unlock()
	for _, d := range due {
		if d.turn {
			turns = append(turns, d)
		} else if c := d.st.c; c.mu.TryLock() {
			p.rearm(d.st)
			c.mu.Unlock()
		} else {
			p.rest(d.st, napShort, false)
			timeout = int(napTimes[napShort] / time.Millisecond)
		}
	}
	return due, turns, timeout
}

// waitFor waits for events, and accounts for who looks after the naps.
func (p *poller) waitFor(events []unix.EpollEvent, timeout int) int {
	// What is ready at once needs no accounting.
	if n, err := unix.EpollWait(p.epoll, events, 0); n > 0 || err != nil || timeout == 0 {
		return max(n, 0)
	}
	watch := 0
	if timeout >= 0 {
		watch = 1
	}
	p.mu.Lock()
	p.waiting++
	p.watching += watch
	p.mu.Unlock()
	n, err := unix.EpollWait(p.epoll, events, timeout)
	p.mu.Lock()
	p.waiting--
	p.watching -= watch
	p.mu.Unlock()
	if err != nil {
		return 0
	}
	return n
}

// guard makes sure that a waiting worker looks after the naps while this one is
// busy, perhaps with a disk that hangs.
func (p *poller) guard() {
	p.mu.Lock()
	lonely := p.waiting > 0 && p.watching == 0 && len(p.naps[napShort].items)+len(p.naps[napLong].items) > 0
	p.mu.Unlock()
	if lonely {
		p.kick()
	}
}

func (p *poller) kick() {
	_, _ = unix.Write(p.event, []byte{1, 0, 0, 0, 0, 0, 0, 0})
}

// stop makes all workers leave.
func (p *poller) stop() {
	p.stopped.Store(true)
	p.kick()
}

// work is the life of a worker.
func (s *Server) work(w *worker) {
	p := s.poller
	events := make([]unix.EpollEvent, 4)
	var due, turns []nap
	for {
		var timeout int
		due, turns, timeout = p.wakeUp(due, turns)
		for _, d := range turns {
			s.serve(w, d.st)
			timeout = 0 // it may rest again
		}
		n := p.waitFor(events, timeout)
		for _, e := range events[:n] {
			if p.stopped.Load() {
				return
			}
			if e.Fd < 0 {
				var b [8]byte
				_, _ = unix.Read(p.event, b[:])
				continue
			}
			p.guard()
			if st := s.streamOf(e); st != nil {
				s.serve(w, st)
			}
		}
	}
}

// serve gives a stream its turn and arranges for the next.
func (s *Server) serve(w *worker, st *stream) {
	c := st.c
	if !c.mu.TryLock() {
		// Its other stream has a turn, and may be kept by a slow disk. A turn, not
		// only armed: what waits may be in staging, which wakes nobody.
		s.poller.rest(st, napShort, true)
		return
	}
	defer c.mu.Unlock()
	if c.finished || st.src < 0 || st.eof {
		return
	}
	switch s.turn(w, st) {
	case outIdle, outFull:
		s.poller.rearm(st)
	case outSmall:
		s.poller.rest(st, napShort, false)
	case outStalled:
		s.poller.rest(st, napLong, true)
	case outEnd:
	}
}
