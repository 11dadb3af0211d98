package stdio

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/pod"
)

// MirrorSource takes the lines of one app for the journal. It must not block.
type MirrorSource interface {
	// Lines gets lines by calling next until that has none left; whole is false for
	// a piece of a line that is too long.
	Lines(stream string, next func() (text []byte, whole, ok bool))
	Close()
}

// Config is what a Server needs.
type Config struct {
	RunDir string // "" is the fixed place
	// Files are those systemd handed over: listening sockets under SocketName, and
	// what was in the store when the service went away.
	Files []File
	Store *Store
	// Mirror copies lines to the journal; nil does not.
	Mirror func(s Spec, invocation string) MirrorSource
	Log    *slog.Logger
	// Workers is how many chunks are moved at once, 0 for the default.
	Workers int
	// Patience is how long an app may be stopped by a log that cannot be written
	// before its lines are dropped, 0 for the default.
	Patience time.Duration
}

// SocketName is the FileDescriptorName= of the listening socket.
const SocketName = "socket"

// Server is gantry-stdio.
type Server struct {
	runDir   string
	store    *Store
	mirror   func(Spec, string) MirrorSource
	log      *slog.Logger
	fp       *failpoint
	patience time.Duration

	poller    *poller
	listeners []*listener
	workers   sync.WaitGroup
	spare     chan *worker // for turns outside of the poller's
	tidy      *time.Timer  // gives memory back after things have changed
	dropped   atomic.Uint64
	stalled   atomic.Int64

	// mu guards the tables. It may be taken while a container's mu is held, not the
	// other way round.
	mu      sync.RWMutex
	records *records
	byApp   map[pod.ID]*container
	byIndex []*container
	gen     uint32
	busy    map[pod.ID]chan struct{} // apps that are being started
	early   map[pod.ID][]*early      // sessions with apps that are not
}

// New takes over what a former server left, and serves it from now on.
func New(cfg Config) (*Server, error) {
	s := &Server{
		runDir: cfg.RunDir, store: cfg.Store, mirror: cfg.Mirror, log: cfg.Log, patience: cfg.Patience,
		byApp: map[pod.ID]*container{}, busy: map[pod.ID]chan struct{}{}, early: map[pod.ID][]*early{}, spare: make(chan *worker, 2),
	}
	if s.runDir == "" {
		s.runDir = RunDir
	}
	if s.patience == 0 {
		s.patience = defaultPatience
	}
	if err := os.MkdirAll(s.runDir, 0o700); err != nil {
		return nil, err
	}
	s.tidy = time.AfterFunc(tidyDelay, debug.FreeOSMemory)
	var err error
	if s.fp, err = armFailpoint(s.runDir); err != nil {
		s.log.Error("failpoint not armed", "error", err)
	}
	if s.records, err = openRecords(filepath.Join(s.runDir, recordsName)); err != nil {
		return nil, err
	}
	if s.poller, err = newPoller(); err != nil {
		return nil, err
	}
	if err := s.addWorkers(cfg.Workers); err != nil {
		return nil, err
	}
	if err := s.restore(cfg.Files); err != nil {
		return nil, err
	}
	return s, nil
}

const (
	defaultWorkers = 3
	// tidyDelay after the last start or end of an app what these left is collected:
	// apps that only run make no garbage, so nothing else would ever do it.
	tidyDelay = 3 * time.Second
)

// addWorkers makes the workers; they start when all was taken over.
func (s *Server) addWorkers(n int) error {
	if n == 0 {
		n = defaultWorkers
	}
	for range n {
		w, err := newWorker()
		if err != nil {
			return err
		}
		s.workers.Go(func() {
			defer w.close()
			s.work(w)
		})
	}
	for range cap(s.spare) {
		w, err := newWorker()
		if err != nil {
			return err
		}
		s.spare <- w
	}
	return nil
}

// Run serves until ctx ends. It leaves everything as a kill would: the next
// server goes on from there.
func (s *Server) Run(ctx context.Context) error {
	if len(s.listeners) == 0 {
		return errors.New("no listening socket was handed over")
	}
	if err := s.store.Notify("READY=1"); err != nil {
		return fmt.Errorf("tell systemd: %w", err)
	}
	for _, l := range s.listeners {
		go s.accept(ctx, l)
	}
	<-ctx.Done()
	for _, l := range s.listeners {
		l.close()
	}
	s.poller.stop()
	s.workers.Wait()
	return nil
}

