package stdio

import (
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// container is one app's streams while the server runs. All that has to outlive
// the server is in its record, its saved spec and systemd's store.
type container struct {
	saved saved
	key   string
	index int    // of the record
	gen   uint32 // tells events of this container from those of one that had the index before

	// mu guards all below, and that one step at a time is under way.
	mu       sync.Mutex
	rec      *record
	cur      state // the record's current slot; phaseOpen: a step waits to be completed
	log      int   // the log file, -1 for none
	fail     *failure
	streams  [2]stream
	stdin    int      // write end, -1 for none
	input    *os.File // the same, for sessions; nil while there is none
	console  *console
	sinks    []*sink
	mirror   MirrorSource
	finished bool
	size     Size          // of the terminal, as the last session wants it
	changed  chan struct{} // made by who waits; closed when a stream ends or a console comes
}

// saved is what the server keeps in the app's run directory.
type saved struct {
	Spec
	Dir        string `json:"dir"`
	Cgroup     string `json:"cgroup,omitempty"`
	Invocation string `json:"invocation,omitempty"`
}

// stream is one output of an app.
type stream struct {
	c     *container
	id    uint8
	src   int  // the app's pipe or terminal; -1 when there is none
	stage int  // the staging pipe
	armed bool // the poller knows src
	eof   bool
}

// failure is a log that cannot be written.
type failure struct {
	err      error
	full     time.Time // since when the app has been stopped by it
	dropping bool
}

// signal wakes those who wait for c to change. mu is held.
func (c *container) signal() {
	if c.changed != nil {
		close(c.changed)
		c.changed = nil
	}
}

// wait returns a channel that is closed at the next change. mu is held.
func (c *container) wait() <-chan struct{} {
	if c.changed == nil {
		c.changed = make(chan struct{})
	}
	return c.changed
}

// ended tells whether no output can come any more. mu is held.
func (c *container) ended() bool {
	for i := range c.streams {
		if st := &c.streams[i]; st.src >= 0 && !st.eof {
			return false
		}
	}
	return true
}

// readable tells how many bytes wait in a pipe or terminal.
func readable(fd int) int {
	n, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
	if err != nil {
		return 0
	}
	return n
}

// A pipe that holds this much stops its writer, or is about to: it has 16 pages,
// and a write that does not fit into the rest of a page takes a new one. A
// terminal holds one page.
const (
	fullPipe = 32 << 10
	fullTTY  = 2 << 10
)

// blocked tells whether the app waits for its output to be read. mu is held.
func (c *container) blocked() bool {
	limit := fullPipe
	if c.saved.TTY {
		limit = fullTTY
	}
	for i := range c.streams {
		if st := &c.streams[i]; st.src >= 0 && readable(st.src) >= limit {
			return true
		}
	}
	return false
}
