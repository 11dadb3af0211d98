package image

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"runtime/debug"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"gantry/internal/pod"
)

const (
	chunkSize = 256 << 10
	aheadMost = 8 // chunks between two stages
	// maxWindow is the largest zstd window that is honoured: zstd --ultra --long.
	// Every decoder may have minWindow: what comes behind a small first frame may be
	// larger than that one.
	maxWindow = 128 << 20
	minWindow = 32 << 20
)

var chunks = sync.Pool{New: func() any { return new([chunkSize]byte) }}

type chunk struct {
	buf *[chunkSize]byte
	n   int
}

// ahead reads a stream in a goroutine of its own, so that the stages of a pull
// (download, decompression, checks and conversion) work at the same time, each
// with the digest of what it passes on.
type ahead struct {
	ch   chan chunk
	stop chan struct{}
	done chan struct{}
	once sync.Once
	cur  chunk
	at   int
	err  error // valid when ch is closed
}

// panicked is the error that a panic becomes.
type panicked struct {
	value any
	stack []byte // where it was
	told  bool   // in the log, of which one goroutine after the other has it
}

func (p *panicked) Error() string { return fmt.Sprintf("%v: %v", pod.ErrInternal, p.value) }
func (p *panicked) Unwrap() error { return pod.ErrInternal }

// readAhead starts reading r. see is called with every piece, in order.
func readAhead(r io.Reader, see func([]byte)) *ahead {
	a := &ahead{ch: make(chan chunk, aheadMost), stop: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(a.done)
		defer close(a.ch)
		defer func() {
			if p := recover(); p != nil { // decoders read what strangers wrote
				a.err = &panicked{value: p, stack: debug.Stack()}
			}
		}()
		for a.err == nil {
			buf := chunks.Get().(*[chunkSize]byte)
			n, err := fill(r, buf[:])
			see(buf[:n])
			a.err = err
			select {
			case a.ch <- chunk{buf, n}:
			case <-a.stop:
				return
			}
		}
	}()
	return a
}

// fill reads until the buffer is full, so that a slow sender does not make many
// small pieces.
func fill(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var m int
		m, err = r.Read(buf[n:])
		n += m
	}
	return n, err
}

func (a *ahead) Read(p []byte) (int, error) {
	for a.cur.buf == nil || a.at == a.cur.n {
		if a.cur.buf != nil {
			chunks.Put(a.cur.buf)
			a.cur.buf = nil
		}
		next, ok := <-a.ch
		if !ok {
			return 0, a.err
		}
		a.cur, a.at = next, 0
	}
	n := copy(p, a.cur.buf[a.at:a.cur.n])
	a.at += n
	return n, nil
}

// Close ends the goroutine. What it reads from must not block for ever.
func (a *ahead) Close() {
	a.once.Do(func() { close(a.stop) })
	<-a.done
}

// The compressions, by how their streams begin.
var (
	gzipMagic = []byte{0x1f, 0x8b}
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}
	xzMagic   = []byte{0xfd, '7', 'z', 'X', 'Z', 0}
	bzipMagic = []byte("BZh")
)

// decompress returns the archive in a blob. What it is, the blob itself tells:
// media types are wrong too often. Plain tells that it was not compressed. reserve
// waits for the memory of a large window, and returns what gives it back.
func decompress(blob io.Reader, reserve func(window int64) (free func(), err error)) (r io.Reader, plain bool, free func(), err error) {
	in := bufio.NewReaderSize(blob, 64<<10)
	head, err := in.Peek(6)
	if err != nil && err != io.EOF {
		return nil, false, nil, err
	}
	nothing := func() {}
	switch {
	case bytes.HasPrefix(head, gzipMagic):
		z, err := gzip.NewReader(in)
		if err != nil {
			return nil, false, nil, fmt.Errorf("decompress gzip: %w", err)
		}
		return z, false, nothing, nil
	case bytes.HasPrefix(head, zstdMagic), isSkippable(head):
		window := windowOf(in)
		giveBack, err := reserve(window)
		if err != nil {
			return nil, false, nil, fmt.Errorf("decompress zstd: wait for memory: %w", err)
		}
		z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(uint64(window)))
		if err != nil {
			giveBack()
			return nil, false, nil, fmt.Errorf("decompress zstd: %w", err)
		}
		return z, false, func() { z.Close(); giveBack() }, nil
	case bytes.HasPrefix(head, xzMagic), bytes.HasPrefix(head, bzipMagic):
		return nil, false, nil, fmt.Errorf("decompress: xz and bzip2 layers: %w", pod.ErrUnsupported)
	default:
		return in, true, nothing, nil
	}
}

// windowOf is how far back a zstd stream may look, told from its first frame.
func windowOf(in *bufio.Reader) int64 {
	head, _ := in.Peek(zstd.HeaderMaxSize)
	var h zstd.Header
	if err := h.Decode(head); err != nil || h.Skippable {
		return maxWindow
	}
	size := h.WindowSize
	if h.SingleSegment {
		size = h.FrameContentSize
	}
	return int64(max(minWindow, min(size, maxWindow)))
}

// isSkippable tells whether zstd frames that carry no data come first.
func isSkippable(head []byte) bool {
	return len(head) >= 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:4], []byte{0x2a, 0x4d, 0x18})
}