func (s *Server) accept(ctx context.Context, l *listener) {
	for {
		fd, err := l.accept()
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			var conn *seqpacket
			if conn, err = newSeqpacket(fd); err == nil {
				go s.converse(ctx, conn)
				continue
			}
		}
		s.log.Error("accept a connection", "error", err)
		time.Sleep(50 * time.Millisecond) // out of descriptors, most likely
	}
}

// converse answers the requests of one connection.
func (s *Server) converse(ctx context.Context, conn *seqpacket) {
	defer conn.close()
	buf := make([]byte, 8<<10)
	for {
		n, fds, err := conn.recv(buf)
		closeAll(fds)
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
				s.log.Warn("read a request", "error", err)
			}
			return
		}
		req, err := parseRequest(buf[:n])
		var rep reply
		var ends []int
		if err == nil {
			rep, ends, err = s.do(ctx, conn, req)
		}
		if err == errTaken {
			return
		}
		if err != nil {
			rep = errorReply(err)
		}
		err = sendReply(conn, rep, ends)
		closeAll(ends)
		if err != nil {
			return
		}
	}
}

func sendReply(conn *seqpacket, rep reply, fds []int) error {
	data, err := json.Marshal(rep)
	if err != nil {
		return err
	}
	return conn.send(data, fds...)
}

// errTaken says that there is nothing to answer: the connection became a session,
// which has ended, or the server is about to leave and the client asks the next.
var errTaken = errors.New("no answer")

// do answers one request; the descriptors go with the answer and are closed then.
func (s *Server) do(ctx context.Context, conn *seqpacket, req request) (reply, []int, error) {
	timeout := time.Duration(req.TimeoutMS) * time.Millisecond
	switch req.Op {
	case "start":
		s.tidy.Reset(tidyDelay)
		return s.start(req, conn.peer())
	case "console":
		return reply{}, nil, s.awaitConsole(ctx, req.App, timeout)
	case "drain":
		s.tidy.Reset(tidyDelay)
		return reply{}, nil, s.drain(ctx, req.App, timeout, conn.peer())
	case "written":
		n, err := s.written(req.App)
		return reply{Written: &n}, nil, err
	case "reopen":
		return reply{}, nil, s.reopen(req.App)
	case "attach":
		return reply{}, nil, s.attach(conn, req)
	case "resize":
		return reply{}, nil, s.resize(req.App, req.Size)
	case "close-stdin":
		return reply{}, nil, s.closeStdin(req.App)
	case "status":
		st, err := s.status(req.App)
		return reply{Status: st}, nil, err
	}
	return reply{}, nil, fmt.Errorf("operation %q: %w", req.Op, pod.ErrUnsupported)
}

// find gives an app's container, or ErrNotFound.
func (s *Server) find(app pod.ID) (*container, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if c := s.byApp[app]; c != nil {
		return c, nil
	}
	return nil, fmt.Errorf("app %s has no streams: %w", app, pod.ErrNotFound)
}

// streamOf finds whom an event is about; nil if that is gone.
func (s *Server) streamOf(e unix.EpollEvent) *stream {
	s.mu.RLock()
	defer s.mu.RUnlock()
	i := int(e.Fd) >> 1
	if i >= len(s.byIndex) || s.byIndex[i] == nil || int32(s.byIndex[i].gen) != e.Pad {
		return nil
	}
	return &s.byIndex[i].streams[e.Fd&1]
}

// enter puts a container into the tables.
func (s *Server) enter(c *container) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.byIndex) <= c.index {
		s.byIndex = append(s.byIndex, nil)
	}
	s.gen++
	c.gen = s.gen
	s.byIndex[c.index] = c
	s.byApp[c.saved.App] = c
	s.admit(c)
}

func (s *Server) status(app pod.ID) (*Status, error) {
	s.mu.RLock()
	st := &Status{Apps: len(s.byApp), Stalled: int(s.stalled.Load()), Dropped: s.dropped.Load(), PID: os.Getpid()}
	for _, of := range s.early {
		st.Early += len(of)
	}
	s.mu.RUnlock()
	if app == "" {
		return st, nil
	}
	c, err := s.find(app)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	st.App = &AppStatus{
		Key: c.key, Offset: c.cur.Offset, Pending: c.cur.Carry, Dropped: c.cur.DroppedLines,
		EOF: [2]bool{c.streams[0].eof, c.streams[1].eof}, Attached: len(c.sinks), Console: c.saved.TTY && c.streams[0].src >= 0,
	}
	if c.fail != nil {
		st.App.Stalled = c.fail.err.Error()
	}
	return st, nil
}
