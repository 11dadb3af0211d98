package engine

import (
	"context"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/pod"
)

const (
	// usageShare is how much more time passes than is spent on looking at writable
	// layers, of all apps together.
	usageShare = 20
	// usageForget is when an app that nobody asks about is forgotten, and the longest
	// that a look may take.
	usageForget = 10 * time.Minute
	// usageWait is how long after its begin an answer waits for a look. After that it
	// has the numbers of the last one, none at first.
	usageWait = time.Second
	// usageDepth bounds the directories in each other that are looked into: each is a
	// descriptor and some names, usageNames at most, and an app may nest them for ever.
	usageDepth = 1024
	usageNames = 32
	// usageLooks bounds the looks at the same time.
	usageLooks = 4
)

// usage remembers what writable layers hold. A kubelet asks for all of them every
// ten seconds, and an app may have a million files: what took long to find out is
// good for long.
type usage struct {
	life  context.Context // ends all looks
	slots chan struct{}   // of looks at the same time
	mu    sync.Mutex
	known map[pod.ID]used
	looks map[pod.ID]*look // waiting or under way
}

type look struct {
	begun time.Time
	done  chan struct{}
}

func newUsage(life context.Context) *usage {
	return &usage{life: life, slots: make(chan struct{}, usageLooks), known: map[pod.ID]used{}, looks: map[pod.ID]*look{}}
}

type used struct {
	bytes, inodes uint64
	found, asked  time.Time
	took          time.Duration
}

// layer is how an app's writable layer is looked at: what it holds, and whether that is all.
type layer struct {
	look   func(context.Context) (bytes, inodes uint64, all bool)
	remote bool // not on this host: it takes nothing of what others wait for
}

// below looks at a directory.
func below(dir string) layer {
	return layer{look: func(ctx context.Context) (bytes, inodes uint64, all bool) {
		bytes, inodes = diskUse(ctx, dir)
		return bytes, inodes, ctx.Err() == nil
	}}
}

// of tells what is in an app's writable layer. The look goes on
// when nobody waits for it any more: its result is for the next one who asks.
func (u *usage) of(ctx context.Context, id pod.ID, in layer) (bytes, inodes uint64) {
	k, ok := u.fresh(id, time.Now())
	if ok {
		return k.bytes, k.inodes
	}
	l := u.look(id, in)
	select {
	case <-l.done:
		k, _ = u.last(id)
	case <-time.After(time.Until(l.begun.Add(usageWait))):
	case <-ctx.Done():
	}
	return k.bytes, k.inodes
}

// begin begins to look, if there is need to.
func (u *usage) begin(id pod.ID, in layer) {
	if _, ok := u.fresh(id, time.Now()); !ok {
		u.look(id, in)
	}
}

// look begins a look at an app's layer, or joins the one under way.
func (u *usage) look(id pod.ID, in layer) *look {
	u.mu.Lock()
	defer u.mu.Unlock()
	if under := u.looks[id]; under != nil {
		return under
	}
	l := &look{begun: time.Now(), done: make(chan struct{})}
	u.looks[id] = l
	go func() {
		defer u.ended(id, l)
		if !in.remote {
			select {
			case u.slots <- struct{}{}:
				defer func() { <-u.slots }()
			case <-u.life.Done():
				return
			}
		}
		ctx, cancel := context.WithTimeout(u.life, usageForget)
		defer cancel()
		now := time.Now()
		bytes, inodes, all := in.look(ctx)
		if !all {
			before, _ := u.last(id)
			bytes, inodes = max(bytes, before.bytes), max(inodes, before.inodes)
		}
		u.keep(id, used{bytes, inodes, now, now, time.Since(now)})
	}()
	return l
}

func (u *usage) ended(id pod.ID, l *look) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.looks, id)
	close(l.done)
}

// all is what is in several layers. Those that nobody has looked at are waited for as one
// is, all together.
func (u *usage) all(ctx context.Context, layers map[pod.ID]layer) (bytes, inodes uint64) {
	first := map[pod.ID]*look{}
	for id, in := range layers {
		if _, seen := u.last(id); !seen {
			first[id] = u.look(id, in)
		} else {
			u.begin(id, in)
		}
	}
	for _, l := range first {
		select {
		case <-l.done:
		case <-time.After(time.Until(l.begun.Add(usageWait))):
		case <-ctx.Done():
		}
	}
	for id := range layers {
		k, _ := u.last(id)
		bytes, inodes = bytes+k.bytes, inodes+k.inodes
	}
	return bytes, inodes
}

// forget is for an app that is no more.
func (u *usage) forget(id pod.ID) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.known, id)
}

func (u *usage) last(id pod.ID) (used, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	k, ok := u.known[id]
	return k, ok
}

// fresh gives each app as many times its share as there are apps, so that their
// looks add up to one usageShare-th of the time. Nothing is good for longer than
// usageForget, or an app could hide what it writes behind many small files.
func (u *usage) fresh(id pod.ID, now time.Time) (used, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	k, ok := u.known[id]
	if !ok {
		return k, false
	}
	k.asked = now
	u.known[id] = k
	return k, now.Sub(k.found) < min(usageForget, k.took*usageShare*time.Duration(len(u.known)))
}

func (u *usage) keep(id pod.ID, k used) {
	u.mu.Lock()
	defer u.mu.Unlock()
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
	sum := func(st *unix.Stat_t) {
		inodes++
		bytes += uint64(st.Blocks) * 512
	}
	root, err := openDir(unix.AT_FDCWD, dir)
	if err != nil {
		return 0, 0
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(root.Fd()), &st); err == nil {
		sum(&st)
	}
	sumBelow(ctx, root, usageDepth, sum)
	return bytes, inodes
}

// openDir opens a directory and nothing else. The app may put a pipe or a device in
// its place at any moment: opening those could block for ever, or do things.
func openDir(at int, name string) (*os.File, error) {
	fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// sumBelow closes dir.
func sumBelow(ctx context.Context, dir *os.File, depth int, sum func(*unix.Stat_t)) {
	defer dir.Close()
	for ctx.Err() == nil {
		names, err := dir.Readdirnames(usageNames)
		for _, name := range names {
			var st unix.Stat_t
			if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				continue
			}
			sum(&st)
			if st.Mode&unix.S_IFMT != unix.S_IFDIR || depth == 0 || ctx.Err() != nil {
				continue
			}
			if sub, err := openDir(int(dir.Fd()), name); err == nil {
				sumBelow(ctx, sub, depth-1, sum)
			}
		}
		if err != nil {
			return
		}
	}
}
