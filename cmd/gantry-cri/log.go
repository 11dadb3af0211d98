package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"sync"
)

// logger writes to stderr. When that is the journal, every line begins with its
// priority, as sd-daemon(3) says, and the journal knows the time.
func logger(level slog.Leveler, stderr io.Writer) *slog.Logger {
	if os.Getenv("JOURNAL_STREAM") == "" {
		return slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	}
	return slog.New(newJournalHandler(level, stderr))
}

// setLevel takes a word of the configuration.
func setLevel(level *slog.LevelVar, word string) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(word)); err != nil {
		l = slog.LevelInfo
	}
	level.Set(l)
}

// journalHandler has a handler for each priority.
type journalHandler struct{ by map[slog.Level]slog.Handler }

func newJournalHandler(level slog.Leveler, w io.Writer) *journalHandler {
	options := &slog.HandlerOptions{Level: level, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey) {
			return slog.Attr{}
		}
		return a
	}}
	h := &journalHandler{map[slog.Level]slog.Handler{}}
	mu := &sync.Mutex{}
	for l, priority := range map[slog.Level]string{slog.LevelDebug: "<7>", slog.LevelInfo: "<6>", slog.LevelWarn: "<4>", slog.LevelError: "<3>"} {
		h.by[l] = slog.NewTextHandler(&prefixer{mu, w, priority}, options)
	}
	return h
}

func (h *journalHandler) at(l slog.Level) slog.Handler {
	switch {
	case l >= slog.LevelError:
		return h.by[slog.LevelError]
	case l >= slog.LevelWarn:
		return h.by[slog.LevelWarn]
	case l >= slog.LevelInfo:
		return h.by[slog.LevelInfo]
	}
	return h.by[slog.LevelDebug]
}

func (h *journalHandler) Enabled(ctx context.Context, l slog.Level) bool {
	return h.at(l).Enabled(ctx, l)
}

func (h *journalHandler) Handle(ctx context.Context, r slog.Record) error {
	return h.at(r.Level).Handle(ctx, r)
}

func (h *journalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return h.each(func(x slog.Handler) slog.Handler { return x.WithAttrs(attrs) })
}

func (h *journalHandler) WithGroup(name string) slog.Handler {
	return h.each(func(x slog.Handler) slog.Handler { return x.WithGroup(name) })
}

func (h *journalHandler) each(f func(slog.Handler) slog.Handler) slog.Handler {
	out := &journalHandler{map[slog.Level]slog.Handler{}}
	for l, x := range h.by {
		out.by[l] = f(x)
	}
	return out
}

// prefixer writes lines, each in one call and after a prefix.
type prefixer struct {
	mu     *sync.Mutex
	w      io.Writer
	prefix string
}

func (p *prefixer) Write(line []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, err := p.w.Write(append([]byte(p.prefix), line...)); err != nil {
		return 0, err
	}
	return len(line), nil
}
