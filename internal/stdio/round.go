package stdio

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// How bytes get from an app's pipe into its log, so that a kill between any two
// instructions neither loses nor doubles a line:
//
//	0  slot "open": the log's length, the lines' time, how much each staging
//	   pipe holds of an unfinished line
//	1  splice: the app's pipe -> staging pipe. Both are in systemd's store, and
//	   bytes are in one or the other
//	2  tee: staging -> scratch, and read that copy
//	3  pwrite the lines that have ended at the place the slot tells
//	4  slot "written": the new length, what staging will hold
//	5  take the lines' bytes out of staging
//
// After a kill: slot "open" and staging holds more than the slot says: steps 2 to
// 5 again, which write the same bytes to the same place. Open and no more:
// nothing had happened. Slot "written": step 5, if staging still holds more than
// the slot says. A line that has not ended stays in staging; so lines are whole in
// the log however the app's writes fall.

const (
	chunkSize = 64 << 10
	outLimit  = 96 << 10 // one write to the log; a line more may fit
	outSize   = outLimit + headLen + maxLine + 1

	// smallChunk parts streams that trickle from those that flood, see poll.go.
	smallChunk    = 24 << 10
	smallTTYChunk = 1 << 10
	ttyChunk      = 4 << 10
)

// outcome of a turn.
type outcome int

const (
	outIdle    outcome = iota // nothing is left to read
	outSmall                  // took little: let it gather
	outFull                   // took much: there will be more
	outStalled                // the log cannot be written
	outEnd                    // the stream has ended
)

// worker has what it takes to do a turn.
type worker struct {
	in, out       []byte
	scratch, null int
}

func newWorker() (*worker, error) {
	scratch, err := rdwrPipe()
	if err != nil {
		return nil, err
	}
	// More pages than any staging pipe: a tee always takes all.
	if _, err := unix.FcntlInt(uintptr(scratch), unix.F_SETPIPE_SZ, 1<<20); err != nil {
		unix.Close(scratch)
		return nil, os.NewSyscallError("F_SETPIPE_SZ", err)
	}
	null, err := unix.Open(os.DevNull, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		unix.Close(scratch)
		return nil, os.NewSyscallError("open /dev/null", err)
	}
	return &worker{scratch: scratch, null: null}, nil
}

func (w *worker) close() { closeAll([]int{w.scratch, w.null}) }

// turn moves one chunk of a stream. c.mu is held.
func (s *Server) turn(w *worker, st *stream) outcome {
	c := st.c
	if c.cur.Phase == phaseOpen && s.complete(w, c) != nil {
		return outStalled
	}
	if c.cur.DroppedLines > 0 && s.step(w, c, st.id, stepMarker) != nil {
		return outStalled
	}
	n, err := s.chunk(w, st)
	if err == unix.EAGAIN && c.cur.Carry[st.id] > 0 && readable(st.src) > 0 {
		// Staging has no page left: the unfinished line came in very small pieces.
		if s.step(w, c, st.id, stepFlush) != nil {
			return outStalled
		}
		n, err = s.chunk(w, st)
	}
	switch {
	case err == unix.EAGAIN:
		return outIdle
	case errors.Is(err, errStalled):
		return outStalled
	case err == nil && n > 0:
		if n < smallChunk && !c.saved.TTY || n < smallTTYChunk {
			return outSmall
		}
		return outFull
	}
	// End of file; a terminal that is not open any more says EIO.
	if err != nil && err != unix.EIO {
		s.note(c, os.NewSyscallError("splice", err))
		return outStalled
	}
	if c.cur.Carry[st.id] > 0 && s.step(w, c, st.id, stepFlush) != nil {
		return outStalled
	}
	st.eof = true
	s.sinkEnd(c)
	c.signal()
	return outEnd
}

var errStalled = errors.New("the log cannot be written")

