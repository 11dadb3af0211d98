package engine

import (
	"context"
	"io/fs"
	"os"
	"sync"
	"syscall"
	"time"

	"gantry/internal/pod"
)

const (
	// usageShare is how much more time passes than is spent on looking at writable
	// layers, of all apps together.
	usageShare = 20
	// usageForget is when an app that nobody asks about is forgotten.
	usageForget = 10 * time.Minute
	// usageWait is how long an answer waits for a look that is under way. After that it
	// has the numbers of the last one, none at first.
	usageWait = time.Second
	// usageDepth bounds the directories in each other that are looked into: each is a
	// descriptor, and an app may nest them for ever.
	usageDepth = 256
)

// usage remembers what writable layers hold. A kubelet asks for all of them every
// ten seconds, and an app may have a million files: what took long to find out is
// good for long.
type usage struct {
	mu    sync.Mutex
	known map[pod.ID]used
	looks map[pod.ID]chan struct{} // under way; closed at their end
}

type used struct {
	bytes, inodes uint64
	found, asked  time.Time
	took          time.Duration
}

// of tells what is below the directory of an app's writable layer. The look goes on
// when nobody waits for it any more: its result is for the next one who asks.
func (u *usage) of(ctx context.Context, id pod.ID, dir string) (bytes, inodes uint64) {
	k, ok := u.fresh(id, time.Now())
	if ok {
		return k.bytes, k.inodes
	}
	select {
	case <-u.look(context.WithoutCancel(ctx), id, dir):
		k, _ = u.last(id)
	case <-time.After(usageWait):
	case <-ctx.Done():
	}
	return k.bytes, k.inodes
}

// look begins a look at an app's layer, or joins the one under way.
func (u *usage) look(ctx context.Context, id pod.ID, dir string) (done <-chan struct{}) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if under := u.looks[id]; under != nil {
		return under
	}
	if u.looks == nil {
		u.looks = map[pod.ID]chan struct{}{}
	}
	ended := make(chan struct{})
	u.looks[id] = ended
	go func() {
		now := time.Now()
		bytes, inodes := diskUse(ctx, dir)
		u.keep(id, used{bytes, inodes, now, now, time.Since(now)})
		u.mu.Lock()
		defer u.mu.Unlock()
		delete(u.looks, id)
		close(ended)
	}()
	return ended
}

func (u *usage) last(id pod.ID) (used, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	k, ok := u.known[id]
	return k, ok
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

// diskUse sums what is below a directory. Files come and go meanwhile, and what
// cannot be reached is left out: an app must not hide all its numbers by one
// directory. No path is followed out of the directory, whatever the app does to it.
func diskUse(ctx context.Context, dir string) (bytes, inodes uint64) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return 0, 0
	}
	sum := func(info fs.FileInfo) {
		inodes++
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			bytes += uint64(st.Blocks) * 512
		}
	}
	if info, err := root.Lstat("."); err == nil {
		sum(info)
	}
	sumBelow(ctx, root, usageDepth, sum)
	return bytes, inodes
}

// sumBelow closes dir.
func sumBelow(ctx context.Context, dir *os.Root, depth int, sum func(fs.FileInfo)) {
	defer dir.Close()
	list, err := dir.Open(".")
	if err != nil {
		return
	}
	defer list.Close()
	for ctx.Err() == nil {
		names, err := list.Readdirnames(1024)
		for _, name := range names {
			info, err := dir.Lstat(name)
			if err != nil {
				continue
			}
			sum(info)
			if !info.IsDir() || depth == 0 {
				continue
			}
			if sub, err := dir.OpenRoot(name); err == nil {
				sumBelow(ctx, sub, depth-1, sum)
			}
		}
		if err != nil {
			return
		}
	}
}
