package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"gantry/internal/engine"
	"gantry/internal/isolator"
)

func isolatorCommand(env *Env) *cobra.Command {
	cmd := &cobra.Command{Use: "isolator COMMAND", Short: "List and check isolators", Aliases: []string{"isolators"}}
	cmd.Args = noSuchCommand
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	cmd.AddCommand(isolatorListCommand(env), isolatorCheckCommand(env))
	return cmd
}

// isolatorJSON is a name that chooses an isolator, as --format json prints it.
type isolatorJSON struct {
	Name      string          `json:"name"`
	Isolator  string          `json:"isolator"`
	Default   bool            `json:"default"`
	Isolation string          `json:"isolation"`
	Features  map[string]bool `json:"features"`
	Source    string          `json:"source,omitempty"` // the file, of a third party's
	Error     string          `json:"error,omitempty"`  // why it cannot be used
}

// features are an isolator's, by the names of the contract's fields.
func features(f isolator.Features) []feature {
	return []feature{
		{"podNetwork", f.PodNetwork},
		{"hostNetwork", f.HostNetwork},
		{"hostPID", f.HostPID},
		{"hostIPC", f.HostIPC},
		{"userNamespaces", f.UserNamespaces},
		{"sharedPID", f.SharedPID},
		{"privileged", f.Privileged},
		{"recursiveReadOnlyMounts", f.RecursiveReadOnlyMounts},
		{"bidirectionalMounts", f.BidirectionalMounts},
		{"imageVolumes", f.ImageVolumes},
		{"mountOptions", f.MountOptions},
		{"tty", f.TTY},
		{"devices", f.Devices},
		{"hooks", f.Hooks},
	}
}

type feature struct {
	name  string
	given bool
}

func isolation(i isolator.Isolation) string {
	switch i {
	case isolator.IsolationNone:
		return "none"
	case isolator.IsolationNamespaces:
		return "namespaces"
	case isolator.IsolationKernel:
		return "kernel"
	default:
		return "machine"
	}
}

// isolationOf is a word for how much one isolates that may not be usable.
func isolationOf(f engine.IsolatorFeatures) string {
	switch {
	case f.Off:
		return "off"
	case f.Broken != nil:
		return "broken"
	default:
		return isolation(f.Features.Isolation)
	}
}

type isolatorListOptions struct {
	format   format
	noLegend bool
}

func isolatorListCommand(env *Env) *cobra.Command {
	var o isolatorListOptions
	cmd := command(env, "list [OPTIONS]", "List the names that choose an isolator, and what each lacks", cobra.NoArgs, o.run)
	cmd.Aliases = []string{"ls"}
	f := cmd.Flags()
	o.format.flag(f)
	f.BoolVar(&o.noLegend, "no-legend", false, "print no line of headings")
	return cmd
}

func (o *isolatorListOptions) run(ctx context.Context, env *Env, _ []string) error {
	return env.with(ctx, func(be *Backend) error {
		all := be.Engine.Features()
		if o.format == formatJSON {
			return printJSON(env.Stdout, isolatorsOut(all))
		}
		header := []string{"NAME", "ISOLATOR", "ISOLATION", "DEFAULT", "SOURCE", "LACKS"}
		if o.noLegend {
			header = nil
		}
		t := newTable(env.Stdout, header...)
		for i, f := range all {
			usual := ""
			if i == 0 {
				usual = "yes"
			}
			lacking := strings.Join(lacks(f.Features), " ")
			if f.Broken != nil {
				lacking = "all: " + printable(f.Broken.Error())
			}
			t.row(f.Name, f.Isolator, isolationOf(f), usual, f.Source, lacking)
		}
		return t.flush()
	})
}

func lacks(f isolator.Features) (names []string) {
	for _, has := range features(f) {
		if !has.given {
			names = append(names, has.name)
		}
	}
	return names
}

func isolatorsOut(all []engine.IsolatorFeatures) any {
	out := []isolatorJSON{}
	for i, f := range all {
		one := isolatorJSON{
			Name: f.Name, Isolator: f.Isolator, Default: i == 0, Isolation: isolation(f.Features.Isolation), Features: map[string]bool{}, Source: f.Source,
		}
		if f.Broken != nil {
			one.Error = f.Broken.Error()
			if f.Source != "" { // its features are not known
				one.Isolation = ""
			}
		}
		for _, has := range features(f.Features) {
			one.Features[has.name] = has.given
		}
		out = append(out, one)
	}
	return struct {
		Isolators []isolatorJSON `json:"isolators"`
	}{out}
}
