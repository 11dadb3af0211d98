package crilog

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// watcher tells when something in a file's directory changed. Where inotify is
// not to be had (no directory yet, no watches left) it looks once in a while.
type watcher struct {
	notify *os.File
	events chan struct{}
}

// Without inotify the file is looked at this often; with it, in case that an
// event was lost.
const (
	poll      = 100 * time.Millisecond
	safetyNet = 2 * time.Second
)

func newWatcher(path string) *watcher {
	w := &watcher{events: make(chan struct{}, 1)}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return w
	}
	mask := uint32(unix.IN_MODIFY | unix.IN_CREATE | unix.IN_MOVED_TO)
	if _, err := unix.InotifyAddWatch(fd, filepath.Dir(path), mask); err != nil {
		unix.Close(fd)
		return w
	}
	w.notify = os.NewFile(uintptr(fd), "inotify")
	go w.pump()
	return w
}

// pump ends when the file is closed. Which event came does not matter.
func (w *watcher) pump() {
	buf := make([]byte, 16<<10)
	for {
		if _, err := w.notify.Read(buf); err != nil {
			return
		}
		select {
		case w.events <- struct{}{}:
		default:
		}
	}
}

func (w *watcher) wait(ctx context.Context, done <-chan struct{}) error {
	after := safetyNet
	if w.notify == nil {
		after = poll
	}
	timer := time.NewTimer(after)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-done:
	case <-w.events:
	case <-timer.C:
	}
	return nil
}

func (w *watcher) close() {
	if w.notify != nil {
		w.notify.Close()
	}
}
