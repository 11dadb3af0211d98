package external

import "sync"

// bounded keeps the first bytes of what is written to it, and drops the rest.
type bounded struct {
	mu     sync.Mutex
	data   []byte
	most   int
	over   bool
	onFull func()
}

func (b *bounded) Write(p []byte) (int, error) {
	b.mu.Lock()
	room := min(len(p), b.most-len(b.data))
	b.data = append(b.data, p[:room]...)
	b.over = b.over || room < len(p)
	tell := b.over && b.onFull != nil
	b.mu.Unlock()
	if tell {
		b.onFull()
	}
	return len(p), nil
}

// full has f called as soon as something is dropped, if it was not yet.
func (b *bounded) full(f func()) {
	b.mu.Lock()
	b.onFull = f
	over := b.over
	b.mu.Unlock()
	if over {
		f()
	}
}

func (b *bounded) bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.data
}
