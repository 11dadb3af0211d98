package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"

	"gantry/internal/config"
	"gantry/internal/criserver"
	"gantry/internal/engine"
	"gantry/internal/node"
	"gantry/internal/pod"
)

// patience is how long clients are kept waiting in the socket's queue for the
// state to be loaded; after that they are told that it is not.
const patience = 5 * time.Second

func serve(ctx context.Context, cfg config.Config, files []string, load loader, level *slog.LevelVar, log *slog.Logger) error {
	began := time.Now()
	criserver.LogTo(log)
	options := node.FromConfig(cfg)
	options.Log, options.Failpoints = log, os.Getenv("GANTRY_FAILPOINTS")
	n, err := node.Open(ctx, options)
	if err != nil {
		return err
	}
	defer n.Close()
	// The engine works on until the last request is answered.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	failed := make(chan error, 1)
	loaded := make(chan struct{})
	go func() {
		if err := n.Watch(life); err != nil {
			failed <- fmt.Errorf("watch: %w", err)
			return
		}
		close(loaded)
	}()
	go n.Network().Watch(life)

	tracer, flush := tracing(ctx, cfg.CRITracing, cfg.CRITracingRate, log)
	defer flush()
	features := n.Features()
	s, err := criserver.New(criserver.Config{
		Engine: n, Handlers: handlers(features), Off: switchedOff(features), MountOptions: features[0].Features.MountOptions,
		Version: criserver.Semver(version), StreamAddress: cfg.CRIStreamAddress, StreamIdle: cfg.CRIStreamIdle, Slow: cfg.CRISlow, Log: log, Tracer: tracer,
	})
	if err != nil {
		return err
	}
	defer s.Close()
	again := &reloader{load: load, started: cfg, inForce: cfg, log: log, apply: func(c config.Config) {
		setLevel(level, c.LogLevel)
		s.SetSlow(c.CRISlow)
		n.SetWeaker(node.FromConfig(c).Weaker)
	}}
	go again.onHangup(life, hangups())
	defer serveMetrics(cfg.CRIMetrics, s.Metrics(), log)()
	l, err := listen(cfg.CRISocket)
	if err != nil {
		return err
	}
	select {
	case <-loaded:
	case err := <-failed:
		return errors.Join(err, l.Close())
	case <-time.After(patience):
		log.Warn("the state is not loaded yet; requests are refused until it is")
	}
	log.Info("serving", "socket", l.Addr().String(), "version", version, "config", files, "after", time.Since(began).Round(time.Millisecond))
	return answer(ctx, s, l, n, cfg.CRIStopGrace, failed, log)
}

// serveMetrics returns what ends it. An address that cannot be had is no reason to leave
// the node without an engine.
func serveMetrics(address string, h http.Handler, log *slog.Logger) (stop func()) {
	if address == "" {
		return func() {}
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		log.Error("there are no metrics", "address", address, "err", err)
		return func() {}
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", h)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, WriteTimeout: time.Minute, IdleTimeout: time.Minute, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn)}
	go func() {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Error("metrics have ended", "err", err)
		}
	}()
	log.Info("serving metrics", "address", l.Addr().String())
	return func() { _ = server.Close() } // those who ask may ask again
}

// answer serves until ctx ends or the engine's watch fails, and tells systemd.
func answer(ctx context.Context, s *criserver.Server, l net.Listener, e engine.API, grace time.Duration, failed <-chan error, log *slog.Logger) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case err := <-failed:
			cancel(err)
		case <-ctx.Done():
		}
	}()
	tell(log, daemon.SdNotifyReady)
	go watchdog(ctx, e, log)
	context.AfterFunc(ctx, func() { tell(log, daemon.SdNotifyStopping) })
	err := s.Serve(ctx, l, grace)
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		err = errors.Join(err, cause)
	}
	return err
}

func tell(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("systemd cannot be told", "state", state, "err", err)
	}
}

// switchedOff are the isolators that no RuntimeClass can name, and why.
func switchedOff(features []engine.IsolatorFeatures) map[string]error {
	out := map[string]error{}
	for _, f := range features {
		if f.Off {
			out[f.Name] = f.Broken
		}
	}
	return out
}

// handlers are the isolators, under the names that a RuntimeClass gives.
func handlers(features []engine.IsolatorFeatures) []criserver.Handler {
	var out []criserver.Handler
	for _, f := range features {
		if slices.ContainsFunc(out, func(h criserver.Handler) bool { return h.Name == f.Name }) {
			continue // a file that cannot be used, because it has that name
		}
		if f.Off {
			continue
		}
		out = append(out, criserver.Handler{
			Name: f.Name, RecursiveReadOnly: f.Features.RecursiveReadOnlyMounts, UserNamespaces: f.Features.UserNamespaces,
		})
	}
	return out
}

// listen takes the socket that systemd holds, so that no client is ever refused
// while this program restarts; without systemd it makes its own.
func listen(path string) (net.Listener, error) {
	handed, err := activation.Listeners()
	if err != nil {
		return nil, fmt.Errorf("take socket from systemd: %w", err)
	}
	switch len(handed) {
	case 0:
		return listenAt(path)
	case 1:
		if handed[0] == nil || handed[0].Addr().Network() != "unix" {
			return nil, errors.New("take socket from systemd: want a unix stream socket")
		}
		return handed[0], nil
	}
	return nil, fmt.Errorf("take socket from systemd: got %d, want 1", len(handed))
}

func listenAt(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if c, err := net.Dial("unix", path); err == nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: somebody serves there already", path), c.Close())
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	// Nobody else may connect, not even for the moment before a chmod.
	old := syscall.Umask(0o117)
	defer syscall.Umask(old)
	return net.Listen("unix", path)
}

// watchdog tells systemd that all is well, as often as the unit's WatchdogSec=
// wants, as long as the engine's view can be read. A program that hangs is killed
// by systemd, which shows where it hung, and started again: no pod depends on it.
func watchdog(ctx context.Context, e engine.API, log *slog.Logger) {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil || interval == 0 {
		return
	}
	tick := time.NewTicker(interval / 3)
	defer tick.Stop()
	for {
		if _, err := e.Pods(engine.Filter{Owner: pod.OwnerCRI}); err != nil {
			log.Debug("the view cannot be read", "err", err)
		}
		tell(log, daemon.SdNotifyWatchdog)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
