package network

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// settle lets an installer finish what it began before it is looked at.
	settle = 50 * time.Millisecond
	// pollEvery is the fallback where inotify cannot be had.
	pollEvery = 2 * time.Second
)

// Watch keeps what Status and Info say fresh, until ctx ends or Close. Without it
// they read the configuration at every call. Add always reads it.
func (n *Network) Watch(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-n.stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	defer n.setWatching(false)
	warned := false
	for ctx.Err() == nil {
		w, err := n.arm()
		if err != nil {
			// Every call then reads the configuration itself.
			n.setWatching(false)
			if !warned {
				n.log.Warn("network configuration is polled, not watched", "err", err)
				warned = true
			}
			n.load(ctx)
			sleep(ctx, pollEvery)
			continue
		}
		n.load(ctx) // after arming: no change can be missed
		n.setWatching(true)
		wait(ctx, w)
		n.setWatching(false)
		w.Close()
		sleep(ctx, settle)
	}
}

func (n *Network) setWatching(on bool) {
	n.mu.Lock()
	n.watching = on
	n.mu.Unlock()
}

// arm makes an inotify instance that becomes readable on the first change to
// anything that decides about the configuration: its directory, the directories
// below it that complete lists, and those of the plugins. A directory that does
// not exist is watched for by the nearest one above it that does.
func (n *Network) arm() (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch: %w", err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	dirs := append([]string{n.cfg.ConfDir}, n.cfg.BinDirs...)
	if subs, err := os.ReadDir(n.cfg.ConfDir); err == nil {
		for _, e := range subs {
			if e.IsDir() {
				dirs = append(dirs, filepath.Join(n.cfg.ConfDir, e.Name()))
			}
		}
	}
	for _, d := range dirs {
		if err := watchNearest(fd, d); err != nil {
			f.Close()
			return nil, err
		}
	}
	return f, nil
}

func watchNearest(fd int, dir string) error {
	const (
		content = unix.IN_CLOSE_WRITE | unix.IN_MOVED_TO | unix.IN_MOVED_FROM | unix.IN_DELETE | unix.IN_CREATE | unix.IN_ATTRIB
		self    = unix.IN_DELETE_SELF | unix.IN_MOVE_SELF
		appears = unix.IN_CREATE | unix.IN_MOVED_TO
	)
	for d := dir; ; d = filepath.Dir(d) {
		mask := uint32(content | self | unix.IN_ONLYDIR)
		if d != dir {
			mask = appears | self | unix.IN_ONLYDIR | unix.IN_MASK_ADD
		}
		_, err := unix.InotifyAddWatch(fd, d, mask)
		switch {
		case err == nil && d != dir:
			// It may have been made just before the watch began.
			if _, err := os.Stat(filepath.Join(d, nextElement(d, dir))); err == nil {
				return watchNearest(fd, dir)
			}
			return nil
		case err == nil:
			return nil
		case d == filepath.Dir(d) || (err != unix.ENOENT && err != unix.ENOTDIR):
			return fmt.Errorf("watch %s: %w", d, err)
		}
	}
}

// nextElement is the element of path that follows base.
func nextElement(base, path string) string {
	for filepath.Dir(path) != base {
		path = filepath.Dir(path)
	}
	return filepath.Base(path)
}

// wait returns when the file is readable, or ctx ends.
func wait(ctx context.Context, f *os.File) {
	stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(past) })
	defer stop()
	var b [4096]byte
	_, _ = f.Read(b[:])
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
