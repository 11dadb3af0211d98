package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// history is where the results of all recorded runs are, in the repository.
const history = "bench/history.csv"

// runBench measures Gantry and containerd in the VM. What the benchmark takes of
// arguments stands behind "--".
func runBench(ctx context.Context, t *trial, args []string) error {
	flags := t.flags("bench")
	record := flags.Bool("record", false, "append the results to "+history)
	keep := flags.Bool("keep", false, "leave the VM up at the end if this command booted it")
	noInstall := flags.Bool("no-install", false, "measure what is installed in the VM already")
	if err := flags.Parse(args); err != nil {
		return err
	}
	repo, err := repository()
	if err != nil {
		return err
	}
	peer, err := containerdPeer().build(ctx, t)
	if err != nil {
		return err
	}
	v := t.vm()
	booted, end, err := t.upFor(ctx, *keep)
	if err != nil {
		return err
	}
	defer end()
	if booted || !*noInstall {
		if err := t.installBench(ctx, v, peer); err != nil {
			return err
		}
	}
	if err := t.pushBench(ctx, v, repo); err != nil {
		return err
	}
	return t.measure(ctx, v, repo, flags.Args(), *record)
}

func (t *trial) installBench(ctx context.Context, v vm, peer string) error {
	if err := t.installNode(ctx, v); err != nil {
		return err
	}
	if err := t.installGantry(ctx, v); err != nil {
		return err
	}
	return t.say.step("push containerd to "+v.name, func() error { return v.push(ctx, peer, "/usr/local/bin") })
}

func (t *trial) pushBench(ctx context.Context, v vm, repo string) error {
	work, err := os.MkdirTemp("", "trial-bench-")
	if err != nil {
		return fmt.Errorf("make a directory for the benchmark: %w", err)
	}
	defer os.RemoveAll(work)
	program := filepath.Join(work, "bench")
	return t.say.step("build and push the benchmark", func() error {
		if err := goBuild(ctx, repo, "-o", program, "./bench"); err != nil {
			return err
		}
		return v.push(ctx, program, suiteDir+"/bench")
	})
}

func (t *trial) measure(ctx context.Context, v vm, repo string, args []string, record bool) error {
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return fmt.Errorf("read the load average: %w", err)
	}
	average, _, _ := strings.Cut(string(load), " ")
	t.say.line("the load average of this machine is %s: the nearer to none, the better", average)
	accel, _, _ := strings.Cut(v.read("accel"), " ")
	machine := fmt.Sprintf("trial VM %s; %s; %d processors", v.read("image"), accel, processors())
	const results = suiteDir + "/bench.csv"
	words := []string{
		suiteDir + "/bench", "-csv", results, "-commit", quote(commitOf(ctx, repo)), "-machine", quote(machine), "-load", quote(average),
	}
	for _, a := range args {
		words = append(words, quote(a))
	}
	err = v.stream(ctx, "rm -f "+results+"; exec "+strings.Join(words, " "), nil, os.Stdout, os.Stderr)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() != 255 {
		return &remoteError{err}
	}
	if err != nil || !record {
		return err
	}
	text, err := v.output(ctx, "cat "+results)
	if err != nil {
		return err
	}
	return appendHistory(filepath.Join(repo, history), text)
}

// historyHead names the columns; docs/benchmarks.md says what they hold.
const historyHead = "date,commit,machine,host_load,metric,engine,unit,median,p25,p75,samples\n"

func appendHistory(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("record the results: %w", err)
	}
	info, err := f.Stat()
	if err == nil && info.Size() == 0 {
		text = historyHead + text
	}
	if err == nil {
		_, err = io.WriteString(f, text)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("record the results: %w", err)
	}
	return nil
}

// commitOf names what is measured; a tree with changes is not its commit.
func commitOf(ctx context.Context, repo string) string {
	cmd := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
	cmd.Dir = repo
	out, err := cmd.Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}
