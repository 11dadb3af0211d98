package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"sort"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"gantry/internal/image"
)

// pull gets an image, and tells on stderr how far it is: by a line that is
// redrawn on a terminal, by few plain lines elsewhere, not at all if quiet.
func pull(ctx context.Context, env *Env, images Images, ref string, policy image.PullPolicy, quiet bool) (*image.Image, error) {
	bar := &progress{ref: ref, now: env.Now, w: env.Stderr, terminal: isTerminal(env.Stderr)}
	o := image.PullOptions{Policy: policy}
	if !quiet {
		o.Progress = bar.update
	}
	img, err := images.Pull(ctx, ref, o)
	bar.end(err)
	if err != nil {
		return nil, err
	}
	return img, nil
}

// progress draws a pull. Its methods may be called from many goroutines.
type progress struct {
	ref      string
	now      func() time.Time
	w        io.Writer
	terminal bool

	mu     sync.Mutex
	began  time.Time
	drawn  time.Time
	open   bool // the line on the terminal is not ended
	stage  string
	layers map[int]image.Progress
	total  int // layers
	done   bool
}

// redraw is how often a terminal is drawn; faster is only work.
const redraw = 100 * time.Millisecond

func (p *progress) update(u image.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	first := p.layers == nil
	if first {
		p.layers, p.began = map[int]image.Progress{}, now
	}
	changed := u.Stage != p.stage
	p.stage = u.Stage
	if u.Layer > 0 {
		p.layers[u.Layer], p.total = u, max(p.total, u.Layers)
	}
	if u.Stage == image.StageDone {
		p.done = true
	}
	switch {
	case p.terminal && (changed || now.Sub(p.drawn) >= redraw):
		p.drawn, p.open = now, true
		fmt.Fprintf(p.w, "\r\x1b[K%s", cut(p.line(), width(p.w)))
	case !p.terminal && first && !p.done:
		fmt.Fprintf(p.w, "pulling %s\n", printable(p.ref))
		p.open = true
	}
}

// line is the state in one line: a bar over all layers.
func (p *progress) line() string {
	got, all, finished := p.sum()
	text := "pulling " + printable(p.ref)
	switch {
	case p.stage == image.StageManifest && p.total == 0:
		return text + ": asking the registry"
	case p.stage == image.StageStore || p.stage == image.StageDone:
		return fmt.Sprintf("%s: putting %d layers together", text, p.total)
	}
	const cells = 20
	full := 0
	if all > 0 {
		full = int(min(got*cells/all, cells))
	}
	bar := strings.Repeat("#", full) + strings.Repeat(".", cells-full)
	return fmt.Sprintf("%s: [%s] %s of %s, %d of %d layers", text, bar, size(got), size(all), finished, p.total)
}

func (p *progress) sum() (got, all int64, finished int) {
	var keys []int
	for k := range p.layers {
		keys = append(keys, k)
	}
	sort.Ints(keys)
	for _, k := range keys {
		l := p.layers[k]
		got, all = got+l.Bytes, all+l.Total
		if l.Total > 0 && l.Bytes >= l.Total {
			finished++
		}
	}
	return got, all, finished
}

// end clears the bar, and tells what was pulled.
func (p *progress) end(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.terminal && p.open {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
	got, _, _ := p.sum()
	if err == nil && p.open && got > 0 {
		took := p.now().Sub(p.began).Round(100 * time.Millisecond)
		fmt.Fprintf(p.w, "pulled %s: %s in %s\n", printable(p.ref), size(got), took)
	}
}

func cut(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n])
	}
	return s
}

// width of the terminal, less one column so that the cursor never wraps.
func width(w io.Writer) int {
	if f, ok := w.(*os.File); ok {
		if n, _, err := term.GetSize(int(f.Fd())); err == nil && n > 1 {
			return n - 1
		}
	}
	return 79
}

func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
