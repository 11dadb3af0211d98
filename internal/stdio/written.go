package stdio

import (
	"fmt"

	"gantry/internal/pod"
)

// written counts what was ever written to an app's outputs: what was taken out of them
// and what is in them still. A writer that was killed wrote as much, whatever it knew.
func (s *Server) written(app pod.ID) (n [2]uint64, err error) {
	defer s.lockApp(app)()
	c, err := s.find(app)
	if err != nil {
		return n, err
	}
	w := <-s.spare
	defer func() { s.spare <- w }()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.finished {
		return n, fmt.Errorf("streams of app %s: they have ended: %w", app, pod.ErrState)
	}
	if c.saved.TTY { // what a terminal holds cannot be counted: part of it is on its way
		s.pump(w, c)
	}
	for i := range c.streams {
		st := &c.streams[i]
		n[i] = c.cur.Taken[i]
		if st.stage >= 0 && c.cur.Phase == phaseOpen && c.cur.Step == stepChunk && c.cur.Stream == st.id {
			n[i] += uint64(readable(st.stage) - int(c.cur.Carry[i])) // a step that waits for the log
		}
		if st.src >= 0 {
			n[i] += uint64(readable(st.src))
		}
	}
	return n, nil
}
