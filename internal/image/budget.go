package image

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"gantry/internal/pod"
)

const (
	defaultMaxLayer = 128 << 30
	// maxEntries bounds a layer's tree and that of an image.
	maxEntries = 1 << 20
	// maxMemory is what the trees of one image may take while they are built, and
	// allMemory what all images under way may take: one image, or some together,
	// must not take the node's engine down. Both are estimates that err upwards.
	maxMemory = 320 << 20
	allMemory = 384 << 20
	// allWindows is what zstd's decompressors may take together. A layer waits for its
	// part of it.
	allWindows = 2 * maxWindow
	// An honest layer shrinks by 3 to 10 when compressed; a terabyte of zeros by
	// 1,000 or more. Below freeBytes an image, any ratio is fine.
	maxRatio  = 200
	freeBytes = 1 << 30
)

// limits bound what a layer may cost.
type limits struct {
	bytes   int64 // of files, and of the archive
	entries int
	// image is what all layers of the image may still cost.
	image *budget
}

// layerLimits are the bounds for a blob that is said to have so many bytes, -1 if
// that is unknown. Whether it has them, the image's budget sees.
func layerLimits(most, blob int64, image *budget) limits {
	if most <= 0 {
		most = defaultMaxLayer
	}
	if blob >= 0 && blob < (most-freeBytes)/maxRatio {
		most = min(most, freeBytes+maxRatio*blob)
	}
	return limits{bytes: most, entries: maxEntries, image: image}
}

// ledger is the memory that all images under way may still take together, and what
// each of them may have.
type ledger struct {
	maxEntries int
	maxMemory  int64
	left       atomic.Int64
	windows    *semaphore.Weighted
}

func newLedger() *ledger {
	l := &ledger{maxEntries: maxEntries, maxMemory: maxMemory, windows: semaphore.NewWeighted(allWindows)}
	l.left.Store(allMemory)
	return l
}

// window waits for a decompressor's memory. Now and then it tells that it is alive:
// a download during which nothing is read has come to a halt otherwise.
func (l *ledger) window(ctx context.Context, bytes int64, alive func()) error {
	for {
		short, cancel := context.WithTimeout(ctx, time.Second)
		err := l.windows.Acquire(short, bytes)
		cancel()
		if err == nil || ctx.Err() != nil {
			return err
		}
		alive()
	}
}

// budget is what the layers of an image may still cost together, while they are
// made side by side.
type budget struct {
	ledger  *ledger
	entries atomic.Int64 // left
	memory  atomic.Int64 // taken
	// What came, and what became of it. What a manifest says about sizes is no
	// bound: who writes it can say anything.
	downloaded, archived, unpacked atomic.Int64
}

func newBudget(l *ledger) *budget {
	b := &budget{ledger: l}
	b.entries.Store(int64(l.maxEntries))
	return b
}

// count counts an entry of a tree.
func (b *budget) count() error {
	if b.entries.Add(-1) < 0 {
		return fmt.Errorf("the image's layers have too many entries: %w", errRefused)
	}
	return nil
}

// take takes memory; less than nothing gives it back.
func (b *budget) take(bytes int64) error {
	taken, left := b.memory.Add(bytes), b.ledger.left.Add(-bytes)
	if taken > b.ledger.maxMemory {
		return fmt.Errorf("the image's files, names and attributes would take more than %d bytes of memory: %w", b.ledger.maxMemory, errRefused)
	}
	if left < 0 && bytes > 0 {
		return fmt.Errorf("the images under way take too much memory together, try again when some are done: %w", pod.ErrExhausted)
	}
	return nil
}

// close gives back all that was taken, when the trees are forgotten.
func (b *budget) close() { b.ledger.left.Add(b.memory.Swap(0)) }

// grow counts bytes that came out of the blobs in one of two ways: as archives, or
// as files, which may be sparse.
func (b *budget) grow(counter *atomic.Int64, bytes int) error {
	if counter.Add(int64(bytes)) > freeBytes && counter.Load()-freeBytes > maxRatio*b.downloaded.Load() {
		return fmt.Errorf("the image's layers become more than %d times what was downloaded: %w", maxRatio, errRefused)
	}
	return nil
}
