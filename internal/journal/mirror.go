package journal

import (
	"fmt"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// MirrorConfig sets the bounds of a Mirror; zero values give the defaults.
type MirrorConfig struct {
	Socket string
	// Burst lines per Interval are taken from each source, as journald does it for
	// a service: 10,000 in 30 s.
	Burst    int
	Interval time.Duration
	// Memory bounds what waits for journald, of all sources together.
	Memory int
}

const (
	defaultBurst    = 10000
	defaultInterval = 30 * time.Second
	defaultMemory   = 4 << 20
	lineOverhead    = 16
)

// Mirror sends copies of lines to the journal. It never makes anybody wait: what
// cannot be sent soon is dropped, counted, and the count is sent instead.
type Mirror struct {
	cfg  MirrorConfig
	sock *socket

	mu      sync.Mutex
	ready   []*Source // those that have something to send, in turn
	used    int       // of cfg.Memory
	closing bool
	wake    chan struct{} // has room for one
	done    chan struct{}
}

// Source is one app's side of a Mirror.
type Source struct {
	m    *Mirror
	base []byte // the fields that all entries have

	// m.mu guards the rest.
	lines   []line
	text    []byte // of the lines
	sent    int    // lines that are sent already
	queued  bool
	from    time.Time // the interval's start
	count   int       // lines in the interval
	dropped int
	timer   *time.Timer // tells what was dropped
}

type line struct {
	stream     string
	start, end int // in text
	whole      bool
}

// NewMirror connects to the journal.
func NewMirror(cfg MirrorConfig) (*Mirror, error) {
	if cfg.Socket == "" {
		cfg.Socket = Socket
	}
	if cfg.Burst == 0 {
		cfg.Burst = defaultBurst
	}
	if cfg.Interval == 0 {
		cfg.Interval = defaultInterval
	}
	if cfg.Memory == 0 {
		cfg.Memory = defaultMemory
	}
	sock, err := openSocket(cfg.Socket)
	if err != nil {
		return nil, err
	}
	m := &Mirror{cfg: cfg, sock: sock, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go m.run()
	return m, nil
}

// Close sends what journald takes at once, and ends.
func (m *Mirror) Close() {
	m.mu.Lock()
	m.closing = true
	m.mu.Unlock()
	m.signal()
	<-m.done
}

func (m *Mirror) signal() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// Source gives the side of an app whose entries carry these fields.
func (m *Mirror) Source(fields []Field) *Source {
	var base []byte
	for _, f := range fields {
		if f.Value != "" {
			base = AppendField(base, f.Name, f.Value)
		}
	}
	return &Source{m: m, base: base}
}

// Lines takes copies of lines, or drops them. It calls next until that has none
// left; whole is false for a piece of a line that is too long for one entry.
func (s *Source) Lines(stream string, next func() (text []byte, whole, ok bool)) {
	m := s.m
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	if now.Sub(s.from) >= m.cfg.Interval {
		s.from, s.count = now, 0
	}
	for {
		text, whole, ok := next()
		if !ok {
			break
		}
		// A source may use half of what is free: one that floods leaves room for others.
		size := len(text) + lineOverhead
		if s.count >= m.cfg.Burst || s.size()+size > (m.cfg.Memory-m.used)/2 {
			s.drop()
			continue
		}
		s.count++
		start := len(s.text)
		s.text = append(s.text, text...)
		s.lines = append(s.lines, line{stream, start, len(s.text), whole})
		m.used += size
	}
	m.enqueue(s)
}

func (s *Source) size() int { return len(s.text) + lineOverhead*len(s.lines) }

// drop counts a line; how many they were is told once an interval. m.mu is held.
func (s *Source) drop() {
	s.dropped++
	if s.timer == nil {
		s.timer = time.AfterFunc(s.m.cfg.Interval, s.Close)
	}
}

// Close has what was dropped told now. Lines that were taken are still sent.
func (s *Source) Close() {
	m := s.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
	if s.dropped == 0 {
		return
	}
	start := len(s.text)
	s.text = fmt.Appendf(s.text, "gantry: %d lines were not copied to the journal; the log file has them", s.dropped)
	s.lines = append(s.lines, line{"", start, len(s.text), true})
	m.used += len(s.text) - start + lineOverhead
	s.dropped = 0
	m.enqueue(s)
}

// enqueue puts s into the turn if it has lines. m.mu is held.
func (m *Mirror) enqueue(s *Source) {
	if s.queued || len(s.lines) == 0 {
		return
	}
	s.queued = true
	m.ready = append(m.ready, s)
	if len(m.ready) == 1 {
		m.signal()
	}
}

// run sends what the sources have, a batch of each in turn.
func (m *Mirror) run() {
	defer close(m.done)
	defer func() { m.sock.close() }()
	var b batch
	for {
		more, closing := m.fill(&b)
		switch {
		case more:
			m.deliver(&b, closing)
		case closing:
			return
		default:
			b = batch{} // an idle mirror keeps no memory
			<-m.wake
		}
	}
}

// batch is a number of entries, one after the other in buf.
type batch struct {
	buf  []byte
	ends []int
}

// fill moves lines of the source whose turn it is into the batch.
func (m *Mirror) fill(b *batch) (more, closing bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b.buf, b.ends = b.buf[:0], b.ends[:0]
	if len(m.ready) == 0 {
		return false, m.closing
	}
	s := m.ready[0]
	m.ready = m.ready[1:]
	for len(b.ends) < batchSize && s.sent < len(s.lines) {
		l := s.lines[s.sent]
		s.sent++
		b.entry(s.base, l, s.text[l.start:l.end])
		m.used -= l.end - l.start + lineOverhead
	}
	if s.sent < len(s.lines) {
		m.ready = append(m.ready, s)
		return true, m.closing
	}
	s.queued, s.lines, s.text, s.sent = false, nil, nil, 0
	return true, m.closing
}

func (b *batch) entry(base []byte, l line, text []byte) {
	b.buf = append(b.buf, base...)
	if l.stream == "" {
		b.buf = append(b.buf, "PRIORITY=5\n"...)
	} else {
		b.buf = append(b.buf, "PRIORITY=6\nGANTRY_STREAM="...)
		b.buf = append(b.buf, l.stream...)
		b.buf = append(b.buf, '\n')
	}
	if !l.whole {
		b.buf = append(b.buf, "GANTRY_PARTIAL=1\n"...)
	}
	if n := len(text); n > 0 && text[n-1] == '\r' {
		text = text[:n-1] // a terminal's line
	}
	b.buf = AppendField(b.buf, "MESSAGE", text)
	b.ends = append(b.ends, len(b.buf))
}

// deliver sends a batch. It waits for journald, which only makes the sources drop.
func (m *Mirror) deliver(b *batch, closing bool) {
	for sent := 0; sent < len(b.ends); {
		n, err := m.sock.send(b.buf, b.ends, sent)
		sent += n
		switch {
		case err == nil || err == unix.EINTR:
		case closing:
			return
		case err == unix.EAGAIN:
			m.sock.await(time.Second)
		case err == unix.EMSGSIZE:
			sent++ // cannot be: lines are bounded
		default:
			// journald is being restarted: its socket is systemd's, so this is rare.
			m.reconnect()
		}
		m.mu.Lock()
		closing = m.closing
		m.mu.Unlock()
	}
}

const reconnectPause = time.Second

func (m *Mirror) reconnect() {
	if fresh, err := openSocket(m.cfg.Socket); err == nil {
		m.sock.close()
		m.sock = fresh
		return
	}
	select {
	case <-time.After(reconnectPause):
	case <-m.done:
	}
}

// send gives entries from the first-th on to journald, several at once, and tells
// how many it took.
func (s *socket) send(buf []byte, ends []int, first int) (int, error) {
	n := min(len(ends)-first, batchSize)
	for i := range n {
		start := 0
		if first+i > 0 {
			start = ends[first+i-1]
		}
		s.iovs[i] = unix.Iovec{Base: &buf[start]}
		s.iovs[i].SetLen(ends[first+i] - start)
		s.msgs[i] = mmsghdr{hdr: unix.Msghdr{Iov: &s.iovs[i]}}
		s.msgs[i].hdr.SetIovlen(1)
	}
	r, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&s.msgs[0])), uintptr(n),
		unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(r), nil
}

// await waits until journald has room.
func (s *socket) await(d time.Duration) {
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLOUT}}, int(d.Milliseconds()))
}
