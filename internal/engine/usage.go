package engine

import (
	"context"
	"sync"
	"time"

	"gantry/internal/pod"
)

const (
	// usageShare is how much more time passes than is spent on looking at writable
	// layers, of all apps together.
	usageShare = 20
	// usageForget is when an app that nobody asks about is forgotten.
	usageForget = 10 * time.Minute
)

// usage remembers what writable layers hold. A kubelet asks for all of them every
// ten seconds, and an app may have a million files: what took long to find out is
// good for long.
type usage struct {
	mu    sync.Mutex
	known map[pod.ID]used
}

type used struct {
	bytes, inodes uint64
	found, asked  time.Time
	took          time.Duration
}

// of tells what is below the directory of an app's writable layer.
func (u *usage) of(ctx context.Context, id pod.ID, dir string) (bytes, inodes uint64, err error) {
	now := time.Now()
	if k, ok := u.fresh(id, now); ok {
		return k.bytes, k.inodes, nil
	}
	bytes, inodes, err = diskUse(ctx, dir)
	if err == nil {
		u.keep(id, used{bytes, inodes, now, now, time.Since(now)})
	}
	return bytes, inodes, err
}

// fresh gives each app as many times its share as there are apps, so that their
// looks add up to one usageShare-th of the time.
func (u *usage) fresh(id pod.ID, now time.Time) (used, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	k, ok := u.known[id]
	if !ok {
		return k, false
	}
	k.asked = now
	u.known[id] = k
	return k, now.Sub(k.found) < k.took*usageShare*time.Duration(len(u.known))
}

func (u *usage) keep(id pod.ID, k used) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.known == nil {
		u.known = map[pod.ID]used{}
	}
	for other, o := range u.known {
		if k.asked.Sub(o.asked) > usageForget {
			delete(u.known, other)
		}
	}
	u.known[id] = k
}
