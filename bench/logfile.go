package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// logFile is a container's log, watched from before it is there, so that its first
// line is seen when it comes and not at the next look.
type logFile struct {
	path  string
	watch int
}

func watchLog(dir, name string) (*logFile, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE|unix.IN_MODIFY|unix.IN_MOVED_TO); err != nil {
		return nil, errors.Join(fmt.Errorf("watch %s: %w", dir, err), unix.Close(fd))
	}
	return &logFile{filepath.Join(dir, name), fd}, nil
}

func (l *logFile) close() { unix.Close(l.watch) }

// lookAgain is how often the file is read though no event came, in milliseconds.
const lookAgain = 500

// await waits until ok likes what the file holds.
func (l *logFile) await(ctx context.Context, ok func(string) bool) (string, error) {
	events := make([]byte, 16<<10)
	for {
		text, err := os.ReadFile(l.path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		if ok(string(text)) {
			return string(text), nil
		}
		if err := ctx.Err(); err != nil {
			return "", fmt.Errorf("wait for log %s: %w", l.path, err)
		}
		_, err = unix.Poll([]unix.PollFd{{Fd: int32(l.watch), Events: unix.POLLIN}}, lookAgain)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return "", fmt.Errorf("watch %s: %w", l.path, err)
		}
		// All that came since is one reason to look.
		for {
			if n, err := unix.Read(l.watch, events); n <= 0 || err != nil {
				break
			}
		}
	}
}

// ends tells whether the file's last bytes are these, without reading the rest.
func (l *logFile) ends(with string) (bool, error) {
	f, err := os.Open(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() < int64(len(with)) {
		return false, err
	}
	tail := make([]byte, len(with))
	if _, err := f.ReadAt(tail, info.Size()-int64(len(with))); err != nil {
		return false, err
	}
	return string(tail) == with, nil
}
