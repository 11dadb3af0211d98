package main

import (
	"fmt"
	"io"
	"time"
)

// printer tells the user what is being done and how long it took.
type printer struct{ w io.Writer }

func (p printer) line(format string, args ...any) {
	fmt.Fprintf(p.w, "trial: "+format+"\n", args...)
}

// step announces what, does it, and prints how long it took. Work that lasts
// prints a sign of life every 30 seconds.
func (p printer) step(what string, do func() error) error {
	p.line("%s ...", what)
	start := time.Now()
	done := make(chan struct{})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(30 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				p.line("%s: still at it, %s", what, since(start))
			}
		}
	}()
	err := do()
	close(done)
	<-stopped
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	p.line("%s: done in %s", what, since(start))
	return nil
}

// group is a step made of steps, which give the signs of life.
func (p printer) group(what string, do func() error) error {
	p.line("%s ...", what)
	start := time.Now()
	if err := do(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	p.line("%s: done in %s", what, since(start))
	return nil
}

func since(start time.Time) string {
	return fmt.Sprintf("%.1f s", time.Since(start).Seconds())
}
