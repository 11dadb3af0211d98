package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"gantry/internal/engine"
	"gantry/internal/pod"
)

type gcOptions struct {
	format          format
	dryRun, explain bool
	images          bool
	grace           time.Duration
}

func gcCommand(env *Env) *cobra.Command {
	var o gcOptions
	cmd := command(env, "gc [OPTIONS]", "Remove what is left over", cobra.NoArgs, o.run)
	cmd.Long = `Remove what nothing needs any more: half-made things of programs that were killed, pods of the command line that
exited long ago and, with --images, images that no pod uses. Pods of a kubelet stay, but what those that
are stopped have on networks is given back, and processes of execs that nobody waits for are ended.

The networks of pods that are up are checked (CNI CHECK), of all pods and with --dry-run too, since that changes nothing.
What is wrong with one is told on stderr.`
	f := cmd.Flags()
	o.format.flag(f)
	f.BoolVar(&o.dryRun, "dry-run", false, "tell what would be removed; change nothing")
	f.BoolVar(&o.explain, "explain", false, "tell why")
	f.BoolVar(&o.images, "images", false, "remove images that no pod uses")
	f.DurationVar(&o.grace, "grace-period", 24*time.Hour, "remove pods that exited longer ago; 0 keeps them")
	return cmd
}

type gcJSON struct {
	DryRun   bool            `json:"dryRun"`
	Items    []gcItemJSON    `json:"items"`
	Bytes    int64           `json:"bytes"`
	Networks []gcNetworkJSON `json:"networks"`
}

type gcNetworkJSON struct {
	Pod       string `json:"pod"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Owner     string `json:"owner"`
	Gone      bool   `json:"gone"`
	Why       string `json:"why"`
}

type gcItemJSON struct {
	Kind  string `json:"kind"`
	Name  string `json:"name"`
	Why   string `json:"why"`
	Bytes int64  `json:"bytes"`
}

func (o *gcOptions) run(ctx context.Context, env *Env, _ []string) error {
	if o.grace < 0 {
		return usagef("--grace-period %s: want 0 or more", o.grace)
	}
	if err := needRoot(env, "gc"); err != nil {
		return err
	}
	return env.with(ctx, func(be *Backend) error {
		report, err := be.Engine.GC(ctx, engine.GCOptions{DryRun: o.dryRun, ExitedPods: o.grace, Images: o.images})
		if printErr := o.print(env, report); printErr != nil {
			return printErr
		}
		return err
	})
}

func (o *gcOptions) print(env *Env, report engine.GCReport) error {
	out := gcJSON{DryRun: o.dryRun, Items: []gcItemJSON{}, Networks: []gcNetworkJSON{}}
	for _, i := range report.Items {
		out.Items = append(out.Items, gcItemJSON(i))
		out.Bytes += i.Bytes
	}
	for _, n := range report.Networks {
		out.Networks = append(out.Networks, gcNetworkJSON{string(n.Pod.ID), n.Pod.Namespace, n.Pod.Name, string(n.Pod.Owner), n.Gone, n.Why})
	}
	if o.format == formatJSON {
		return printJSON(env.Stdout, out)
	}
	warnOfNetworks(env, report.Networks)
	if len(out.Items) == 0 {
		return nil
	}
	header := []string{"KIND", "NAME", "SIZE"}
	if o.explain {
		header = append(header, "WHY")
	}
	t := newTable(env.Stdout, header...)
	for _, i := range out.Items {
		row := []string{i.Kind, i.Name, sizeOrNone(i.Bytes)}
		if o.explain {
			row = append(row, i.Why)
		}
		t.row(row...)
	}
	if err := t.flush(); err != nil {
		return err
	}
	verb := "removed"
	if o.dryRun {
		verb = "would remove"
	}
	fmt.Fprintf(env.Stderr, "%s %d, %s\n", verb, len(out.Items), size(out.Bytes))
	return nil
}

// warnOfNetworks tells what to do, which is for the pod's owner: a pod's network is
// made with the pod.
func warnOfNetworks(env *Env, faults []engine.GCNetwork) {
	for _, n := range faults {
		next := "make the pod anew"
		if n.Pod.Owner == pod.OwnerCRI {
			next = "delete the pod, and its owner makes another"
		}
		if !n.Gone {
			next = "if it cannot be reached, " + next
		}
		fmt.Fprintf(env.Stderr, "warning: the network of pod %s (%s) is not as it was made: %s; %s\n", nameOf(pod.PodStatus{Pod: n.Pod}), n.Pod.ID, n.Why, next)
	}
}

func sizeOrNone(n int64) string {
	if n == 0 {
		return ""
	}
	return size(n)
}
