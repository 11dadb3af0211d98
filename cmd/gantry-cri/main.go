// Command gantry-cri serves the Container Runtime Interface to a kubelet. systemd
// starts it (gantry-cri.socket); it keeps no state and may be killed at any time.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/sirupsen/logrus"

	"gantry/internal/config"
)

// version is set by the Makefile.
var version = "devel"

// gcPercent keeps the heap tight: most of the time all that is asked for are lists.
const gcPercent = 50

func main() {
	debug.SetGCPercent(gcPercent)
	logrus.SetOutput(io.Discard) // the image library's, which may name signed URLs; its errors are ours to tell
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "gantry-cri:", err)
		os.Exit(1)
	}
}

// run does what the command line says; without any of the questions it serves.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	f := flag.NewFlagSet("gantry-cri", flag.ContinueOnError)
	f.SetOutput(stderr)
	dir := f.String("config-dir", config.Dir, "where config.toml and config.d are")
	check := f.Bool("check-config", false, "read the configuration, tell whether it is valid, and leave")
	show := f.Bool("print-config", false, "print the configuration in force, and leave")
	ask := f.Bool("version", false, "print the version, and leave")

	// Flags win over files, whatever their order: they are put aside first.
	given := map[string]string{}
	defaults := config.Default()
	for _, o := range defaults.Options() {
		f.Var(&later{o.Value, func(s string) { given[o.Key] = s }}, o.Flag(), o.Usage)
	}
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() > 0 {
		return fmt.Errorf("takes no arguments, got %q", f.Args())
	}
	if *ask {
		_, err := fmt.Fprintln(stdout, "gantry-cri", version)
		return err
	}
	load := func() (config.Config, []string, error) { return loadWith(*dir, given) }
	cfg, files, err := load()
	if err != nil {
		return err
	}
	switch {
	case *show:
		_, err := io.WriteString(stdout, cfg.Text())
		return err
	case *check:
		_, err := fmt.Fprintf(stdout, "the configuration is valid (%d files below %s)\n", len(files), *dir)
		return err
	}
	level := &slog.LevelVar{}
	setLevel(level, cfg.LogLevel)
	return serve(ctx, cfg, files, load, level, logger(level, stderr))
}

// loadWith reads the configuration below a directory, and lays what was given on the
// command line over it.
func loadWith(dir string, given map[string]string) (config.Config, []string, error) {
	cfg, files, err := config.Load(dir)
	if err != nil {
		return cfg, files, err
	}
	for _, o := range cfg.Options() {
		if s, ok := given[o.Key]; ok {
			if err := o.Value.Set(s); err != nil {
				return cfg, files, fmt.Errorf("--%s: %w", o.Flag(), err)
			}
		}
	}
	if err := cfg.Check(); err != nil {
		return cfg, files, fmt.Errorf("check configuration: %w", err)
	}
	return cfg, files, nil
}

// later checks a flag's value at once, but leaves it to be set when the files
// have been read.
type later struct {
	config.Value
	keep func(string)
}

func (l *later) Set(s string) error {
	if err := l.Value.Set(s); err != nil {
		return err
	}
	l.keep(s)
	return nil
}

// String is also called on the zero value, by package flag.
func (l *later) String() string {
	if l.Value == nil {
		return ""
	}
	return l.Value.String()
}

// IsBoolFlag makes --stdio-journal mean --stdio-journal=true.
func (l *later) IsBoolFlag() bool {
	b, ok := l.Value.(interface{ IsBoolFlag() bool })
	return ok && b.IsBoolFlag()
}
