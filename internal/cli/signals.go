package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// signals are those that ask gantry to end. They are listened to from before a
// pod is made until it has ended, so that none falls between.
type signals chan os.Signal

func listen() signals {
	s := make(signals, 4)
	signal.Notify(s, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	return s
}

func (s signals) stop() { signal.Stop(s) }

// create makes a pod. The first signal gives it up and removes what is there of
// it; the second one ends gantry on the spot, and gc removes the rest some day.
func (s signals) create(ctx context.Context, env *Env, be *Backend, spec *podSpec, quiet bool) (*created, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	made := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-s:
			signal.Stop(s)
			cancel()
		case <-made:
		}
	}()
	c, err := create(ctx, env, be, spec, quiet)
	close(made)
	<-watched
	if ctx.Err() == nil {
		return c, err
	}
	if err == nil {
		err = removeAfter(ctx, be, c.pod.ID)
	}
	if err == nil || errors.Is(err, context.Canceled) {
		err = fmt.Errorf("create pod %s: interrupted", spec.Pod.Name)
	}
	return nil, err
}
