package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"

	"gantry/internal/config"
)

// loader reads the configuration, with what the command line says of it.
type loader func() (config.Config, []string, error)

// reloader reads it again while the server runs. What cannot be changed then is
// told of: a restart does no pod any harm.
type reloader struct {
	load    loader
	started config.Config // what the server was started with
	inForce config.Config
	apply   func(config.Config)
	log     *slog.Logger
}

// live tells of a key that counts without a restart. What is in directories of others
// (CNI, CDI, registries, policies) is read when it is needed anyway.
func live(key string) bool {
	return slices.Contains([]string{"log.level", "cri.slow", "isolator.weaker-namespaces", "isolator.weaker-labels", "isolator.weaker-default"}, key)
}

// reload leaves all as it is if the new configuration is not valid.
func (r *reloader) reload() {
	cfg, files, err := r.load()
	if err != nil {
		r.log.Error("the configuration is not valid: what was in force stays", "err", err)
		return
	}
	changed := slices.DeleteFunc(config.Differences(r.inForce, cfg), func(key string) bool { return !live(key) })
	later := slices.DeleteFunc(config.Differences(r.started, cfg), live)
	r.apply(cfg)
	r.inForce = cfg
	r.log.Info("read the configuration again", "config", files, "changed", strings.Join(changed, " "))
	if len(later) > 0 {
		r.log.Warn("some of what has changed needs a restart: systemctl restart gantry-cri", "keys", strings.Join(later, " "))
	}
}

// hangups is what systemd says when it wants a reload.
func hangups() chan os.Signal {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGHUP)
	return c
}

// onHangup reloads whenever that is wanted, and tells systemd when it is done.
func (r *reloader) onHangup(ctx context.Context, hangups chan os.Signal) {
	defer signal.Stop(hangups)
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangups:
			tell(r.log, daemon.SdNotifyReloading+"\n"+daemon.SdNotifyMonotonicUsec())
			r.reload()
			tell(r.log, daemon.SdNotifyReady)
		}
	}
}
