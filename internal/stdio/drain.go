package stdio

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/pod"
)

const cgroupRoot = "/sys/fs/cgroup"

// drain ends an app's streams when all that it wrote is in its log: its outputs
// ended, or nothing of it runs any more and its pipes are empty (somebody outside
// may hold them open for ever), or the time is over.
func (s *Server) drain(ctx context.Context, app pod.ID, timeout time.Duration, peer int) error {
	defer s.lockApp(app)() // a start that is under way comes first
	c, err := s.find(app)
	if err != nil {
		return nil
	}
	w := <-s.spare
	defer func() { s.spare <- w }()
	deadline := time.Now().Add(timeout)
	for pause := 2 * time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		// Looked at before the pipes: what it wrote, it wrote before it was gone.
		empty := cgroupEmpty(c.saved.Cgroup, peer)
		late := !time.Now().Before(deadline)
		c.mu.Lock()
		written := s.pump(w, c)
		if c.finished {
			c.mu.Unlock()
			return nil
		}
		coming := c.console != nil && c.console.coming()
		if written && !coming && (c.ended() || empty) || late {
			s.finish(w, c)
			c.mu.Unlock()
			return nil
		}
		changed := c.wait()
		c.mu.Unlock()

		s.spare <- w
		select {
		case <-ctx.Done():
		case <-changed:
		case <-time.After(pause):
		}
		w = <-s.spare
		if ctx.Err() != nil {
			return errTaken // no answer: the next server is asked again
		}
	}
}

// pumpTurns bounds what one call of pump moves of a stream: what the app left is
// a pipe full, and whoever else holds the pipe may never stop.
const pumpTurns = 64

// pump moves what there is to move and tells whether it is all in the log.
func (s *Server) pump(w *worker, c *container) bool {
	if c.finished {
		return true
	}
	all := true
	for i := range c.streams {
		st := &c.streams[i]
		for turns := 0; st.src >= 0 && !st.eof; turns++ {
			if turns == pumpTurns {
				all = false
				break
			}
			out := s.turn(w, st)
			if out == outStalled {
				return false
			}
			if out == outIdle || out == outEnd {
				break
			}
		}
	}
	return all && c.cur.Phase == phaseWritten
}

// finish writes what is left of unfinished lines, and drops all that is kept for
// the app. c.mu is held.
func (s *Server) finish(w *worker, c *container) {
	for i := range c.streams {
		st := &c.streams[i]
		if c.cur.Phase == phaseOpen && s.complete(w, c) != nil {
			break
		}
		if st.stage >= 0 && c.cur.Carry[i] > 0 {
			_ = s.step(w, c, st.id, stepFlush)
		}
	}
	if c.cur.Phase == phaseWritten && c.cur.DroppedLines > 0 {
		_ = s.step(w, c, stdout, stepMarker)
	}
	if c.cur.Phase == phaseOpen && c.fail != nil {
		s.log.Error("the end of a log is lost: it could not be written in time",
			"app", c.saved.App, "pod", c.saved.Pod, "log", c.saved.Log, "error", c.fail.err)
	}
	if c.fail != nil {
		s.stalled.Add(-1)
	}
	s.fp.hit("drain-flushed")
	c.finished = true
	for i := range c.streams {
		if st := &c.streams[i]; st.armed {
			s.poller.del(st)
		}
	}
	s.mu.Lock()
	if s.byApp[c.saved.App] == c {
		delete(s.byApp, c.saved.App)
	}
	s.byIndex[c.index] = nil
	s.mu.Unlock()
	s.forget(c)
	s.sinkEnd(c)
	if c.mirror != nil {
		c.mirror.Close()
	}
	c.closeFiles()
	c.signal()
}

// forget drops what a later server would find of c. Should this be cut short, the
// next server finds descriptors without a record, or a record without
// descriptors, and ends both.
func (s *Server) forget(c *container) {
	names := []string{""}
	if c.stdin >= 0 {
		names = append(names, nameStdin)
	}
	if c.saved.TTY {
		names = append(names, nameListener, nameTerminal)
	}
	for _, name := range names {
		if err := s.store.Remove(c.key + name); err != nil {
			s.log.Error("descriptors stay in systemd's store", "app", c.saved.App, "error", err)
		}
	}
	s.fp.hit("drain-forgotten")
	s.mu.Lock()
	s.records.release(c.index)
	s.mu.Unlock()
	s.fp.hit("drain-retired")
	if err := os.RemoveAll(s.appDir(c)); err != nil {
		s.log.Error("directory stays", "app", c.saved.App, "error", err)
	}
}

func (c *container) closeFiles() {
	for i := range c.streams {
		st := &c.streams[i]
		closeAll([]int{st.src, st.stage})
		st.src, st.stage = -1, -1
	}
	closeAll([]int{c.log, c.stdin})
	c.log, c.stdin = -1, -1
	if c.input != nil {
		c.input.Close()
		c.input = nil
	}
	if c.console != nil {
		c.console.close()
		c.console = nil
	}
}

// cgroupEmpty tells whether no process of an app is left. The one who asks does
// not count, nor do the other control processes of its unit.
func cgroupEmpty(cgroup string, peer int) bool {
	if cgroup == "" {
		return false
	}
	empty := true
	err := filepath.WalkDir(cgroupRoot+cgroup, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV):
			return nil
		case err != nil:
			return err
		case !d.IsDir():
			return nil
		case d.Name() == ".control":
			return fs.SkipDir
		}
		data, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, pid := range strings.Fields(string(data)) {
			if pid != strconv.Itoa(peer) {
				empty = false
				return fs.SkipAll
			}
		}
		return nil
	})
	return err == nil && empty
}
