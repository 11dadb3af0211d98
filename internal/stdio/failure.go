package stdio

import (
	"time"

	"golang.org/x/sys/unix"
)

// A log that cannot be written (the disk is full, say) first of all waits: what
// the app printed stays in its pipe and in staging, nothing is lost, other apps
// go on. Most logs are slow, so they can wait for long. Only when an app has been
// stopped by its full pipe for the patience of the server are its lines dropped,
// because a service that prints must not hang for ever over a full disk. They are
// counted, the count survives a kill, and a line in the log tells it as soon as
// the log can be written again.

// defaultPatience is how long an app may be stopped by its log.
const defaultPatience = 5 * time.Second

// note remembers, and tells once, that c's log cannot be written.
func (s *Server) note(c *container, err error) {
	if c.fail != nil {
		c.fail.err = err
		return
	}
	c.fail = &failure{err: err}
	s.stalled.Add(1)
	s.log.Error("a log cannot be written", "app", c.saved.App, "pod", c.saved.Pod, "log", c.saved.Log, "error", err)
}

// giveUp tells whether the step is to be dropped instead of being tried again.
func (s *Server) giveUp(c *container, err error) bool {
	s.note(c, err)
	switch {
	case c.fail.dropping:
	case !c.blocked():
		c.fail.full = time.Time{}
		return false
	case c.fail.full.IsZero():
		c.fail.full = time.Now()
		return false
	case time.Since(c.fail.full) < s.patience:
		return false
	default:
		c.fail.dropping = true
		s.log.Error("lines are dropped: their log cannot be written and their app waits", "app", c.saved.App,
			"pod", c.saved.Pod, "log", c.saved.Log, "error", err)
	}
	if c.log >= 0 {
		// A part may have been written before the disk was full.
		_ = unix.Ftruncate(c.log, c.cur.Offset)
	}
	return true
}

// recover ends a failure.
func (s *Server) recover(c *container) {
	if c.fail == nil {
		return
	}
	c.fail = nil
	s.stalled.Add(-1)
	s.log.Info("a log can be written again", "app", c.saved.App, "pod", c.saved.Pod, "log", c.saved.Log)
}

// recreateLog makes a log file again that was gone when the server came back. A
// step is open; it goes to the new file.
func (s *Server) recreateLog(c *container) error {
	fd, id, size, err := openLogFile(c.saved.Log, unix.O_CREAT)
	if err != nil {
		return err
	}
	c.log = fd
	c.cur.Log, c.cur.Offset = id, size
	c.rec.put(c.cur)
	return nil
}

// mirrorLines copies lines to the journal.
func (s *Server) mirrorLines(c *container, stream uint8, in []byte, end bool) {
	if s.mirror == nil || !c.saved.Journal {
		return
	}
	if c.mirror == nil {
		c.mirror = s.mirror(c.saved.Spec, c.saved.Invocation)
	}
	c.mirror.Lines(streamName(stream), func() ([]byte, bool, bool) {
		line, whole, n := next(in, end)
		in = in[n:]
		return line, whole, n > 0
	})
}
