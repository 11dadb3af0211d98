package guest

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"
)

// input is what the host says to a process. Each byte is written once, however often
// the host sends it.
type input struct {
	turn    chan struct{} // one writer at a time
	mu      sync.Mutex
	w       *os.File // nil when it is closed
	written uint64
}

func newInput(w *os.File) *input {
	in := &input{turn: make(chan struct{}, 1), w: w}
	in.turn <- struct{}{}
	return in
}

// write returns the offset of what comes next.
func (in *input) write(ctx context.Context, offset uint64, data []byte, eof bool) (next uint64, err error) {
	select {
	case <-in.turn:
		defer func() { in.turn <- struct{}{} }()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	defer func() { next = in.written }()
	if len(data) == 0 && !eof {
		return 0, nil
	}
	if offset > in.written {
		return 0, fmt.Errorf("write at %d, after %d: %w", offset, in.written, errOffset)
	}
	if known := in.written - offset; known < uint64(len(data)) {
		if err := in.put(ctx, data[known:]); err != nil {
			return 0, err
		}
	}
	if eof {
		in.close()
	}
	return 0, nil
}

func (in *input) put(ctx context.Context, data []byte) error {
	in.mu.Lock()
	w := in.w
	in.mu.Unlock()
	if w == nil { // nobody reads it: as with a pipe of a process that has closed it
		in.written += uint64(len(data))
		return nil
	}
	// A process that does not read must not hold the call for ever.
	if err := w.SetWriteDeadline(time.Time{}); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = w.SetWriteDeadline(time.Unix(1, 0)) }) // closed meanwhile
	defer stop()
	n, err := w.Write(data)
	in.written += uint64(n)
	if err != nil && ctx.Err() == nil { // EPIPE: nobody will read it
		in.written += uint64(len(data) - n)
		in.close()
		return nil
	}
	return err
}

func (in *input) close() {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.w != nil {
		in.w.Close()
		in.w = nil
	}
}
