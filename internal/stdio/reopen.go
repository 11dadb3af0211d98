package stdio

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"gantry/internal/pod"
)

// reopen makes the log's path name the file that lines go to, after it was moved
// aside. No line is written meanwhile, so the old file has all before and the new
// one all after.
func (s *Server) reopen(app pod.ID) error {
	c, err := s.find(app)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.finished || c.saved.Log == "" {
		return fmt.Errorf("app %s has no log: %w", app, pod.ErrState)
	}
	fd, id, size, err := openLogFile(c.saved.Log, unix.O_CREAT|unix.O_EXCL)
	created := err == nil
	if errors.Is(err, os.ErrExist) {
		fd, id, size, err = s.openExisting(c)
	}
	if err != nil {
		return err
	}
	if fd < 0 {
		return nil // nobody moved it
	}
	if created {
		s.fp.hit("reopen-created")
	}
	old, from := c.log, c.cur.Offset
	c.log, c.cur.Log, c.cur.Offset = fd, id, size
	c.rec.put(c.cur)
	s.fp.hit("reopen-switched")
	if old >= 0 {
		if c.cur.Phase == phaseOpen {
			// A step that could not be written goes to the new file as a whole.
			_ = unix.Ftruncate(old, from)
		}
		unix.Close(old)
	}
	return nil
}

// openExisting opens what is at the log's path; -1 if that is the current log.
func (s *Server) openExisting(c *container) (fd int, id logID, size int64, err error) {
	fd, id, _, err = openLogFile(c.saved.Log, 0)
	if err != nil {
		return fd, id, 0, err
	}
	unix.Close(fd)
	if c.log >= 0 && id == c.cur.Log {
		return -1, id, 0, nil
	}
	return openLog(c.saved.Log)
}
