package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"gantry/internal/engine"
	"gantry/internal/pod"
)

type statsOptions struct {
	format   format
	noLegend bool
	over     time.Duration
}

// mostOver bounds how long a command may look without a word.
const mostOver = time.Minute

func statsCommand(env *Env) *cobra.Command {
	var o statsOptions
	cmd := command(env, "stats [OPTIONS] [POD...]", "Show what running apps use", cobra.ArbitraryArgs, o.run)
	cmd.Long = `Show what the running apps of the pods use, or those of all pods: processor time, memory, processes. The numbers are
those of the kernel that the app runs on; CPU is the share of one processor over the time of --over.`
	cmd.Example = `  gantry stats
  gantry stats --over 5s web
  watch gantry stats --over 0`
	cmd.ValidArgsFunction = completePods(env)
	f := cmd.Flags()
	o.format.flag(f)
	f.BoolVar(&o.noLegend, "no-legend", false, "print no line of headings")
	f.DurationVar(&o.over, "over", time.Second, "measure the share of the processors for this long, 0 not at all")
	return cmd
}

// usage is what an app uses.
type usage struct {
	pod   pod.PodStatus
	app   pod.AppStatus
	stats engine.Stats
	share float64 // of one processor, in percent; -1 if it was not measured
	err   error
}

func (o *statsOptions) run(ctx context.Context, env *Env, args []string) error {
	if o.over < 0 || o.over > mostOver {
		return usagef("--over %s: want 0 to %s", o.over, mostOver)
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	return env.with(ctx, func(be *Backend) error {
		pods, err := choosePods(be.Engine, args)
		if err != nil {
			return err
		}
		all := o.measure(ctx, be.Engine, pods)
		if ctx.Err() != nil {
			return fmt.Errorf("stats: interrupted")
		}
		if o.format == formatJSON {
			err = printStats(env, all)
		} else {
			err = o.printTable(env, all)
		}
		for _, u := range all {
			if u.err != nil {
				err = errors.Join(err, fmt.Errorf("statistics of app %s of pod %s: %w", u.app.Name, nameOf(u.pod), u.err))
			}
		}
		return err
	})
}

// choosePods are those that are named, or all.
func choosePods(e Engine, refs []string) ([]pod.PodStatus, error) {
	if len(refs) == 0 {
		return e.Pods(engine.Filter{})
	}
	var out []pod.PodStatus
	for _, ref := range refs {
		p, err := findPod(e, ref)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

// measure looks at all apps at the same time: a machine that does not answer is waited for
// once. One that ends meanwhile is left out.
func (o *statsOptions) measure(ctx context.Context, e Engine, pods []pod.PodStatus) []usage {
	var all []usage
	for _, p := range pods {
		for _, a := range inPhase(p.Apps, pod.Running) {
			all = append(all, usage{pod: p, app: a, share: -1})
		}
	}
	look := func(into func(*usage, engine.Stats)) {
		var group errgroup.Group
		for i := range all {
			group.Go(func() error {
				if u := &all[i]; u.err == nil {
					var s engine.Stats
					if s, u.err = e.AppStats(ctx, u.app.ID); u.err == nil {
						into(u, s)
					}
				}
				return nil
			})
		}
		_ = group.Wait() // each has its own error
	}
	look(func(u *usage, s engine.Stats) { u.stats = s })
	if o.over > 0 && len(all) > 0 {
		select {
		case <-time.After(o.over):
		case <-ctx.Done():
			return nil
		}
		look(func(u *usage, s engine.Stats) {
			if took := s.Time.Sub(u.stats.Time); took > 0 && s.CPUNanos >= u.stats.CPUNanos {
				u.share = 100 * float64(s.CPUNanos-u.stats.CPUNanos) / float64(took)
			}
			u.stats = s
		})
	}
	return withoutEnded(e, all)
}

func withoutEnded(e Engine, all []usage) (out []usage) {
	for _, u := range all {
		if u.err != nil {
			if a, err := e.App(u.app.ID); errors.Is(err, pod.ErrNotFound) || err == nil && a.Phase != pod.Running {
				continue
			}
		}
		out = append(out, u)
	}
	return out
}

func (o *statsOptions) printTable(env *Env, all []usage) error {
	header := []string{"POD", "APP", "CPU", "CPU TIME", "MEMORY", "LIMIT", "PROCESSES"}
	if o.noLegend {
		header = nil
	}
	t := newTable(env.Stdout, header...)
	for _, u := range all {
		cells := []string{nameOf(u.pod), u.app.Name, "", "", "", "", ""}
		if s := u.stats; u.err == nil {
			cells[3] = (time.Duration(s.CPUNanos) / time.Millisecond * time.Millisecond).String()
			cells[4], cells[6] = size(int64(s.MemoryWorkingSet)), fmt.Sprint(s.Pids)
			if u.share >= 0 {
				cells[2] = fmt.Sprintf("%.1f%%", u.share)
			}
			if s.MemoryLimit > 0 {
				cells[5] = size(int64(s.MemoryLimit))
			}
		}
		t.row(cells...)
	}
	return t.flush()
}

// statsJSON is what an app uses as --format json prints it.
type statsJSON struct {
	Pod    pod.ID    `json:"pod"`
	App    pod.ID    `json:"app"`
	Name   string    `json:"name"`
	Time   time.Time `json:"time"`
	CPU    uint64    `json:"cpuNanoseconds"`
	Share  *float64  `json:"cpuPercent,omitempty"`
	Memory uint64    `json:"memoryWorkingSetBytes"`
	Usage  uint64    `json:"memoryUsageBytes"`
	Limit  uint64    `json:"memoryLimitBytes,omitempty"`
	Swap   uint64    `json:"swapUsageBytes"`
	Pids   uint64    `json:"processes"`
}

func printStats(env *Env, all []usage) error {
	out := struct {
		Apps []statsJSON `json:"apps"`
	}{[]statsJSON{}}
	for _, u := range all {
		if u.err != nil {
			continue // it is among the errors
		}
		s := statsJSON{
			Pod: u.pod.ID, App: u.app.ID, Name: u.app.Name, Time: u.stats.Time, CPU: u.stats.CPUNanos, Memory: u.stats.MemoryWorkingSet,
			Usage: u.stats.MemoryUsage, Limit: u.stats.MemoryLimit, Swap: u.stats.SwapUsage, Pids: u.stats.Pids,
		}
		if u.share >= 0 {
			s.Share = &u.share
		}
		out.Apps = append(out.Apps, s)
	}
	return printJSON(env.Stdout, out)
}
