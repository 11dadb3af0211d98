package criserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/cri"
	"gantry/internal/engine"
	"gantry/internal/pod"
)

// Every request passes through here: it waits for nothing, is refused while the
// engine's view is not complete or for a field that nothing takes, becomes a code if
// it fails, and is logged once.

func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (resp any, err error) {
	defer s.begin(ctx, info.FullMethod, req)(&err)
	if err := s.admit(info.FullMethod); err != nil {
		return nil, err
	}
	if err := s.examine(path.Base(info.FullMethod), req); err != nil {
		return nil, err
	}
	return handle(ctx, req)
}

func (s *Server) streaming(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) (err error) {
	defer s.begin(ss.Context(), info.FullMethod, nil)(&err)
	if err := s.admit(info.FullMethod); err != nil {
		return err
	}
	return handle(srv, &examined{ss, func(req any) error { return s.examine(path.Base(info.FullMethod), req) }})
}

// examined is a stream whose request is looked at when it comes.
type examined struct {
	grpc.ServerStream
	examine func(req any) error
}

func (s *examined) RecvMsg(req any) error {
	if err := s.ServerStream.RecvMsg(req); err != nil {
		return err
	}
	return s.examine(req)
}

// examine refuses a request with a field that the table refuses, and tells of fields
// that a newer client sent: they have no effect here, and that must be seen somewhere.
func (s *Server) examine(method string, req any) error {
	m, ok := req.(proto.Message)
	if !ok {
		return nil
	}
	if fields := cri.Unknown("", m); len(fields) > 0 && s.newer.first(method+" "+strings.Join(fields, " ")) {
		s.log.Warn("request has fields of a newer CRI, which have no effect", "method", method, "fields", fields)
	}
	return s.check.Check("", m)
}

// newer is what was told of newer fields. Kubelet sends some requests each second: it
// is told once until the server is started anew, or has forgotten.
type newer struct {
	mu   sync.Mutex
	told map[string]bool
}

// maxTold bounds what is remembered.
const maxTold = 100

func (n *newer) first(what string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.told[what] {
		return false
	}
	if n.told == nil || len(n.told) >= maxTold {
		n.told = map[string]bool{}
	}
	n.told[what] = true
	return true
}

// begin returns what has to be deferred: it turns a panic into an error, logs, and
// maps the error.
func (s *Server) begin(ctx context.Context, method string, req any) func(*error) {
	start := time.Now()
	s.active.Add(1)
	return func(err *error) {
		s.active.Add(-1)
		if leavesGarbage(path.Base(method)) {
			s.tidy.Reset(tidyDelay)
		}
		if p := recover(); p != nil {
			s.log.Error("request panicked", "method", path.Base(method), "panic", p, "stack", string(debug.Stack()))
			*err = status.Errorf(codes.Internal, "%s: internal error: %v", path.Base(method), p)
		}
		s.telemetry.count(path.Base(method), time.Since(start), *err)
		mark(ctx, req, *err)
		s.record(ctx, path.Base(method), req, time.Since(start), *err)
		*err = toStatus(*err)
	}
}

// tidyDelay after the last change what the changes left is collected: a server that
// is only asked for lists makes so little garbage that nothing else would do it
// for minutes.
const tidyDelay = 3 * time.Second

// leavesGarbage tells of the requests that make much of it: those that change
// something. They are told by their names, as those that look are.
func leavesGarbage(method string) bool {
	for _, verb := range []string{"RunPod", "Stop", "Remove", "Create", "Start", "Update", "Pull"} {
		if strings.HasPrefix(method, verb) {
			return true
		}
	}
	return false
}

// admit refuses what needs the engine's view of pods while it is incomplete.
// Listing too little would make kubelet kill pods. Status is refused too: kubelet
// bears half a minute without an answer, while a condition that is false makes the
// node not ready at once.
func (s *Server) admit(method string) error {
	switch path.Base(method) {
	case "Version", "RuntimeConfig", "UpdateRuntimeConfig", "PullImage", "ImageFsInfo", "ListMetricDescriptors", "GetContainerEvents":
		return nil
	}
	if err := s.cfg.Engine.Ready(); err != nil {
		if errors.Is(err, pod.ErrUnavailable) {
			return err
		}
		return fmt.Errorf("%w: %w", pod.ErrUnavailable, err)
	}
	return nil
}

// record logs a request, once. Requests are never logged whole: they hold
// environments and passwords.
func (s *Server) record(ctx context.Context, method string, req any, took time.Duration, err error) {
	level, msg := slog.LevelDebug, "request"
	switch c := code(err); {
	case err == nil && took >= time.Duration(s.slow.Load()):
		level, msg = slog.LevelInfo, "slow request"
	case err == nil:
	case c == codes.NotFound || c == codes.Unimplemented || c == codes.Canceled:
		msg = "request failed" // part of kubelet's normal life
	default:
		level, msg = slog.LevelWarn, "request failed"
	}
	if !s.log.Enabled(ctx, level) {
		return
	}
	attrs := []slog.Attr{slog.String("method", method), slog.Duration("took", took.Round(time.Millisecond/10))}
	attrs = append(attrs, subject(req)...)
	if err != nil {
		attrs = append(attrs, slog.String("code", code(err).String()), slog.String("err", message(err)))
		var at *engine.StageError
		if errors.As(err, &at) {
			attrs = append(attrs, slog.String("stage", at.Stage), slog.Duration("stageTook", at.Took.Round(time.Millisecond/10)))
		}
	}
	s.log.LogAttrs(ctx, level, msg, attrs...)
}

// subject names what a request is about.
func subject(req any) []slog.Attr {
	var attrs []slog.Attr
	if r, ok := req.(interface{ GetPodSandboxId() string }); ok && r.GetPodSandboxId() != "" {
		attrs = append(attrs, slog.String("pod", r.GetPodSandboxId()))
	}
	if r, ok := req.(interface{ GetContainerId() string }); ok && r.GetContainerId() != "" {
		attrs = append(attrs, slog.String("app", r.GetContainerId()))
	}
	if r, ok := req.(interface{ GetImage() *runtimeapi.ImageSpec }); ok && r.GetImage() != nil {
		attrs = append(attrs, slog.String("image", r.GetImage().Image))
	}
	return attrs
}
