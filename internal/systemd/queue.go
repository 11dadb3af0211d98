package systemd

import "sync"

// Queue is a bounded queue of events with one reader. The last free place is kept
// for the Overflow that tells the reader that it missed some.
type Queue struct {
	events chan Event

	mu     sync.Mutex
	full   bool // Overflow stands in the queue and nothing after it
	closed bool
}

// NewQueue makes a queue for a reader that may be length events behind.
func NewQueue(length int) *Queue { return &Queue{events: make(chan Event, length)} }

// Events is the reader's end.
func (q *Queue) Events() <-chan Event { return q.events }

// Put never blocks. While Overflow is unread events are dropped: the reader will
// look at everything after it has read it.
func (q *Queue) Put(e Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || q.full && len(q.events) > cap(q.events)/2 {
		return
	}
	q.full = len(q.events) >= cap(q.events)-1
	if q.full {
		e = Event{Kind: Overflow}
	}
	q.events <- e // there is room: Put is the only sender, and holds the lock
}

// Close ends the reader's loop after what is in the queue.
func (q *Queue) Close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.closed {
		q.closed = true
		close(q.events)
	}
}
