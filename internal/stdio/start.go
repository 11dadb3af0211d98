package stdio

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"gantry/internal/pod"
)

// Names in systemd's store have at most 8 characters, since all of them together
// are one environment string of at most 128 KiB. A key has 7; what comes and goes
// on its own during an app's life has a letter more.
const (
	keyLength     = 7
	nameStdin     = "i"
	nameListener  = "c"
	nameTerminal  = "t"
	specCopy      = "spec.json"
	consoleSocket = "console.sock"
)

// start answers with an app's ends of its streams, making them if need be.
func (s *Server) start(req request, peer int) (reply, []int, error) {
	spec, err := readSpec(req.Dir)
	if err != nil {
		return reply{}, nil, err
	}
	defer s.lockApp(spec.App)()
	c, err := s.find(spec.App)
	if errors.Is(err, pod.ErrNotFound) {
		c, err = s.create(saved{Spec: spec, Dir: req.Dir, Invocation: req.Invocation, Cgroup: cgroupOf(peer, spec.Unit)})
		if err == nil {
			err = s.stillWanted(c)
		}
	}
	if err != nil {
		return reply{}, nil, fmt.Errorf("start streams of app %s: %w", spec.App, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.finished {
		// Drained in this very moment: whoever did that gave the app up.
		return reply{}, nil, fmt.Errorf("start streams of app %s: they have just ended: %w", spec.App, pod.ErrState)
	}
	if c.saved.TTY {
		err := s.openConsole(c)
		return reply{Console: s.consolePath(c)}, nil, err
	}
	ends, err := s.appEnds(c)
	return reply{}, ends, err
}

// stillWanted gives up what was made for an app that was removed meanwhile: nobody
// would ever drain it.
func (s *Server) stillWanted(c *container) error {
	_, err := os.Lstat(filepath.Join(c.saved.Dir, SpecName))
	if err == nil {
		return nil
	}
	w := <-s.spare
	defer func() { s.spare <- w }()
	c.mu.Lock()
	defer c.mu.Unlock()
	s.finish(w, c)
	return err
}

func readSpec(dir string) (Spec, error) {
	if !filepath.IsAbs(dir) {
		return Spec{}, fmt.Errorf("app directory %q is not absolute: %w", dir, pod.ErrInvalid)
	}
	data, err := os.ReadFile(filepath.Join(dir, SpecName))
	if err != nil {
		return Spec{}, err
	}
	return ParseSpec(data)
}

// lockApp lets one start or drain of an app happen at a time.
func (s *Server) lockApp(app pod.ID) (unlock func()) {
	for {
		s.mu.Lock()
		other := s.busy[app]
		if other == nil {
			done := make(chan struct{})
			s.busy[app] = done
			s.mu.Unlock()
			return func() {
				s.mu.Lock()
				delete(s.busy, app)
				s.mu.Unlock()
				close(done)
			}
		}
		s.mu.Unlock()
		<-other
	}
}

// appEnds opens the app's ends of its pipes. A second start of an app gets ends
// of the same pipes; what ended is live again then. c.mu is held.
func (s *Server) appEnds(c *container) ([]int, error) {
	var ends []int
	var err error
	open := func(fd, flags int) {
		if err == nil {
			var end int
			if end, err = reopenFD(fd, flags); err == nil {
				ends = append(ends, end)
			}
		}
	}
	if c.stdin >= 0 {
		open(c.stdin, unix.O_RDONLY)
	} else {
		var null int
		if null, err = unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
			ends = append(ends, null)
		}
	}
	for i := range c.streams {
		open(c.streams[i].src, unix.O_WRONLY)
	}
	if err != nil {
		closeAll(ends)
		return nil, err
	}
	// Only now do the outputs have writers, and can be waited for.
	for i := range c.streams {
		if err := s.arm(&c.streams[i]); err != nil {
			closeAll(ends)
			return nil, err
		}
	}
	c.signal() // who has input for the app may go on
	return ends, nil
}

// arm makes sure that a stream is served, from the start or again after its end.
func (s *Server) arm(st *stream) error {
	if !st.armed {
		st.armed = true
		return s.poller.add(st)
	}
	if st.eof {
		st.eof = false
		s.poller.rearm(st)
	}
	return nil
}

// create makes an app's pipes and does not return before they are safe.
func (s *Server) create(sv saved) (*container, error) {
	c := &container{saved: sv, log: -1, stdin: -1}
	for i := range c.streams {
		c.streams[i] = stream{c: c, id: uint8(i), src: -1, stage: -1}
	}
	err := s.makeFiles(c)
	if err == nil {
		err = s.record(c)
	}
	if err != nil {
		c.closeFiles()
		return nil, err
	}
	s.fp.hit("start-recorded")
	if err := s.keep(c); err != nil {
		s.forget(c)
		c.closeFiles()
		return nil, err
	}
	s.fp.hit("start-stored")
	s.enter(c)
	return c, nil
}

// makeFiles opens the log and makes the pipes. The app's ends are opened when
// they are sent: an output without writers is not read before that.
func (s *Server) makeFiles(c *container) error {
	c.cur.Phase = phaseWritten
	if c.saved.Log != "" {
		var err error
		if c.log, c.cur.Log, c.cur.Offset, err = openLog(c.saved.Log); err != nil {
			return err
		}
	}
	n := len(c.streams)
	if c.saved.TTY {
		n = 1
	}
	for i := range c.streams[:n] {
		st := &c.streams[i]
		var err error
		if st.stage, err = rdwrPipe(); err != nil {
			return err
		}
		if c.saved.TTY {
			continue
		}
		if st.src, err = onePipeEnd(0); err != nil {
			return err
		}
	}
	if c.saved.Stdin && !c.saved.TTY {
		var err error
		if c.stdin, err = onePipeEnd(1); err != nil {
			return err
		}
	}
	return nil
}

// onePipeEnd makes a pipe and keeps its read (0) or write (1) end. The other one
// is opened again from it when it is needed.
func onePipeEnd(end int) (int, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return -1, os.NewSyscallError("pipe", err)
	}
	unix.Close(p[1-end])
	if err := unix.SetNonblock(p[end], true); err != nil {
		unix.Close(p[end])
		return -1, err
	}
	return p[end], nil
}

