// Command gantry-stdio holds the pipes and terminals of all apps and writes their
// logs. systemd starts it on demand (gantry-stdio.socket) and keeps what it holds
// while it is away; see docs/stdio.md.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"gantry/internal/journal"
	"gantry/internal/stdio"
)

// The heap is tiny and lives long, so it is kept tight: a machine runs this for
// every app it has. One thread reads while one waits for the disk.
const (
	gcPercent  = 40
	maxThreads = 2
)

func main() {
	debug.SetGCPercent(gcPercent)
	runtime.GOMAXPROCS(maxThreads)
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "gantry-stdio:", err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) > 1 {
		return errors.New("takes no arguments: systemctl start gantry-stdio.socket")
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{ReplaceAttr: dropTime}))

	files, err := stdio.ListenFiles(os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS"), os.Getenv("LISTEN_FDNAMES"))
	if err != nil {
		return err
	}
	store, err := stdio.OpenStore(os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		return err
	}
	cfg := stdio.Config{RunDir: os.Getenv("GANTRY_STDIO_DIR"), Files: files, Store: store, Log: log}
	if mirror, err := journal.NewMirror(journal.MirrorConfig{}); err != nil {
		log.Error("lines are not copied to the journal", "error", err)
	} else {
		defer mirror.Close()
		cfg.Mirror = func(s stdio.Spec, invocation string) stdio.MirrorSource {
			return mirror.Source(fields(s, invocation))
		}
	}
	s, err := stdio.New(cfg)
	if err != nil {
		return err
	}
	return s.Run(ctx)
}

// fields are what every journal entry of an app carries.
func fields(s stdio.Spec, invocation string) []journal.Field {
	f := []journal.Field{
		{Name: "SYSLOG_IDENTIFIER", Value: s.AppName},
		{Name: "OBJECT_SYSTEMD_UNIT", Value: s.Unit},
		{Name: "GANTRY_POD", Value: string(s.Pod)},
		{Name: "GANTRY_POD_NAME", Value: s.PodName},
		{Name: "GANTRY_NAMESPACE", Value: s.Namespace},
		{Name: "GANTRY_APP", Value: s.AppName},
		{Name: "GANTRY_APP_ID", Value: string(s.App)},
	}
	if invocation != "" {
		f = append(f, journal.Field{Name: "OBJECT_SYSTEMD_INVOCATION_ID", Value: invocation})
	}
	return f
}

// dropTime leaves the time out: the journal has its own.
func dropTime(groups []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey && len(groups) == 0 {
		return slog.Attr{}
	}
	return a
}