// chunk splices and writes what can be had at once; n is what was spliced.
func (s *Server) chunk(w *worker, st *stream) (n int, err error) {
	c := st.c
	before := c.cur
	c.begin(st.id, stepChunk)
	s.fp.hit("opened")
	size := chunkSize
	if c.saved.TTY {
		size = ttyChunk
	}
	n, err = splice(st.src, st.stage, size)
	if n <= 0 || err != nil {
		// The record says open, and staging that nothing came: that is as good.
		c.cur = before
		return 0, err
	}
	s.fp.hit("spliced")
	in, err := w.peek(st.stage, int(c.cur.Carry[st.id])+n)
	if err != nil {
		s.note(c, err)
		return n, errStalled
	}
	s.fp.hit("teed")
	for _, k := range c.sinks {
		k.push(st.id, in[len(in)-n:])
	}
	if s.commit(w, c, in) != nil {
		return n, errStalled
	}
	return n, nil
}

// step writes what staging holds, or the marker.
func (s *Server) step(w *worker, c *container, stream uint8, step uint8) error {
	c.begin(stream, step)
	return s.complete(w, c)
}

// begin says what is about to happen.
func (c *container) begin(stream, step uint8) {
	c.cur.Phase, c.cur.Step, c.cur.Stream = phaseOpen, step, stream
	c.cur.Time = time.Now().UnixNano()
	if c.log >= 0 {
		// Somebody may have truncated the file, or added to it. Never leave a hole,
		// never write over others.
		var st unix.Stat_t
		if unix.Fstat(c.log, &st) == nil {
			c.cur.Offset = st.Size
		}
	}
	c.rec.put(c.cur)
}

// complete does the rest of an open step, from what staging holds.
func (s *Server) complete(w *worker, c *container) error {
	if c.cur.Step == stepMarker {
		return s.commit(w, c, nil)
	}
	stage := c.streams[c.cur.Stream].stage
	in, err := w.peek(stage, readable(stage))
	if err != nil {
		s.note(c, err)
		return err
	}
	return s.commit(w, c, in)
}

// commit writes in to the log, says so and takes it out of staging.
func (s *Server) commit(w *worker, c *container, in []byte) error {
	end := c.cur.Step == stepFlush
	offset, taken, err := s.write(w, c, in)
	s.fp.hit("formatted")
	done := c.cur
	done.Phase = phaseWritten
	switch {
	case err != nil && !s.giveUp(c, err):
		return err
	case err != nil && done.Step != stepMarker:
		var lines uint64
		taken, lines = count(in, end)
		done.DroppedLines += lines
		done.DroppedBytes += uint64(taken)
		s.dropped.Add(lines)
	case err == nil:
		if offset > done.Offset {
			s.recover(c)
		}
		done.Offset = offset
		if done.Step == stepMarker {
			done.DroppedLines, done.DroppedBytes = 0, 0
		}
	}
	if done.Step == stepMarker {
		taken = 0
	} else {
		done.Taken[done.Stream] += uint64(len(in) - int(done.Carry[done.Stream]))
		done.Carry[done.Stream] = uint32(len(in) - taken)
	}
	c.cur = done
	c.rec.put(done)
	s.fp.hit("written")
	if taken > 0 {
		if err := s.discard(w, c.streams[done.Stream].stage, taken); err != nil {
			return err
		}
		s.mirrorLines(c, done.Stream, in[:taken], end)
	}
	s.fp.hit("drained")
	return nil
}

