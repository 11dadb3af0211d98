package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	lineCount = 300_000
	// journalOff is where Gantry reads that apps' output does not go to the journal.
	journalOff = "/etc/gantry/config.d/90-bench.toml"
	linesTime  = 5 * time.Minute
)

// measureLines times how long lines take to be in the log, from the start of the
// container on. Gantry copies them to the journal as well, unless it is told not
// to; containerd does not, so its time stands beside both.
func measureLines(ctx context.Context, b *bench, e *engine) error {
	took, err := b.lines(ctx, e)
	if err != nil {
		return err
	}
	b.add(mLines, e, took)
	if e.name != "gantry" {
		b.add(mLinesQuiet, e, took)
		return nil
	}
	return errors.Join(b.linesQuiet(ctx, e), os.RemoveAll(journalOff), b.restart(ctx, e))
}

func (b *bench) linesQuiet(ctx context.Context, e *engine) error {
	if err := os.MkdirAll(filepath.Dir(journalOff), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(journalOff, []byte("[stdio]\njournal = false\n"), 0o644); err != nil {
		return err
	}
	if err := b.restart(ctx, e); err != nil {
		return err
	}
	took, err := b.lines(ctx, e)
	if err == nil {
		b.add(mLinesQuiet, e, took)
	}
	return err
}

// restart lets the engine read its configuration again.
func (b *bench) restart(ctx context.Context, e *engine) error {
	if err := command(ctx, "systemctl", append([]string{"restart"}, e.units[len(e.units)-1])...); err != nil {
		return err
	}
	if err := e.awaitReady(ctx); err != nil {
		return err
	}
	return settle(ctx)
}

func (b *bench) lines(ctx context.Context, e *engine) (float64, error) {
	p, err := b.newPod(e, true, "")
	if err != nil {
		return 0, err
	}
	if err := p.run(ctx, busybox, fmt.Sprintf("seq %d; exec %s", lineCount, payload)); err != nil {
		return 0, err
	}
	for {
		whole, err := p.log.ends(fmt.Sprintf(" stdout F %d\n", lineCount))
		if err != nil {
			return 0, err
		}
		if whole {
			break
		}
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		if time.Since(p.started) > linesTime {
			return 0, fmt.Errorf("the last line is not in the log after %s", linesTime)
		}
		time.Sleep(10 * time.Millisecond)
	}
	took := ms(time.Since(p.started))
	if err := checkLines(p.log.path); err != nil {
		return 0, err
	}
	if err := p.stop(ctx); err != nil {
		return 0, err
	}
	return took, p.remove(ctx)
}

// checkLines wants every number once and in order.
func checkLines(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	n := 0
	for lines := bufio.NewScanner(f); lines.Scan(); {
		n++
		_, text, ok := strings.Cut(lines.Text(), " stdout F ")
		if !ok || text != strconv.Itoa(n) {
			return fmt.Errorf("line %d of the log is %q", n, lines.Text())
		}
	}
	if n != lineCount {
		return fmt.Errorf("the log has %d lines, not %d", n, lineCount)
	}
	return nil
}

// floorLines is the same through a pipe, without an engine.
func floorLines(ctx context.Context, b *bench) error {
	out := filepath.Join(b.scratch, "lines")
	defer os.Remove(out)
	began := time.Now()
	if err := command(ctx, "sh", "-c", fmt.Sprintf("busybox seq %d | busybox cat >%s", lineCount, out)); err != nil {
		return err
	}
	b.addFloor(mPipe, ms(time.Since(began)))
	return nil
}
