package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// mostKept is how much of a stream is kept for the host; a process that says more waits.
	mostKept = 256 << 10
	// mostAtOnce is how much of it one answer has.
	mostAtOnce = 64 << 10
)

// output keeps what a process says until the host has it: a proxy may be killed and
// come again.
type output struct {
	mu      sync.Mutex
	begin   uint64 // the offset of kept
	kept    []byte
	eof     bool
	changed chan struct{} // closed, and another, at each change
}

func newOutput() *output { return &output{changed: make(chan struct{})} }

// change is called with the lock held.
func (o *output) change() {
	close(o.changed)
	o.changed = make(chan struct{})
}

// fill reads until the end. Of a terminal the end is an error: nobody has it open. When
// its process has ended and others have its output still, its deadline makes an end, too:
// what was said by then is read, and no more than a pipe holds.
func (o *output) fill(r io.Reader) {
	defer o.end()
	buffer := make([]byte, 32<<10)
	for {
		n, err := r.Read(buffer)
		if n > 0 {
			o.add(buffer[:n])
		}
		if file, ok := r.(syscall.Conn); ok && errors.Is(err, os.ErrDeadlineExceeded) {
			o.drain(file, buffer)
		}
		if err != nil {
			return
		}
	}
}

// mostDrained is what a pipe may hold: who goes on writing is not waited for.
const mostDrained = 1 << 20

// drain reads what is there.
func (o *output) drain(r syscall.Conn, buffer []byte) {
	conn, err := r.SyscallConn()
	if err != nil {
		return
	}
	for sum := 0; sum < mostDrained; {
		n := 0
		if err := conn.Control(func(fd uintptr) { n, _ = unix.Read(int(fd), buffer) }); err != nil || n <= 0 {
			return
		}
		o.add(buffer[:n])
		sum += n
	}
}

func (o *output) add(data []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.kept) > 0 && len(o.kept)+len(data) > mostKept && !o.eof {
		changed := o.changed
		o.mu.Unlock()
		<-changed
		o.mu.Lock()
	}
	if o.eof { // it was given up
		return
	}
	o.kept = append(o.kept, data...)
	o.change()
}

func (o *output) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.eof {
		o.eof = true
		o.change()
	}
}

var errOffset = errors.New("there is no such offset")

// oldest is the offset of what the host has not said that it has.
func (o *output) oldest() uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.begin
}

// read returns what follows an offset, and waits until there is some. What comes before
// is dropped.
func (o *output) read(ctx context.Context, offset uint64) (data []byte, eof bool, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if offset < o.begin || offset > o.begin+uint64(len(o.kept)) {
		return nil, false, fmt.Errorf("read from %d, of %d to %d: %w", offset, o.begin, o.begin+uint64(len(o.kept)), errOffset)
	}
	if n := offset - o.begin; n > 0 {
		o.kept, o.begin = append([]byte(nil), o.kept[n:]...), offset
		o.change()
	}
	for len(o.kept) == 0 && !o.eof {
		changed := o.changed
		o.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
		o.mu.Lock()
		if err := ctx.Err(); err != nil {
			return nil, false, err
		}
		if offset != o.begin { // another reader has gone on
			return nil, false, errOffset
		}
	}
	n := min(len(o.kept), mostAtOnce)
	return append([]byte(nil), o.kept[:n]...), o.eof && n == len(o.kept), nil
}
