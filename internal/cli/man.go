package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func manCommand(env *Env) *cobra.Command {
	cmd := command(env, "man [COMMAND...]", "Print a manual page", cobra.ArbitraryArgs, nil)
	cmd.Long = `Print the manual page of gantry, or of one of its commands, for man(1) to read: gantry man run | man -l -`
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		page, _, err := cmd.Root().Find(args)
		if err != nil || len(args) > 0 && page == cmd.Root() {
			return usagef("%s: no such command", strings.Join(args, " "))
		}
		return manPage(env.Stdout, page)
	}
	return cmd
}

// manPage writes a page in the language of man(7). Pages come from the very
// commands, so they cannot tell anything else than --help does.
func manPage(w io.Writer, cmd *cobra.Command) error {
	m := &roff{}
	name := strings.ReplaceAll(cmd.CommandPath(), " ", "-")
	m.request("TH", strings.ToUpper(name), "1", "", "Gantry", "Gantry")
	m.request("SH", "NAME")
	m.text(name + " - " + lowerFirst(cmd.Short))
	m.request("SH", "SYNOPSIS")
	for _, line := range synopsis(cmd) {
		m.request("B", line)
		m.request("br")
	}
	m.request("SH", "DESCRIPTION")
	m.paragraphs(description(cmd))
	if len(cmd.Aliases) > 0 {
		m.paragraphs("Also called " + strings.Join(cmd.Aliases, ", ") + ".")
	}
	m.commands(cmd)
	m.flags("OPTIONS", cmd.NonInheritedFlags())
	m.flags("GLOBAL OPTIONS", cmd.InheritedFlags())
	if cmd.Example != "" {
		m.request("SH", "EXAMPLES")
		m.request("nf")
		m.text(cmd.Example)
		m.request("fi")
	}
	m.exitStatus(cmd)
	m.seeAlso(cmd)
	_, err := io.WriteString(w, m.b.String())
	return err
}

// exitCodes are told on every page.
const exitCodes = `0 for success. 125 if gantry itself failed, wrong usage included. run, run-prepared and exec exit with the code of the
app, or of the first app that failed: 128 plus the signal's number if it was killed by one, 126 if its program cannot be
run, 127 if there is no such program. status --wait=TIMEOUT exits with 124 when the time is over.`

type roff struct{ b strings.Builder }

// request writes a line that begins with a dot.
func (m *roff) request(name string, args ...string) {
	m.b.WriteString("." + name)
	for _, a := range args {
		m.b.WriteString(` "` + strings.ReplaceAll(escapeRoff(a), `"`, `\(dq`) + `"`)
	}
	m.b.WriteByte('\n')
}

func (m *roff) text(s string) {
	for line := range strings.SplitSeq(s, "\n") {
		line = escapeRoff(line)
		if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
			line = `\&` + line
		}
		m.b.WriteString(line + "\n")
	}
}

func escapeRoff(s string) string {
	return strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(s)
}

func (m *roff) paragraphs(s string) {
	for p := range strings.SplitSeq(s, "\n\n") {
		m.request("PP")
		m.text(p)
	}
}

func (m *roff) commands(cmd *cobra.Command) {
	if !hasCommands(cmd) {
		return
	}
	m.request("SH", "COMMANDS")
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			m.request("TP")
			m.request("B", c.Name())
			m.text(c.Short + ".")
		}
	}
}

func (m *roff) flags(title string, f *pflag.FlagSet) {
	if !f.HasAvailableFlags() {
		return
	}
	m.request("SH", title)
	f.VisitAll(func(x *pflag.Flag) {
		if x.Hidden {
			return
		}
		m.request("TP")
		m.request("B", flagWords(x))
		_, usage := pflag.UnquoteUsage(x)
		m.text(usage + defaultText(x) + ".")
	})
}

