package criserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"gantry/internal/engine"
	"gantry/internal/pod"
)

func (s *runtimeService) Exec(_ context.Context, r *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	a, err := s.running("exec", r.GetContainerId())
	if err != nil {
		return nil, err
	}
	if len(r.Cmd) == 0 {
		return nil, fmt.Errorf("cmd: must not be empty: %w", pod.ErrInvalid)
	}
	r.ContainerId = string(a.ID)
	return s.stream.GetExec(r)
}

func (s *runtimeService) Attach(_ context.Context, r *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	a, err := s.running("attach", r.GetContainerId())
	if err != nil {
		return nil, err
	}
	if r.Tty != a.TTY {
		return nil, fmt.Errorf("tty: is %t, but the container's is %t: %w", r.Tty, a.TTY, pod.ErrInvalid)
	}
	r.ContainerId = string(a.ID)
	return s.stream.GetAttach(r)
}

func (s *runtimeService) PortForward(_ context.Context, r *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	p, err := s.findPod(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if !p.Ready {
		return nil, fmt.Errorf("forward ports of pod %s: it is not ready: %w", p.ID, pod.ErrState)
	}
	r.PodSandboxId = string(p.ID)
	return s.stream.GetPortForward(r)
}

// streamServer serves the sessions of exec, attach and port forward to whoever
// has a token, which is good for one session.
type streamServer struct {
	streaming.Server
	address string
	http    *http.Server

	mu     sync.Mutex
	conns  map[*watchedConn]struct{}
	closed bool
}

func newStreamServer(e engine.API, address string, idle time.Duration, count *telemetry, log *slog.Logger) (*streamServer, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	cfg := streaming.DefaultConfig
	cfg.Addr = l.Addr().String()
	cfg.BaseURL = &url.URL{Scheme: "http", Host: cfg.Addr}
	cfg.StreamIdleTimeout = idle
	lib, err := streaming.NewServer(cfg, &sessions{engine: e, telemetry: count, log: log})
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	s := &streamServer{Server: lib, address: cfg.Addr, conns: map[*watchedConn]struct{}{}}
	s.http = &http.Server{
		Handler:           lib,
		ReadHeaderTimeout: 30 * time.Second,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return c.(*watchedConn).watch(ctx)
		},
	}
	go s.http.Serve(&watchedListener{Listener: l, server: s}) // ends with close
	return s, nil
}

// close ends the listener and all sessions.
func (s *streamServer) close() {
	s.http.Close()
	s.mu.Lock()
	s.closed = true
	conns := make([]*watchedConn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	s.mu.Unlock()
	for _, c := range conns {
		c.Close()
	}
}

// watchedListener and watchedConn make the context of a request end when its
// connection does. net/http stops watching a connection that was taken over, as
// these are; without this a command whose client vanished would run on for ever.
type watchedListener struct {
	net.Listener
	server *streamServer
}

func (l *watchedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	w := &watchedConn{Conn: c, server: l.server}
	l.server.mu.Lock()
	defer l.server.mu.Unlock()
	if l.server.closed {
		return nil, errors.Join(net.ErrClosed, c.Close())
	}
	l.server.conns[w] = struct{}{}
	return w, nil
}

type watchedConn struct {
	net.Conn
	server *streamServer
	end    context.CancelFunc // set before the connection is read from
}

func (c *watchedConn) watch(ctx context.Context) context.Context {
	ctx, c.end = context.WithCancel(ctx)
	return ctx
}

func (c *watchedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		c.end()
	}
	return n, err
}

func (c *watchedConn) Close() error {
	c.server.mu.Lock()
	delete(c.server.conns, c)
	c.server.mu.Unlock()
	if c.end != nil {
		c.end()
	}
	return c.Conn.Close()
}

// sessions runs what a session asks for.
type sessions struct {
	engine    engine.API
	telemetry *telemetry
	log       *slog.Logger
}

func (s *sessions) Exec(ctx context.Context, id string, cmd []string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	defer s.telemetry.session("exec")()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	code, err := s.engine.Exec(ctx, pod.ID(id), pod.Process{Argv: cmd, TTY: tty}, streams(ctx, in, out, errOut, tty, resize))
	s.log.Debug("exec session ended", "app", id, "code", code, "err", err)
	if err != nil {
		return err
	}
	if code != 0 {
		return utilexec.CodeExitError{Err: fmt.Errorf("exit status %d", code), Code: code}
	}
	return nil
}

func (s *sessions) Attach(ctx context.Context, id string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	defer s.telemetry.session("attach")()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	err := s.engine.Attach(ctx, pod.ID(id), streams(ctx, in, out, errOut, tty, resize))
	s.log.Debug("attach session ended", "app", id, "err", err)
	if errors.Is(err, context.Canceled) {
		return nil // the client left: nothing to tell it
	}
	return err
}

func (s *sessions) PortForward(ctx context.Context, id string, port int32, stream io.ReadWriteCloser) error {
	if port < 1 || port > 65535 {
		return fmt.Errorf("forward port %d of pod %s: %w", port, id, pod.ErrInvalid)
	}
	defer s.telemetry.session("portforward")()
	err := s.engine.PortForward(ctx, pod.ID(id), uint16(port), stream)
	s.log.Debug("port forward ended", "pod", id, "port", port, "err", err)
	return err
}

// streams passes on the ends of a session. A nil stream must stay a nil interface.
func streams(ctx context.Context, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) engine.Streams {
	s := engine.Streams{Stdin: in, TTY: tty}
	if out != nil {
		s.Stdout = out
	}
	if errOut != nil {
		s.Stderr = errOut
	}
	if resize != nil {
		s.Resize = sizes(ctx, resize)
	}
	return s
}

// sizes translates terminal sizes until ctx ends.
func sizes(ctx context.Context, from <-chan remotecommand.TerminalSize) <-chan engine.Size {
	to := make(chan engine.Size)
	go func() {
		defer close(to)
		for {
			select {
			case size, ok := <-from:
				if !ok {
					return
				}
				select {
				case to <- engine.Size{Width: size.Width, Height: size.Height}:
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return to
}