// record writes down what c is. It is not in use before all of it is there.
func (s *Server) record(c *container) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.newKey(c); err != nil {
		return err
	}
	data, err := json.Marshal(c.saved)
	if err == nil {
		err = os.WriteFile(filepath.Join(s.appDir(c), specCopy), data, 0o600)
	}
	if err == nil {
		c.index, c.rec, err = s.records.alloc()
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(s.appDir(c)))
	}
	copy(c.rec.key[:], c.key)
	for role, fd := range c.pipes() {
		if fd < 0 {
			continue
		}
		if c.rec.inode[role], err = inodeOf(fd); err != nil {
			return err
		}
	}
	c.rec.put(c.cur)
	c.rec.publish()
	return nil
}

// pipes lists c's descriptors in the order of a record.
func (c *container) pipes() [pipeCount]int {
	return [pipeCount]int{c.streams[0].src, c.streams[1].src, c.streams[0].stage, c.streams[1].stage, c.stdin}
}

func inodeOf(fd int) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, os.NewSyscallError("fstat", err)
	}
	return st.Ino, nil
}

// newKey finds a name that nothing has. The directory of that name is the lock.
func (s *Server) newKey(c *container) error {
	for try := 0; ; try++ {
		c.key = keyOf(c.saved.App, try)
		err := os.Mkdir(s.appDir(c), 0o700)
		if err == nil {
			return nil
		}
		if !errors.Is(err, os.ErrExist) || try == 100 {
			return err
		}
	}
}

// keyOf is the beginning of the app's id, for people; when that is taken, or is
// not plain, a random one.
func keyOf(app pod.ID, try int) string {
	if try == 0 && len(app) >= keyLength && pod.IsIDPrefix(string(app[:keyLength])) {
		return string(app[:keyLength])
	}
	var b [5]byte
	rand.Read(b[:])
	return strings.ToLower(base32.StdEncoding.EncodeToString(b[:]))[:keyLength]
}

func (s *Server) appDir(c *container) string      { return filepath.Join(s.runDir, c.key) }
func (s *Server) consolePath(c *container) string { return filepath.Join(s.appDir(c), consoleSocket) }

// keep puts c's descriptors into systemd's store.
func (s *Server) keep(c *container) error {
	var fds []int
	for role, fd := range c.pipes() {
		if fd >= 0 && role != pipeStdin {
			fds = append(fds, fd)
		}
	}
	if c.stdin >= 0 {
		if err := s.store.put(c.key+nameStdin, c.stdin); err != nil {
			return err
		}
		s.fp.hit("start-stdin")
	}
	return s.store.Add(c.key, fds...) // its barrier is for both
}

// cgroupOf finds the cgroup of an app's unit from a process in it: gantry-init.
func cgroupOf(pid int, unit string) string {
	if pid <= 0 || unit == "" {
		return ""
	}
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !ok {
			continue
		}
		if i := strings.Index(path+"/", "/"+unit+"/"); i >= 0 {
			return path[:i+1+len(unit)]
		}
	}
	return ""
}