// flagWords is "-n, --name NAME".
func flagWords(x *pflag.Flag) string {
	out := "--" + x.Name
	if x.Shorthand != "" {
		out = "-" + x.Shorthand + ", " + out
	}
	value, _ := pflag.UnquoteUsage(x)
	switch {
	case value == "":
	case x.NoOptDefVal != "":
		out += "[=" + value + "]"
	default:
		out += " " + value
	}
	return out
}

func defaultText(x *pflag.Flag) string {
	switch x.DefValue {
	case "", "false", "[]", "0", "-1":
		return ""
	}
	return " (default " + x.DefValue + ")"
}

func (m *roff) exitStatus(*cobra.Command) {
	m.request("SH", "EXIT STATUS")
	m.paragraphs(exitCodes)
}

func (m *roff) seeAlso(cmd *cobra.Command) {
	var pages []string
	if cmd.HasParent() {
		pages = append(pages, strings.ReplaceAll(cmd.Parent().CommandPath(), " ", "-")+"(1)")
	}
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() && c.Name() != "help" && c.Name() != "completion" {
			pages = append(pages, strings.ReplaceAll(c.CommandPath(), " ", "-")+"(1)")
		}
	}
	pages = append(pages, "systemctl(1)", "journalctl(1)")
	m.request("SH", "SEE ALSO")
	m.text(strings.Join(pages, ", "))
}

func synopsis(cmd *cobra.Command) []string {
	use := cmd.UseLine()
	if hasCommands(cmd) && !cmd.HasParent() {
		use = cmd.Name() + " COMMAND [OPTIONS] [ARGUMENT...]"
	}
	var out []string
	for line := range strings.SplitSeq(use, "\n") {
		out = append(out, strings.TrimSpace(line))
	}
	return out
}

func hasCommands(cmd *cobra.Command) bool { return cmd.HasAvailableSubCommands() }

func description(cmd *cobra.Command) string {
	if cmd.Long != "" {
		return cmd.Long
	}
	return cmd.Short + "."
}

func lowerFirst(s string) string {
	if s == "" {
		return s
	}
	return strings.ToLower(s[:1]) + s[1:]
}

// markdown writes the reference of all commands as one document.
func markdown(w io.Writer, root *cobra.Command) error {
	var b strings.Builder
	b.WriteString("# The gantry command\n\nThis file is generated from the commands themselves: `make golden` writes it.\n")
	eachCommand(root, func(cmd *cobra.Command) {
		fmt.Fprintf(&b, "\n## %s\n\n%s.\n\n```\n%s\n```\n", cmd.CommandPath(), cmd.Short, strings.Join(synopsis(cmd), "\n"))
		if cmd.Long != "" {
			fmt.Fprintf(&b, "\n%s\n", cmd.Long)
		}
		if cmd.Example != "" {
			fmt.Fprintf(&b, "\n```\n%s\n```\n", strings.ReplaceAll("\n"+cmd.Example, "\n  ", "\n")[1:])
		}
		flagTable(&b, cmd.NonInheritedFlags())
	})
	fmt.Fprintf(&b, "\n## Exit codes\n\n%s\n", exitCodes)
	_, err := io.WriteString(w, b.String())
	return err
}

func flagTable(b *strings.Builder, f *pflag.FlagSet) {
	if !f.HasAvailableFlags() {
		return
	}
	b.WriteString("\n| option | meaning |\n|---|---|\n")
	f.VisitAll(func(x *pflag.Flag) {
		if x.Hidden {
			return
		}
		_, usage := pflag.UnquoteUsage(x)
		fmt.Fprintf(b, "| `%s` | %s |\n", strings.ReplaceAll(flagWords(x), "|", `\|`), strings.ReplaceAll(usage+defaultText(x), "|", `\|`))
	})
}

// eachCommand visits the commands users see, in the order of --help.
func eachCommand(cmd *cobra.Command, f func(*cobra.Command)) {
	f(cmd)
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() && c.Name() != "help" && c.Name() != "completion" {
			eachCommand(c, f)
		}
	}
}
