package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gantry/internal/pod"
	"gantry/internal/unit"
)

type statusOptions struct {
	format format
	wait   waitFlag
}

// waitFlag is --wait or --wait=TIMEOUT.
type waitFlag struct {
	set     bool
	timeout time.Duration
}

func (w *waitFlag) String() string { return "" }
func (w *waitFlag) Type() string   { return "duration" }

// Set implements pflag.Value.
func (w *waitFlag) Set(s string) error {
	w.set = true
	if s == "forever" {
		return nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		return fmt.Errorf("%q: want a time such as 30s or 5m", s)
	}
	w.timeout = d
	return nil
}

func statusCommand(env *Env) *cobra.Command {
	var o statusOptions
	cmd := command(env, "status [OPTIONS] POD", "Show a pod and its apps", cobra.ExactArgs(1), o.run)
	cmd.Long = `Show one pod and its apps. With --wait, wait until all its apps have exited; if the time given is over before,
exit with code 124.`
	cmd.ValidArgsFunction = completePods(env)
	f := cmd.Flags()
	o.format.flag(f)
	f.Var(&o.wait, "wait", "wait until all apps have exited, at most `TIMEOUT` if one is given")
	f.Lookup("wait").NoOptDefVal = "forever"
	return cmd
}

func (o *statusOptions) run(ctx context.Context, env *Env, args []string) error {
	return env.with(ctx, func(be *Backend) error {
		p, err := findPod(be.Engine, args[0])
		if err != nil {
			return err
		}
		late := error(nil)
		if o.wait.set {
			if late = o.waitFor(ctx, be, p); late != nil && !errors.Is(late, context.DeadlineExceeded) {
				return late
			}
			if p, err = be.Engine.Pod(p.ID); err != nil {
				return err
			}
		}
		if err := o.print(env, p); err != nil {
			return err
		}
		if late != nil {
			fmt.Fprintf(env.Stderr, "gantry: wait for pod %s: not all apps exited within %s\n", p.Name, o.wait.timeout)
			return &codeError{exitTimeout}
		}
		return nil
	})
}

func (o *statusOptions) waitFor(ctx context.Context, be *Backend, p pod.PodStatus) error {
	if o.wait.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.wait.timeout)
		defer cancel()
	}
	for _, a := range p.Apps {
		// What was never started in a pod that is down needs no wait.
		if _, err := be.Engine.WaitApp(ctx, a.ID); err != nil && !errors.Is(err, pod.ErrState) {
			return err
		}
	}
	return nil
}

func (o *statusOptions) print(env *Env, p pod.PodStatus) error {
	if o.format == formatJSON {
		return printJSON(env.Stdout, podOut(p))
	}
	t := newTable(env.Stdout)
	t.row("pod:", string(p.ID))
	t.row("name:", nameOf(p))
	t.row("owner:", string(p.Owner))
	t.row("phase:", string(phaseOf(p)))
	t.row("ready:", fmt.Sprint(p.Ready))
	t.row("created:", when(env, p.Created))
	t.row("isolator:", p.Isolator)
	if p.IsolatorReason != "" {
		t.row("because of:", printable(p.IsolatorReason))
	}
	t.row("address:", address(p))
	if len(p.Ports) > 0 {
		t.row("ports:", portsText(p.Ports))
	}
	if len(p.Labels) > 0 {
		t.row("labels:", pairsText(p.Labels))
	}
	if len(p.Annotations) > 0 {
		t.row("annotations:", pairsText(p.Annotations))
	}
	t.row("slice:", p.Slice)
	t.row("unit:", unit.Pod(string(p.ID)))
	for _, a := range p.Apps {
		fmt.Fprintln(t.w)
		printApp(env, t, a)
	}
	return t.flush()
}

func printApp(env *Env, t *table, a pod.AppStatus) {
	kind := "app:"
	if isInit(a) {
		kind = "init app:"
	}
	t.row(kind, a.Name)
	t.row("  id:", string(a.ID))
	t.row("  phase:", string(a.Phase))
	if a.Exit != nil {
		t.row("  exit code:", fmt.Sprint(a.Exit.Code))
		t.row("  reason:", a.Exit.Reason)
		if a.Exit.Message != "" {
			t.row("  message:", a.Exit.Message)
		}
	}
	t.row("  image:", a.Image.Name)
	if !a.Started.IsZero() {
		t.row("  started:", when(env, a.Started))
	}
	if !a.Finished.IsZero() {
		t.row("  finished:", when(env, a.Finished))
	}
	if a.PID != 0 {
		t.row("  pid:", fmt.Sprint(a.PID))
	}
	t.row("  unit:", unit.App(string(a.ID)))
}

func when(env *Env, t time.Time) string {
	return fmt.Sprintf("%s (%s ago)", t.UTC().Format(time.RFC3339), age(env.Now(), t))
}

func portsText(ports []pod.Port) string {
	var out []string
	for _, p := range ports {
		if p.HostPort == 0 {
			continue
		}
		host := fmt.Sprint(p.HostPort)
		if p.HostIP != "" {
			host = p.HostIP + ":" + host
		}
		out = append(out, fmt.Sprintf("%s->%d/%s", host, p.PodPort, p.Protocol))
	}
	return strings.Join(out, ", ")
}

func pairsText(m map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, k+"="+m[k])
	}
	return strings.Join(out, ", ")
}
