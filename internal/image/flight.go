package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"

	"go.podman.io/image/v5/docker/reference"
)

// flight is a pull that several callers wait for. It ends early only when all of
// them have left.
type flight struct {
	done   chan struct{}
	id     string
	err    error
	cancel context.CancelFunc

	mu       sync.Mutex
	waiting  int
	watchers map[int]func(Progress)
	next     int
}

// flightKey tells which pulls are the same: credentials count, since not everyone
// may see an image that somebody else is just getting.
func flightKey(named reference.Named, o PullOptions) string {
	sum := sha256.New()
	// Encoding strings and pointers to strings cannot fail.
	_ = json.NewEncoder(sum).Encode([]any{named.String(), o.OS, o.Arch, o.Variant, o.Auth})
	return hex.EncodeToString(sum.Sum(nil))
}

// join waits for the pull of that key, and starts it if there is none.
func (s *Store) join(ctx context.Context, key string, watch func(Progress), run func(context.Context, func(Progress)) (string, error)) (string, error) {
	f, seat := s.board(ctx, key, watch, run)
	defer f.leave(seat)
	select {
	case <-f.done:
		return f.id, f.err
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

func (s *Store) board(ctx context.Context, key string, watch func(Progress), run func(context.Context, func(Progress)) (string, error)) (*flight, int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.flights[key]; f != nil {
		if seat, ok := f.enter(watch); ok {
			return f, seat
		}
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	f := &flight{done: make(chan struct{}), cancel: cancel, watchers: map[int]func(Progress){}}
	seat, _ := f.enter(watch)
	s.flights[key] = f
	go func() {
		f.err = s.noPanic("pull", func() (err error) {
			f.id, err = run(ctx, f.tell)
			return err
		})
		cancel()
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.flights[key] == f {
			delete(s.flights, key)
		}
		close(f.done)
	}()
	return f, seat
}

// noPanic turns a panic into an error: what an image holds must not end the program that
// pulls it, with all that runs in there.
func (s *Store) noPanic(what string, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s: %w", what, &panicked{value: p, stack: debug.Stack()})
		}
		var p *panicked
		if errors.As(err, &p) && !p.told { // by whatever goroutine it came
			p.told = true
			s.log.Error("operation panicked", "op", what, "panic", fmt.Sprint(p.value), "stack", string(p.stack))
		}
	}()
	return f()
}

// enter adds a caller, unless the flight was cancelled because all had left.
func (f *flight) enter(watch func(Progress)) (int, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.waiting < 0 {
		return 0, false
	}
	f.waiting++
	f.next++
	if watch != nil {
		f.watchers[f.next] = watch
	}
	return f.next, true
}

func (f *flight) leave(seat int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.watchers, seat)
	if f.waiting--; f.waiting == 0 {
		f.waiting = -1
		f.cancel()
	}
}

// tell passes progress on, one call at a time.
func (f *flight) tell(p Progress) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, watch := range f.watchers {
		watch(p)
	}
}
