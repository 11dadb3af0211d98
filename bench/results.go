package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// results are the samples by metric and engine.
type results map[string]map[string][]float64

func (r results) add(metric, engine string, value float64) {
	if r[metric] == nil {
		r[metric] = map[string][]float64{}
	}
	r[metric][engine] = append(r[metric][engine], value)
}

func (b *bench) add(metric string, e *engine, value float64) { b.results.add(metric, e.name, value) }

func (b *bench) addFloor(metric string, value float64) { b.results.add(metric, floorEngine, value) }

// quartiles are the median and the two values between which half of all lie.
type quartiles struct{ low, median, high float64 }

func quartilesOf(samples []float64) quartiles {
	s := slices.Sorted(slices.Values(samples))
	return quartiles{quantile(s, 0.25), quantile(s, 0.5), quantile(s, 0.75)}
}

// quantile interpolates in a sorted slice.
func quantile(s []float64, q float64) float64 {
	if len(s) == 0 {
		return math.NaN()
	}
	at := q * float64(len(s)-1)
	i := int(at)
	if i+1 >= len(s) {
		return s[len(s)-1]
	}
	return s[i] + (at-float64(i))*(s[i+1]-s[i])
}

func (q quartiles) String() string {
	if math.IsNaN(q.median) {
		return "-"
	}
	return fmt.Sprintf("%s (%s-%s)", number(q.median), number(q.low), number(q.high))
}

// number has three digits or so.
func number(v float64) string {
	switch {
	case math.Abs(v) >= 100:
		return fmt.Sprintf("%.0f", v)
	case math.Abs(v) >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

// worse is how much more than containerd's a number may be.
const worse = 1.10

// verdict judges a line: the goals are Gantry's own, "SLOWER" is a failure of what
// was promised.
func (m metric) verdict(gantry, containerd float64) string {
	ratio := gantry / containerd
	switch {
	case m.most > 0 && gantry > m.most:
		return fmt.Sprintf("MORE than %s %s", number(m.most), m.unit)
	case ratio > max(worse, m.goal):
		return "SLOWER"
	case m.goal == 0:
		return ""
	case ratio <= m.goal:
		return "reached"
	default:
		return "not yet"
	}
}

// table prints what was measured.
func (r results) table(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "\nmedian (p25-p75)\t\tGantry\tcontainerd\tratio\tgoal\t\tfloor")
	for _, m := range metrics() {
		g, c := r[m.name]["gantry"], r[m.name]["containerd"]
		if m.own != "" {
			if c = r[m.own]["gantry"]; len(c) == 0 {
				c = r[m.own][floorEngine]
			}
		}
		mine, theirs := quartilesOf(g), quartilesOf(c)
		if len(g) == 0 || len(c) == 0 {
			if len(g)+len(c) > 0 {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", m.title, m.unit, mine, theirs)
			}
			continue
		}
		goal := "-"
		if m.goal > 0 {
			goal = number(m.goal)
		}
		if m.goal > 0 && m.goal < 0.01 {
			goal = fmt.Sprintf("%.4f", m.goal)
		}
		floor := "-"
		if f := r[m.floor][floorEngine]; len(f) > 0 {
			floor = number(quartilesOf(f).median)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%.3f\t%s\t%s\t%s\n", m.title, m.unit, mine, theirs, mine.median/theirs.median, goal, m.verdict(mine.median, theirs.median), floor)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w, "\nfloors")
	for _, m := range floors() {
		if f := r[m.name][floorEngine]; len(f) > 0 {
			fmt.Fprintf(w, "%s\t%s\t%s\n", m.title, m.unit, quartilesOf(f))
		}
	}
	return w.Flush()
}

// label says what was measured, and where.
type label struct{ commit, machine, load string }

// csv is a line for each metric and engine; docs/benchmarks.md has the columns.
func (r results) csv(l label, now time.Time) string {
	var b strings.Builder
	for _, m := range append(metrics(), floors()...) {
		for _, e := range []string{"gantry", "containerd", floorEngine} {
			s := r[m.name][e]
			if len(s) == 0 {
				continue
			}
			q := quartilesOf(s)
			fields := []string{
				now.UTC().Format("2006-01-02T15:04Z"), l.commit, plain(l.machine), l.load, m.name, e, m.unit,
				number(q.median), number(q.low), number(q.high), fmt.Sprint(len(s)),
			}
			fmt.Fprintln(&b, strings.Join(fields, ","))
		}
	}
	return b.String()
}

// plain keeps a text from ending its column.
func plain(s string) string { return strings.NewReplacer(",", ";", "\n", " ", `"`, "'").Replace(s) }
