package main

import (
	"context"
	"fmt"
	"os"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// measureIdle starts pods that do nothing, and takes what the machine pays for
// them: memory, and CPU time while a client lists them as kubelet does.
func measureIdle(ctx context.Context, b *bench, e *engine) error {
	// The engine was just started: what its first pods make it need is no price of
	// the next ones.
	if err := b.start(ctx, e, max(8, b.pods/2), 8); err != nil {
		return err
	}
	if err := b.removeAll(ctx, e); err != nil {
		return err
	}
	before, err := b.restingMemory(ctx)
	if err != nil {
		return err
	}
	if err := b.start(ctx, e, b.pods, 4); err != nil {
		return err
	}
	after, err := b.restingMemory(ctx)
	if err != nil {
		return err
	}
	b.add(mMemory, e, (after.total()-before.total())/float64(b.pods))
	fmt.Fprintf(os.Stderr, "bench: memory of %s by program, KB with none and with %d pods: %s\n", e.name, b.pods, grown(before, after))
	used, err := b.idleCPU(ctx, e)
	if err != nil {
		return err
	}
	b.add(mIdle, e, used)
	return b.removeAll(ctx, e)
}

// restTime bounds the wait for memory to be given back, which Go programs do in
// their own time.
const restTime = 30 * time.Second

// restingMemory waits until memory neither grows nor shrinks.
func (b *bench) restingMemory(ctx context.Context) (memory, error) {
	if err := settle(ctx); err != nil {
		return nil, err
	}
	deadline := time.Now().Add(restTime)
	last, err := measureMemory()
	for calm := 0; err == nil && calm < 3 && time.Now().Before(deadline); {
		time.Sleep(2 * time.Second)
		var now memory
		now, err = measureMemory()
		if d := now.total() - last.total(); d > -100 && d < 100 {
			calm++
		} else {
			calm = 0
		}
		last = now
	}
	return last, err
}

// idleCPU is the CPU time, in milliseconds a second, of the engine, PID 1 and the
// bus while the pods are listed once a second.
func (b *bench) idleCPU(ctx context.Context, e *engine) (float64, error) {
	groups, err := e.cgroups()
	if err != nil {
		return 0, err
	}
	before, err := cpuTime(groups)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for range b.seconds {
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-tick.C:
		}
		pods, err := e.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
		if err != nil {
			return 0, err
		}
		apps, err := e.ListContainers(ctx, &cri.ListContainersRequest{})
		if err != nil {
			return 0, err
		}
		if len(pods.Items) != b.pods || len(apps.Containers) != b.pods {
			return 0, fmt.Errorf("%d pods and %d containers are listed, want %d", len(pods.Items), len(apps.Containers), b.pods)
		}
	}
	after, err := cpuTime(groups)
	return ms(after-before) / time.Since(began).Seconds(), err
}
