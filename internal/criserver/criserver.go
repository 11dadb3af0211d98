// Package criserver serves the Container Runtime Interface to a kubelet: it takes
// each request apart with package cri, calls one use case of the engine, and puts
// the answer together. What it adds is what belongs to a server alone: readiness,
// error codes, logging, streaming sessions and whose pods may be touched.
//
// It keeps no state but open sessions and the last CPU time of each pod; it may be killed
// at any moment.
package criserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"gantry/internal/cri"
	"gantry/internal/engine"
	"gantry/internal/image"
	"gantry/internal/network"
)

// maxMessage is what clients of the CRI take and send at most.
const maxMessage = 16 << 20

// Images is what the server needs of the image store.
type Images interface {
	Pull(ctx context.Context, ref string, o image.PullOptions) (*image.Image, error)
	Image(name string) (*image.Image, error)
	Images() ([]*image.Image, error)
	Whole(img *image.Image) error
	Remove(ctx context.Context, name string) error
	Info() (image.FsInfo, error)
	Mountpoint() string
}

// Network is what the server needs of the pod network.
type Network interface {
	Status(ctx context.Context) error
	Info(ctx context.Context) network.Info
	SetPodCIDRs(cidrs []string)
}

// Handler is a way to run pods that kubelet may ask for by name.
type Handler struct {
	Name              string
	RecursiveReadOnly bool
	UserNamespaces    bool
}

// Config of a Server.
type Config struct {
	Engine  engine.API
	Images  Images  // nil: the engine's
	Network Network // nil: the engine's
	// Tracer makes a span of each request; nil makes none.
	Tracer trace.TracerProvider
	// Handlers that there are; the first is the default.
	Handlers []Handler
	// Off tells of handlers that the operator has switched off what switches them on.
	Off map[string]error
	// MountOptions tells that the handlers honour noexec, nodev and nosuid.
	MountOptions bool
	// Version of Gantry, as semver wants it.
	Version string
	// StreamAddress is where exec, attach and port forward sessions are served;
	// "" is a free port of 127.0.0.1.
	StreamAddress string
	// StreamIdle closes sessions on which nothing happens; 0 is four hours.
	StreamIdle time.Duration
	// Slow requests are logged even if they succeed; 0 is ten seconds.
	Slow time.Duration
	Log  *slog.Logger
}

// Server is a CRI server.
type Server struct {
	cfg    Config
	log    *slog.Logger
	grpc   *grpc.Server
	stream *streamServer
	check  *cri.Checker
	active atomic.Int64
	slow   atomic.Int64 // a time.Duration
	tidy   *time.Timer  // gives memory back after things have changed
	// closing is closed when no request may wait for something to happen any more.
	closing   chan struct{}
	closeOnce sync.Once
	telemetry *telemetry
	rates     rates
	pulls     pulls
	newer     newer
}

// New makes a Server that listens for streaming sessions already. Serve or Close
// must be called.
func New(cfg Config) (*Server, error) {
	if cfg.Images == nil {
		cfg.Images = cfg.Engine.Images()
	}
	if cfg.Network == nil {
		cfg.Network = cfg.Engine.Network()
	}
	if len(cfg.Handlers) == 0 {
		return nil, errors.New("make cri server: no runtime handlers")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.StreamAddress = cmp.Or(cfg.StreamAddress, "127.0.0.1:0")
	cfg.StreamIdle = cmp.Or(cfg.StreamIdle, 4*time.Hour)
	s := &Server{cfg: cfg, log: cfg.Log, check: cri.NewChecker(), tidy: time.AfterFunc(tidyDelay, debug.FreeOSMemory), closing: make(chan struct{})}
	s.SetSlow(cfg.Slow)
	s.pulls.log = cfg.Log
	s.telemetry = newTelemetry(s)
	stream, err := newStreamServer(cfg.Engine, cfg.StreamAddress, cfg.StreamIdle, s.telemetry, cfg.Log)
	if err != nil {
		return nil, fmt.Errorf("serve streams: %w", err)
	}
	s.stream = stream
	s.grpc = grpc.NewServer(append(traced(cfg.Tracer),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxSendMsgSize(2*maxMessage),
		grpc.ChainUnaryInterceptor(s.unary),
		grpc.ChainStreamInterceptor(s.streaming),
	)...)
	runtimeapi.RegisterRuntimeServiceServer(s.grpc, &runtimeService{Server: s})
	runtimeapi.RegisterImageServiceServer(s.grpc, &imageService{Server: s})
	return s, nil
}

// SetSlow changes from when on a request is one that is logged, as Config.Slow.
func (s *Server) SetSlow(d time.Duration) { s.slow.Store(int64(cmp.Or(d, 10*time.Second))) }

// Serve answers requests until ctx ends, then lets those that run finish, for at
// most grace, and closes the streaming sessions. The listener is closed, but a
// socket that systemd holds stays: clients wait in its queue.
func (s *Server) Serve(ctx context.Context, l net.Listener, grace time.Duration) error {
	defer s.Close()
	done := make(chan error, 1)
	go func() { done <- s.grpc.Serve(l) }()
	select {
	case err := <-done:
		return fmt.Errorf("serve cri: %w", err)
	case <-ctx.Done():
	}
	s.closeOnce.Do(func() { close(s.closing) })
	if n := s.active.Load(); n > 0 {
		s.log.Info("waiting for requests to finish", "requests", n, "grace", grace)
	}
	stopped := make(chan struct{})
	go func() { s.grpc.GracefulStop(); close(stopped) }()
	select {
	case <-stopped:
	case <-time.After(grace):
		s.log.Warn("requests were cut off", "requests", s.active.Load(), "grace", grace)
	}
	s.grpc.Stop()
	<-done
	return nil
}

// Close stops everything at once.
func (s *Server) Close() {
	s.tidy.Stop()
	s.closeOnce.Do(func() { close(s.closing) })
	s.grpc.Stop()
	s.stream.close()
}

// LogTo sends what the Kubernetes libraries log to log. It is for the program's
// main function: those libraries know one logger in a process.
func LogTo(log *slog.Logger) { klog.SetSlogLogger(log) }

// runtimeService and imageService carry the methods. What they do not have
// answers Unimplemented.
type runtimeService struct {
	*Server
	runtimeapi.UnimplementedRuntimeServiceServer
}

type imageService struct {
	*Server
	runtimeapi.UnimplementedImageServiceServer
}
