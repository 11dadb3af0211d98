package cli

import (
	"context"
	"errors"
	"log/slog"

	"gantry/internal/engine"
	"gantry/internal/image"
	"gantry/internal/pod"
)

// Engine is what commands need of engine.Engine.
type Engine interface {
	engine.API
	// WaitApp waits until an app has exited; pod.ErrState is for one that never will start.
	WaitApp(ctx context.Context, id pod.ID) (pod.AppStatus, error)
	// Features are those of all isolators, the default's first.
	Features() []engine.IsolatorFeatures
}

// Images is what commands need of the image store.
type Images interface {
	Pull(ctx context.Context, ref string, o image.PullOptions) (*image.Image, error)
	Image(name string) (*image.Image, error)
	Images() ([]*image.Image, error)
	Remove(ctx context.Context, name string) error
	RemoveDamaged(ctx context.Context, id string) error
	Untag(ctx context.Context, name string) error
}

// OpenOptions are the global flags that concern the engine.
type OpenOptions struct{ Log *slog.Logger }

// Backend is an open engine.
type Backend struct {
	Engine Engine
	Images Images
	// Root is the state directory: a pod's logs and volumes are in its own
	// directory below it, and go with it.
	Root  string
	Close func() error
}

// open opens the engine for one command.
func (env *Env) open(ctx context.Context) (*Backend, error) {
	return env.Open(ctx, OpenOptions{Log: env.log()})
}

func (env *Env) log() *slog.Logger {
	if !env.debug {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(env.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// with runs f with an open engine.
func (env *Env) with(ctx context.Context, f func(*Backend) error) (err error) {
	be, err := env.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, be.Close()) }()
	return f(be)
}
