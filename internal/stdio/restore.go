package stdio

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// restore takes over what systemd kept and the records tell. Both were changed
// one after the other, so a kill may leave a part that the other does not know:
// such a start was never acknowledged, or such an end was, and it is dropped.
func (s *Server) restore(files []File) error {
	byName := map[string][]int{}
	for _, f := range files {
		if f.Name != SocketName {
			byName[f.Name] = append(byName[f.Name], f.FD)
			continue
		}
		l, err := newListener(f.FD)
		if err != nil {
			return fmt.Errorf("take over the socket: %w", err)
		}
		s.listeners = append(s.listeners, l)
	}
	w := <-s.spare
	defer func() { s.spare <- w }()
	known := map[string]bool{recordsName: true, failpointName: true}
	for i := range s.records.high {
		rec := s.records.at(i)
		if !rec.used() {
			continue
		}
		if c := s.revive(w, i, rec, byName); c != nil {
			known[c.key] = true
		}
	}
	for name, fds := range byName {
		s.log.Info("descriptors of a start that did not happen are dropped", "name", name, "count", len(fds))
		if err := s.store.Remove(name); err != nil {
			return err
		}
		closeAll(fds)
	}
	return s.sweep(known)
}

// sweep removes directories that belong to nobody.
func (s *Server) sweep(known map[string]bool) error {
	entries, err := os.ReadDir(s.runDir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !known[e.Name()] {
			if err := os.RemoveAll(filepath.Join(s.runDir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// revive makes a container from its record and takes its descriptors out of
// files. It returns nil when there is nothing left to serve.
func (s *Server) revive(w *worker, index int, rec *record, files map[string][]int) *container {
	c := &container{index: index, rec: rec, key: rec.name(), log: -1, stdin: -1}
	for i := range c.streams {
		c.streams[i] = stream{c: c, id: uint8(i), src: -1, stage: -1}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	data, err := os.ReadFile(filepath.Join(s.appDir(c), specCopy))
	if err == nil {
		err = json.Unmarshal(data, &c.saved)
	}
	if err == nil && !c.take(files) {
		err = errors.New("systemd has none of its descriptors")
	}
	if err != nil {
		s.log.Warn("a record is dropped", "key", c.key, "app", c.saved.App, "error", err)
		s.records.release(index)
		return nil
	}
	s.resume(w, c)
	s.enter(c)
	if err := s.connect(c, files); err != nil {
		s.log.Error("an app's streams cannot be served", "app", c.saved.App, "error", err)
	}
	// The app and all about it may have been removed meanwhile.
	if _, err := os.Stat(c.saved.Dir); errors.Is(err, os.ErrNotExist) && s.pump(w, c) && c.ended() {
		s.finish(w, c)
		return nil
	}
	return c
}

// take finds out which of the descriptors is which, by their inodes. It takes
// nothing of an app of which only its stdin got into the store: what is left in
// files is dropped.
func (c *container) take(files map[string][]int) bool {
	if len(files[c.key]) == 0 {
		return false
	}
	var pipes [pipeCount]int
	for i := range pipes {
		pipes[i] = -1
	}
	for _, name := range []string{c.key, c.key + nameStdin} {
		for _, fd := range files[name] {
			ino, err := inodeOf(fd)
			role := 0
			for role < pipeCount && (err != nil || c.rec.inode[role] != ino || pipes[role] >= 0) {
				role++
			}
			if role == pipeCount {
				unix.Close(fd)
				continue
			}
			pipes[role] = fd
		}
		delete(files, name)
	}
	for i := range c.streams {
		c.streams[i].src, c.streams[i].stage = pipes[pipeOut+i], pipes[pipeStage+i]
	}
	c.stdin = pipes[pipeStdin]
	return c.streams[0].stage >= 0
}

// resume completes the step that the kill cut short.
func (s *Server) resume(w *worker, c *container) {
	var size int64
	var err error
	if c.cur, err = c.rec.current(); err != nil {
		s.log.Error("a record is damaged: lines may be doubled", "app", c.saved.App, "error", err)
		c.cur = state{slot: slot{Phase: phaseWritten}}
		for i := range c.streams {
			c.cur.Carry[i] = uint32(readable(c.streams[i].stage))
		}
	}
	if c.saved.Log != "" {
		if c.log, size, err = findLog(c.saved.Log, c.cur.Log); err != nil {
			s.log.Warn("a log file is gone, it will be made again", "app", c.saved.App, "log", c.saved.Log, "error", err)
		}
	}
	// Somebody may have truncated the file.
	c.cur.Offset = min(c.cur.Offset, size)

	for i := range c.streams {
		stage := c.streams[i].stage
		if stage < 0 {
			continue
		}
		have, carry := readable(stage), int(c.cur.Carry[i])
		current := c.cur.Phase == phaseOpen && int(c.cur.Stream) == i
		switch {
		case current && c.cur.Step == stepChunk && have > carry,
			current && c.cur.Step != stepChunk:
			_ = s.complete(w, c) // else it stays open, and is tried again
		case current:
			c.cur.Phase = phaseWritten
		case have > carry:
			if err := s.discard(w, stage, have-carry); err != nil {
				s.log.Error("resume", "app", c.saved.App, "error", err)
			}
		}
	}
}

// connect lets the poller serve c, and takes over its input and its terminal.
func (s *Server) connect(c *container, files map[string][]int) error {
	var err error
	for _, fd := range files[c.key+nameTerminal] {
		closeAll([]int{c.streams[stdout].src}) // of a start that was tried twice
		c.streams[stdout].src = fd
		err = errors.Join(err, unix.SetNonblock(fd, true))
	}
	delete(files, c.key+nameTerminal)
	for i := range c.streams {
		if st := &c.streams[i]; st.src >= 0 {
			err = errors.Join(err, s.arm(st))
		}
	}
	if c.stdin >= 0 && c.rec.flag(flagStdinClosed) {
		err = errors.Join(err, s.endInput(c))
	}
	listeners := files[c.key+nameListener]
	delete(files, c.key+nameListener)
	switch {
	case !c.saved.TTY:
	case c.streams[stdout].src >= 0 || len(listeners) == 0:
		closeAll(listeners)
		err = errors.Join(err, s.store.Remove(c.key+nameListener))
	default:
		err = errors.Join(err, s.awaitTerminal(c, listeners[0]))
	}
	return err
}