// write puts the step's lines into the log at the slot's offset.
func (s *Server) write(w *worker, c *container, in []byte) (offset int64, taken int, err error) {
	offset = c.cur.Offset
	if c.saved.Log == "" {
		taken, _ = count(in, c.cur.Step == stepFlush)
		return offset, taken, nil
	}
	if c.log < 0 {
		if err := s.recreateLog(c); err != nil {
			return offset, 0, err
		}
		offset = c.cur.Offset
	}
	stream, end := c.cur.Stream, c.cur.Step == stepFlush
	if c.cur.Step == stepMarker {
		in = fmt.Appendf(nil, "gantry: %d lines (%d bytes) are missing here: the log could not be written\n",
			c.cur.DroppedLines, c.cur.DroppedBytes)
		if !c.saved.TTY {
			stream = stderr
		}
	}
	if w.out == nil {
		w.out = make([]byte, 0, outSize)
	}
	f := newFormatter(stream, c.cur.Time)
	for {
		out, n := f.format(w.out[:0], in[taken:], end, outLimit)
		if n == 0 {
			return offset, taken, nil
		}
		if s.fp.is("half-written") {
			_ = pwrite(c.log, out[:len(out)/2], offset)
			s.fp.kill()
		}
		if err := pwrite(c.log, out, offset); err != nil {
			return offset, 0, err
		}
		offset += int64(len(out))
		taken += n
	}
}

// count tells how much of in are whole lines, and how many they are.
func count(in []byte, end bool) (taken int, lines uint64) {
	for {
		_, _, n := next(in[taken:], end)
		if n == 0 {
			return taken, lines
		}
		taken += n
		lines++
	}
}

// peek copies n bytes, all that a staging pipe holds, and leaves them there.
func (w *worker) peek(stage, n int) ([]byte, error) {
	if n == 0 {
		return nil, nil
	}
	if w.in == nil {
		w.in = make([]byte, max(chunkSize+maxCarry, 16*os.Getpagesize()))
	}
	if n > len(w.in) {
		return nil, fmt.Errorf("staging pipe holds %d bytes", n)
	}
	if _, err := tee(stage, w.scratch, n); err != nil {
		return nil, os.NewSyscallError("tee", err)
	}
	for got := 0; got < n; {
		m, err := unix.Read(w.scratch, w.in[got:n])
		if err == unix.EINTR {
			continue
		}
		if err != nil || m == 0 {
			return nil, errors.Join(fmt.Errorf("read %d of %d staged bytes: %w", got, n, err), w.empty())
		}
		got += m
	}
	return w.in[:n], nil
}

// empty replaces a scratch pipe that has an unknown rest in it.
func (w *worker) empty() error {
	fresh, err := newWorker()
	if err != nil {
		return err
	}
	w.close()
	w.scratch, w.null = fresh.scratch, fresh.null
	return nil
}

// discard takes n bytes out of a staging pipe.
func (s *Server) discard(w *worker, stage, n int) error {
	if s.fp.is("half-drained") {
		_, _ = splice(stage, w.null, max(1, n/2))
		s.fp.kill()
	}
	for n > 0 {
		m, err := splice(stage, w.null, n)
		if err != nil || m == 0 {
			return fmt.Errorf("discard %d staged bytes: %w", n, err)
		}
		n -= m
	}
	return nil
}

func splice(from, to, n int) (int, error) {
	for {
		m, err := unix.Splice(from, nil, to, nil, n, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		if err != unix.EINTR {
			return int(m), err
		}
	}
}

func tee(from, to, n int) (int64, error) {
	for {
		m, err := unix.Tee(from, to, n, unix.SPLICE_F_NONBLOCK)
		if err != unix.EINTR {
			return m, err
		}
	}
}

func pwrite(fd int, b []byte, at int64) error {
	for len(b) > 0 {
		n, err := unix.Pwrite(fd, b, at)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return os.NewSyscallError("pwrite", err)
		}
		b, at = b[n:], at+int64(n)
	}
	return nil
}

// rdwrPipe makes a pipe that one descriptor reads and writes: half the
// descriptors to keep in the store.
func rdwrPipe() (int, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return -1, os.NewSyscallError("pipe", err)
	}
	defer closeAll(p[:])
	return reopenFD(p[0], unix.O_RDWR|unix.O_NONBLOCK)
}

// reopenFD opens the other side of a pipe, or the same side again.
func reopenFD(fd, flags int) (int, error) {
	res, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open the other end of a pipe: %w", err)
	}
	return res, nil
}
