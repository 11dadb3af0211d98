package crilog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"gantry/internal/pod"
)

// Options say what of a log is read.
type Options struct {
	// Tail reads the last lines of the file only; negative: all. Without Follow what
	// comes after the first look is not read.
	Tail int
	// Since leaves out what is older.
	Since time.Time
	// Follow goes on until Done is closed, and then to the end of the file.
	Follow bool
	Done   <-chan struct{}
}

// Read calls emit for each line of the log file at path. Without Follow a file
// that is not there is an error of kind pod.ErrNotFound; with it, it is awaited.
// Lines that are not in the format (a torn one after a power loss) are left out.
func Read(ctx context.Context, path string, o Options, emit func(Line) error) error {
	r := &reader{path: path, since: o.Since, emit: emit, limit: -1}
	defer r.close()
	var watch *watcher
	if o.Follow {
		// Watching begins before the first look, so that nothing falls between.
		watch = newWatcher(path)
		defer watch.close()
	}
	opened, err := r.open()
	if err != nil {
		return err
	}
	if !opened && !o.Follow {
		return fmt.Errorf("open log %s: %w", path, pod.ErrNotFound)
	}
	if opened && o.Tail >= 0 {
		end, err := r.seekTail(o.Tail)
		if err != nil {
			return fmt.Errorf("read log %s: %w", path, err)
		}
		if !o.Follow {
			r.limit = end
		}
	}
	for {
		finished := o.Follow && isClosed(o.Done)
		if err := r.drain(); err != nil {
			return err
		}
		if !o.Follow || finished {
			return nil
		}
		if err := watch.wait(ctx, o.Done); err != nil {
			return err
		}
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// reader reads one path, whose file may be replaced by rotation.
type reader struct {
	path  string
	since time.Time
	emit  func(Line) error

	file  *os.File
	at    int64  // bytes of file that were read
	limit int64  // how far the file is read, and no other; -1: to all ends
	rest  []byte // the beginning of a line whose end is not written yet
	buf   []byte
	// within: the stream's last line was a part; what follows shares its fate of
	// being emitted, or dropped for its age. The second entry is stderr's.
	within, dropping [2]bool
}

func (r *reader) close() {
	if r.file != nil {
		r.file.Close()
	}
}

// open opens the file unless it is not there yet.
func (r *reader) open() (bool, error) {
	f, err := os.Open(r.path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open log: %w", err)
	}
	r.file, r.at, r.rest = f, 0, nil
	return true, nil
}

// drain reads to the end of the file, and on into the one that replaced it.
func (r *reader) drain() error {
	for {
		if r.file == nil {
			if ok, err := r.open(); err != nil || !ok {
				return err
			}
		}
		// What replaced the file is looked for before the last read of the old one:
		// once the new one is there, the writer has left the old one.
		replaced, err := r.replaced()
		if err != nil {
			return err
		}
		if err := r.readAll(); err != nil {
			return err
		}
		if !replaced || r.limit >= 0 {
			return nil
		}
		r.file.Close()
		r.file = nil
	}
}

func (r *reader) replaced() (bool, error) {
	now, err := os.Stat(r.path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read log: %w", err)
	}
	mine, err := r.file.Stat()
	if err != nil {
		return false, fmt.Errorf("read log: %w", err)
	}
	if !os.SameFile(now, mine) {
		return true, nil
	}
	if mine.Size() < r.at { // truncated in place
		r.at, r.rest = 0, nil
	}
	return false, nil
}

func (r *reader) readAll() error {
	if r.buf == nil {
		r.buf = make([]byte, 64<<10)
	}
	for {
		buf := r.buf
		if r.limit >= 0 {
			buf = buf[:min(int64(len(buf)), max(r.limit-r.at, 0))]
		}
		if len(buf) == 0 {
			return nil
		}
		n, err := r.file.ReadAt(buf, r.at)
		r.at += int64(n)
		if err := r.lines(buf[:n]); err != nil {
			return err
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read log %s: %w", r.path, err)
		}
	}
}

func (r *reader) lines(data []byte) error {
	for len(data) > 0 {
		line, after, ok := bytes.Cut(data, []byte{'\n'})
		if len(r.rest)+len(line) > MaxLine {
			return fmt.Errorf("read log %s: a line is longer than %d bytes: %w", r.path, MaxLine, pod.ErrInvalid)
		}
		if !ok {
			r.rest = append(r.rest, line...)
			return nil
		}
		if len(r.rest) > 0 {
			line = append(r.rest, line...)
			r.rest = r.rest[:0]
		}
		data = after
		if err := r.line(line); err != nil {
			return err
		}
	}
	return nil
}

func (r *reader) line(b []byte) error {
	l, err := Parse(b)
	if err != nil {
		return nil //nolint:nilerr // a torn line is no reason to hide all others
	}
	drop := l.Time.Before(r.since)
	stream := 0
	if l.Stderr {
		stream = 1
	}
	if r.within[stream] {
		drop = r.dropping[stream]
	}
	r.within[stream], r.dropping[stream] = l.Partial, drop
	if drop {
		return nil
	}
	return r.emit(l)
}

// seekTail moves to the beginning of the n-th line from the end, and returns where
// that is.
func (r *reader) seekTail(n int) (end int64, err error) {
	info, err := r.file.Stat()
	if err != nil {
		return 0, err
	}
	const block = 64 << 10
	buf := make([]byte, block)
	// The newline that ends the last line does not begin another one.
	end, found := info.Size(), -1
	if n == 0 {
		r.at = end
		return end, nil
	}
	for pos := end; pos > 0; {
		size := min(int64(block), pos)
		pos -= size
		if _, err := r.file.ReadAt(buf[:size], pos); err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		if found < 0 {
			found = 0
			if buf[size-1] == '\n' {
				size--
			}
		}
		for i := size - 1; i >= 0; i-- {
			if buf[i] != '\n' {
				continue
			}
			if found++; found == n {
				r.at = pos + i + 1
				return end, nil
			}
		}
	}
	return end, nil
}
