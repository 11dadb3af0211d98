package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"gantry/internal/engine"
	"gantry/internal/pod"
)

type listOptions struct {
	format   format
	apps     bool
	quiet    bool
	noLegend bool
	owner    string
	labels   []string
}

func listCommand(env *Env) *cobra.Command {
	var o listOptions
	cmd := command(env, "list [OPTIONS]", "List pods", cobra.NoArgs, o.run)
	cmd.Aliases = []string{"ls", "ps"}
	cmd.Long = `List pods, oldest first: those of the command line (owner cli) and those of a kubelet (owner cri).`
	f := cmd.Flags()
	o.format.flag(f)
	f.BoolVar(&o.apps, "apps", false, "list apps, one a line")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "print whole IDs only")
	f.BoolVar(&o.noLegend, "no-legend", false, "print no line of headings")
	f.StringVar(&o.owner, "owner", "", "list the pods of one owner, cli or cri")
	f.StringArrayVarP(&o.labels, "label", "l", nil, "list pods with the label `NAME=VALUE` only; may be repeated")
	return cmd
}

func (o *listOptions) run(ctx context.Context, env *Env, _ []string) error {
	labels, err := pairs(o.labels)
	if err != nil {
		return usagef("--label %w", err)
	}
	if o.owner != "" && o.owner != string(pod.OwnerCLI) && o.owner != string(pod.OwnerCRI) {
		return usagef("--owner %q: want cli or cri", o.owner)
	}
	return env.with(ctx, func(be *Backend) error {
		pods, err := be.Engine.Pods(engine.Filter{Owner: pod.Owner(o.owner), Labels: labels})
		if err != nil {
			return err
		}
		switch {
		case o.quiet:
			return o.printIDs(env, pods)
		case o.format == formatJSON:
			return printPods(env, pods)
		case o.apps:
			return o.printApps(env, pods)
		}
		return o.printTable(env, pods)
	})
}

func printPods(env *Env, pods []pod.PodStatus) error {
	out := struct {
		Pods []podJSON `json:"pods"`
	}{[]podJSON{}}
	for _, p := range pods {
		out.Pods = append(out.Pods, podOut(p))
	}
	return printJSON(env.Stdout, out)
}

func (o *listOptions) printIDs(env *Env, pods []pod.PodStatus) error {
	for _, p := range pods {
		if !o.apps {
			fmt.Fprintln(env.Stdout, p.ID)
			continue
		}
		for _, a := range p.Apps {
			fmt.Fprintln(env.Stdout, a.ID)
		}
	}
	return nil
}

func (o *listOptions) header(h ...string) []string {
	if o.noLegend {
		return nil
	}
	return h
}

func (o *listOptions) printTable(env *Env, pods []pod.PodStatus) error {
	t := newTable(env.Stdout, o.header("POD", "NAME", "PHASE", "APPS", "IP", "AGE", "OWNER")...)
	for _, p := range pods {
		running := fmt.Sprintf("%d/%d", len(inPhase(p.Apps, pod.Running)), len(p.Apps))
		t.row(short(p.ID), nameOf(p), string(phaseOf(p)), running, address(p), age(env.Now(), p.Created), string(p.Owner))
	}
	return t.flush()
}

func (o *listOptions) printApps(env *Env, pods []pod.PodStatus) error {
	t := newTable(env.Stdout, o.header("APP", "POD", "NAME", "PHASE", "EXIT", "IMAGE", "AGE")...)
	for _, p := range pods {
		for _, a := range p.Apps {
			t.row(short(a.ID), nameOf(p), a.Name, string(a.Phase), exitText(a), a.Image.Name, age(env.Now(), a.Created))
		}
	}
	return t.flush()
}

// nameOf leaves out the namespace that a pod has when nobody named one.
func nameOf(p pod.PodStatus) string {
	if p.Namespace == "" || p.Namespace == defaultNamespace {
		return p.Name
	}
	return p.Namespace + "/" + p.Name
}

func address(p pod.PodStatus) string {
	if p.HostNetwork() {
		return "host"
	}
	return strings.Join(p.IPs, ",")
}

// pairs reads NAME=VALUE words.
func pairs(list []string) (map[string]string, error) {
	out := map[string]string{}
	for _, s := range list {
		name, value, ok := strings.Cut(s, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("%q: want NAME=VALUE", s)
		}
		out[name] = value
	}
	return out, nil
}
