package main

import (
	"context"
	"fmt"
	"time"
)

// samples is how many pods an engine starts in a turn, one after the other.
const samples = 3

// measurePods times the life of single pods: start, exec, stop, removal. Most pods
// of a node have an image that another pod has, too: one runs beside those that
// are measured, but for the first ones.
func measurePods(ctx context.Context, b *bench, e *engine) error {
	for range samples - 1 {
		if _, err := b.timeStart(ctx, e, mStartFirst, false, ""); err != nil {
			return err
		}
		if err := b.removeAll(ctx, e); err != nil {
			return err
		}
	}
	if _, err := b.startOne(ctx, e, true, ""); err != nil {
		return err
	}
	for range samples {
		err := b.startHost(ctx, e, mStartHost, "")
		if err == nil && e.name == "gantry" {
			err = b.startHost(ctx, e, mStartFly, "fly")
		}
		if err == nil {
			err = b.life(ctx, e)
		}
		if err != nil {
			return err
		}
	}
	return b.removeAll(ctx, e)
}

// startHost times the start of a pod in the host's network, and takes it away.
func (b *bench) startHost(ctx context.Context, e *engine, metric, handler string) error {
	p, err := b.timeStart(ctx, e, metric, true, handler)
	if err == nil {
		err = p.stop(ctx)
	}
	if err == nil {
		err = p.remove(ctx)
	}
	return err
}

// timeStart starts an idle pod and takes the time to its first log line.
func (b *bench) timeStart(ctx context.Context, e *engine, metric string, host bool, handler string) (*pod, error) {
	p, err := b.startOne(ctx, e, host, handler)
	if err != nil {
		return nil, err
	}
	b.add(metric, e, ms(time.Since(p.started)))
	return p, nil
}

// life is a pod's from its start to its removal.
func (b *bench) life(ctx context.Context, e *engine) error {
	p, err := b.timeStart(ctx, e, mStart, false, "")
	if err != nil {
		return err
	}
	out, err := p.exec(ctx, "echo", "seen")
	if err != nil {
		return err
	}
	if out != "seen\n" {
		return fmt.Errorf("exec of echo seen gave %q", out)
	}
	for range 2 {
		began := time.Now()
		if _, err := p.exec(ctx, "true"); err != nil {
			return err
		}
		b.add(mExec, e, ms(time.Since(began)))
	}
	began := time.Now()
	if err := p.stop(ctx); err != nil {
		return err
	}
	b.add(mStop, e, ms(time.Since(began)))
	if err := p.remove(ctx); err != nil {
		return err
	}
	b.add(mRemove, e, ms(time.Since(began)))
	return nil
}

func measureParallel(ctx context.Context, b *bench, e *engine) error {
	began := time.Now()
	if err := b.start(ctx, e, 16, 8); err != nil {
		return err
	}
	b.add(mParallel, e, ms(time.Since(began)))
	n, err := payloads()
	if err != nil {
		return err
	}
	if n != 16 {
		return fmt.Errorf("%d of 16 pods run", n)
	}
	return b.removeAll(ctx, e)
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
