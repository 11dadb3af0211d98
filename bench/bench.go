// Command bench measures Gantry and containerd side by side on the machine that
// it runs on: the trial VM, where "trial bench" puts it.
//
// One client asks both engines the same over CRI, in rounds that take turns, so
// that what disturbs the machine disturbs both. While one is measured, the other
// does not run. What an engine did is checked on the way: a start that printed
// nothing, a lost line or a pod that is left is an error and not a fast result.
// See docs/benchmarks.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"gantry/test/machine"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

// options are what the command line says.
type options struct {
	rounds  int
	pods    int
	seconds int
	only    []string
	engine  string
	csv     string
	label   label
}

func parse(args []string) (options, error) {
	var o options
	var only string
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.IntVar(&o.rounds, "rounds", 5, "how often pods are started; what takes longer is done less often")
	f.IntVar(&o.pods, "pods", 20, "how many pods are idle for memory and CPU time")
	f.IntVar(&o.seconds, "seconds", 20, "for how long CPU time is taken while they are")
	f.StringVar(&only, "only", "", "only these groups of measurements, with commas between: "+strings.Join(groupNames(), ","))
	f.StringVar(&o.engine, "engine", "", "only this engine and no floors, to look into it: gantry or containerd")
	f.StringVar(&o.csv, "csv", "", "write the results to this file, one line a metric and engine")
	f.StringVar(&o.label.commit, "commit", "", "the commit that is measured, for the file")
	f.StringVar(&o.label.machine, "machine", "", "the machine and how it is accelerated, for the file")
	f.StringVar(&o.label.load, "load", "", "the load average of the machine around the VM, for the file")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if only != "" {
		o.only = strings.Split(only, ",")
	}
	for _, name := range o.only {
		if !slices.Contains(groupNames(), name) {
			return o, fmt.Errorf("group %q is unknown: use %s", name, strings.Join(groupNames(), ", "))
		}
	}
	if !slices.Contains([]string{"", "gantry", "containerd"}, o.engine) {
		return o, fmt.Errorf("engine %q is unknown: use gantry or containerd", o.engine)
	}
	if o.rounds < 1 || o.pods < 1 || o.seconds < 1 {
		return o, fmt.Errorf("rounds, pods and seconds: want 1 or more")
	}
	return o, nil
}

func run(ctx context.Context, args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	if err := machine.Check(); err != nil {
		return fmt.Errorf("cannot measure here: %w", err)
	}
	fmt.Println(machine.Describe())
	b, err := newBench(ctx, o)
	if err != nil {
		return err
	}
	defer b.close()
	failed := b.measureAll(ctx)
	// What was measured before is as good as it was.
	if err := errors.Join(b.results.table(os.Stdout), failed); err != nil || o.csv == "" {
		return err
	}
	return os.WriteFile(o.csv, []byte(b.results.csv(o.label, time.Now())), 0o644)
}

// measureAll goes on with the next group when one cannot be measured.
func (b *bench) measureAll(ctx context.Context) error {
	var errs []error
	for _, g := range groups() {
		if len(b.only) > 0 && !slices.Contains(b.only, g.name) || ctx.Err() != nil {
			continue
		}
		if err := b.measure(ctx, g); err != nil {
			errs = append(errs, fmt.Errorf("measure %s: %w", g.name, err))
			fmt.Fprintln(os.Stderr, "bench:", errs[len(errs)-1])
			for _, e := range b.measured() {
				// Pods that are left would be in the way of the next group.
				errs = append(errs, b.use(ctx, e), b.removeAll(ctx, e))
			}
		}
	}
	return errors.Join(errs...)
}

// bench is a run.
type bench struct {
	options
	engines []*engine
	results results
	scratch string // a directory of this run, on a disk
	begun   time.Time
}

func newBench(ctx context.Context, o options) (*bench, error) {
	b := &bench{options: o, results: results{}, begun: time.Now()}
	var err error
	if b.scratch, err = os.MkdirTemp("/var/log", "bench-"); err != nil {
		return nil, fmt.Errorf("make a directory for logs: %w", err)
	}
	if err := command(ctx, "systemctl", "start", slice, "trial-registry.service"); err != nil {
		return nil, err
	}
	for _, e := range []*engine{gantry(), containerd()} {
		if err := e.dial(); err != nil {
			return nil, err
		}
		b.engines = append(b.engines, e)
	}
	for _, e := range b.measured() {
		if err := b.use(ctx, e); err != nil {
			return nil, err
		}
		if err := b.warm(ctx, e); err != nil {
			return nil, fmt.Errorf("warm up %s: %w", e.name, err)
		}
	}
	return b, nil
}

// close leaves the machine as one with Gantry: containerd was started by nobody.
func (b *bench) close() {
	for _, e := range b.engines {
		e.conn.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	// Errors show at the next use of the machine; the results are in.
	_ = command(ctx, "systemctl", append([]string{"stop"}, b.engines[1].units...)...)
	_ = command(ctx, "systemctl", append([]string{"start"}, b.engines[0].units...)...)
	_ = os.RemoveAll(b.scratch)
}

// measured are the engines that take turns: all, unless only one was asked for.
func (b *bench) measured() []*engine {
	if b.engine == "" {
		return b.engines
	}
	return slices.DeleteFunc(slices.Clone(b.engines), func(e *engine) bool { return e.name != b.engine })
}

// use makes e the only engine that runs.
func (b *bench) use(ctx context.Context, e *engine) error {
	for _, other := range b.engines {
		if other == e {
			continue
		}
		if err := command(ctx, "systemctl", append([]string{"stop"}, other.units...)...); err != nil {
			return err
		}
	}
	if err := command(ctx, "systemctl", append([]string{"start"}, e.units...)...); err != nil {
		return err
	}
	return e.awaitReady(ctx)
}

// warm pulls the image of all pods and runs one, so that no first time is
// measured.
func (b *bench) warm(ctx context.Context, e *engine) error {
	if err := b.removeAll(ctx, e); err != nil { // of a run that was cut short
		return err
	}
	if err := e.pull(ctx, busybox); err != nil {
		return err
	}
	for _, host := range []bool{false, true} {
		if _, err := b.startOne(ctx, e, host, ""); err != nil {
			return err
		}
	}
	return b.removeAll(ctx, e)
}

// measure runs a group's rounds. The engines take turns, and each is first as often
// as the other.
func (b *bench) measure(ctx context.Context, g group) error {
	n := max(1, b.rounds*g.percent/100)
	for round := range n {
		began := time.Now()
		if g.floor != nil && b.engine == "" {
			if err := settle(ctx); err != nil {
				return err
			}
			if err := g.floor(ctx, b); err != nil {
				return fmt.Errorf("floor: %w", err)
			}
		}
		turns := b.measured()
		for i := range turns {
			e := turns[(round+i)%len(turns)]
			if err := b.use(ctx, e); err != nil {
				return err
			}
			if err := settle(ctx); err != nil {
				return err
			}
			if err := g.do(ctx, b, e); err != nil {
				return fmt.Errorf("%s: %w", e.name, err)
			}
			if err := b.checkGone(ctx, e); err != nil {
				return fmt.Errorf("%s: %w", e.name, err)
			}
		}
		fmt.Fprintf(os.Stderr, "bench: %s, round %d of %d: %.0f s (%.0f s in all)\n",
			g.name, round+1, n, time.Since(began).Seconds(), time.Since(b.begun).Seconds())
	}
	return nil
}
