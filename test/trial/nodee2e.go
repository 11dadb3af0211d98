package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// The lane of Kubernetes' node suite that is run unless another is asked for: what
// every node must pass, but what disturbs the others, takes long or is known to be
// unreliable.
const (
	conformanceFocus = `\[NodeConformance\]`
	conformanceSkip  = `\[Serial\]|\[Slow\]|\[Flaky\]`
)

// nodeE2E is a run of Kubernetes' node suite.
type nodeE2E struct {
	focus, skip string
	procs       int
	batch       int
	again       bool
	record      bool
	missing     bool
	within      time.Duration
	engine      string
}

func runNodeE2E(ctx context.Context, t *trial, args []string) error {
	var how nodeE2E
	flags := t.flags("node-e2e")
	how.flags(flags)
	keep := flags.Bool("keep", false, "leave the VM up at the end if this command booted it")
	noInstall := flags.Bool("no-install", false, "try what is installed in the VM already")
	if err := flags.Parse(args); err != nil {
		return err
	}
	for _, re := range []string{how.focus, how.skip} {
		if _, err := regexp.Compile(re); err != nil {
			return fmt.Errorf("specs to run: %w", err)
		}
	}
	if commit := commitHere(ctx); how.record && strings.HasSuffix(commit, "-dirty") {
		return fmt.Errorf("the tree has changes that are in no commit (%s): results of it cannot be repeated, so commit before you record", commit)
	}
	v := t.vm()
	booted, end, err := t.upFor(ctx, *keep)
	if err != nil {
		return err
	}
	defer end()
	if booted || !*noInstall {
		if err := t.installNodeE2E(ctx, v, how); err != nil {
			return err
		}
	}
	return t.nodeE2E(ctx, v, how)
}

func (how *nodeE2E) flags(flags *flag.FlagSet) {
	flags.StringVar(&how.focus, "focus", conformanceFocus, "the specs whose names match this regular expression")
	flags.StringVar(&how.skip, "skip", conformanceSkip, "but those that match this one")
	flags.IntVar(&how.procs, "procs", 4, "specs at the same time; [Serial] ones want 1")
	flags.IntVar(&how.batch, "batch", 60, "specs for which one API server and kubelet are started")
	flags.BoolVar(&how.again, "again", false, "run also what passed before with the same sources")
	flags.BoolVar(&how.record, "record", false, "put the results into "+conformanceResults+" and "+conformancePage+"; of containerd, what fails with it too")
	flags.DurationVar(&how.within, "within", 0, "begin no batch after this long; 0 is no bound")
	flags.BoolVar(&how.missing, "missing", false, "leave out what "+conformanceResults+" has as passed")
	flags.StringVar(&how.engine, "engine", "gantry", "gantry, or containerd to compare with")
}

// moveRegistry leaves port 5000 to specs that serve a registry there themselves.
const moveRegistry = `sed -i 's/127\.0\.0\.1:5000/127.0.0.1:5010/' \
	/etc/systemd/system/trial-registry.service /etc/containers/registries.conf.d/90-trial.conf /etc/containerd/certs.d/_default/hosts.toml &&
	systemctl daemon-reload`

// installNodeE2E puts into the VM what the suite needs, and the engine.
func (t *trial) installNodeE2E(ctx context.Context, v vm, how nodeE2E) error {
	if err := t.installNode(ctx, v); err != nil {
		return err
	}
	if _, err := v.output(ctx, moveRegistry); err != nil {
		return fmt.Errorf("move the registry: %w", err)
	}
	peers := []peer{kubeletPeer(), agnhostPeer()}
	if how.engine == "containerd" {
		peers = append(peers, containerdPeer())
	} else if err := t.installGantry(ctx, v); err != nil {
		return err
	}
	for _, p := range peers {
		dir, err := p.build(ctx, t)
		if err != nil {
			return err
		}
		if err := t.pushPeer(ctx, v, filepath.Base(p.packages[0]), dir); err != nil {
			return err
		}
	}
	if how.engine == "containerd" {
		if _, err := v.output(ctx, "systemctl start trial-containerd.service"); err != nil {
			return err
		}
	}
	suite, err := nodeSuitePeer().build(ctx, t)
	if err != nil {
		return err
	}
	err = t.say.step("push the node suite to "+v.name, func() error { return v.push(ctx, suite, "/usr/local/lib/trial/nodesuite") })
	if err != nil {
		return err
	}
	// The image of agnhost is made of the program.
	if _, err := v.output(ctx, "systemctl restart trial-registry.service"); err != nil {
		return err
	}
	return t.noteInstalled(ctx, v, how)
}

// nodeE2E runs specs in batches, so that a run can be cut off and taken up again.
func (t *trial) nodeE2E(ctx context.Context, v vm, how nodeE2E) error {
	list, err := t.listSpecs(ctx, v, how)
	if err != nil {
		return err
	}
	specs := names(list)
	if how.missing {
		if specs, err = missingSpecs(specs); err != nil {
			return err
		}
	}
	store, err := t.openResults(v)
	if err != nil {
		return err
	}
	todo := store.todo(specs, how.again)
	t.say.line("%d specs, %d of them passed or were skipped before with the same sources", len(specs), len(specs)-len(todo))
	begun := time.Now()
	for _, batch := range batches(list, todo, how.batch) {
		if how.within != 0 && time.Since(begun) >= how.within {
			break
		}
		results, err := t.runBatch(ctx, v, how, batch)
		if errors.Is(err, errNoSpec) { // its API server starts slowly where other work is under way
			t.say.line("%v; trying once more", err)
			results, err = t.runBatch(ctx, v, how, batch)
		}
		err = errors.Join(err, store.add(results))
		if how.record { // a run may be cut off
			err = errors.Join(err, how.keep(store.of(specs), store.of(batch)))
		}
		if err != nil {
			return err
		}
		todo = slices.DeleteFunc(todo, func(s string) bool { return slices.Contains(batch, s) })
		t.say.line("%d specs to go after %s", len(todo), time.Since(begun).Round(time.Second))
	}
	outcome := store.of(specs)
	for _, r := range outcome {
		if r.State != "passed" {
			fmt.Printf("%s: %s: %s\n", strings.ToUpper(r.State), r.Spec, oneLine(r.Reason))
		}
	}
	n := outcome.count()
	fmt.Println(n)
	if how.record {
		if err := how.keep(outcome, nil); err != nil {
			return err
		}
	}
	if n.failed > 0 || n.passed == 0 {
		return &remoteError{fmt.Errorf("node suite: %s", n)}
	}
	return nil
}

// keep puts results into the repository: all that there are of Gantry, and of the engine
// to compare with the failures of this run.
func (how nodeE2E) keep(all specResults, now []specResult) error {
	if how.engine == "containerd" {
		return recordPeer(now)
	}
	return recordResults(all)
}

// command is a call of the script in the VM.
func (how nodeE2E) command(procs int, focus, skip string, more ...string) string {
	words := []string{"bash /usr/local/lib/trial/node-e2e", nodeE2EReports, fmt.Sprint(procs), "--focus=" + quote(focus), "--skip=" + quote(skip)}
	if how.engine == "containerd" {
		words = append([]string{"ENDPOINT=unix:///run/containerd/containerd.sock PROCESS=/usr/local/bin/containerd UNIT=trial-containerd.service"}, words...)
	}
	return strings.Join(append(words, more...), " ")
}

const nodeE2EReports = "/var/tmp/node-e2e"

// listedSpec is one that could be run. Specs of a group stand on each other: the first
// makes the pod that the others look at.
type listedSpec struct{ name, group string }

func names(list []listedSpec) (out []string) {
	for _, l := range list {
		out = append(out, l.name)
	}
	return out
}

// batches puts what is to be done into batches of about this size, groups whole.
func batches(list []listedSpec, todo []string, size int) (out [][]string) {
	groups := map[string][]string{}
	wanted := map[string]bool{}
	for _, name := range todo {
		wanted[name] = true
	}
	for _, l := range list {
		groups[l.group] = append(groups[l.group], l.name)
	}
	var batch []string
	taken := map[string]bool{}
	for _, l := range list {
		if !wanted[l.name] || taken[l.name] {
			continue
		}
		together := []string{l.name}
		if l.group != "" {
			together = groups[l.group]
		}
		if len(batch) > 0 && len(batch)+len(together) > size {
			out, batch = append(out, batch), nil
		}
		batch = append(batch, together...)
		for _, name := range together {
			taken[name] = true
		}
	}
	if len(batch) > 0 {
		out = append(out, batch)
	}
	return out
}

// listSpecs asks the suite which specs would be run.
func (t *trial) listSpecs(ctx context.Context, v vm, how nodeE2E) ([]listedSpec, error) {
	var reports []specReport
	err := t.say.step("list the specs", func() error {
		if out, err := v.output(ctx, how.command(1, how.focus, how.skip, "--dry-run")); err != nil {
			return fmt.Errorf("%w: %s", err, oneLine(out))
		}
		var err error
		reports, err = v.specReports(ctx)
		return err
	})
	var list []listedSpec
	for _, r := range reports {
		if r.Kind == "It" && r.State == "passed" {
			l := listedSpec{name: r.name()}
			if r.Ordered {
				l.group = strings.Join(r.Containers, "\n")
			}
			list = append(list, l)
		}
	}
	return list, err
}

var errNoSpec = errors.New("no spec was run")

// runBatch runs these specs and no others. What it prints goes to a file: it is much.
func (t *trial) runBatch(ctx context.Context, v vm, how nodeE2E, specs []string) ([]specResult, error) {
	wanted := map[string]bool{}
	for _, s := range specs {
		wanted[s] = true
	}
	log, err := os.OpenFile(t.cache.path("vm", v.name, "node-e2e.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	var results []specResult
	err = t.say.step(fmt.Sprintf("run %d specs (see %s)", len(specs), log.Name()), func() error {
		runErr := v.stream(ctx, how.command(how.procs, focusOn(specs), "", "-v"), nil, log, log)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		reports, err := v.specReports(ctx)
		if err != nil {
			return errors.Join(runErr, err)
		}
		for _, r := range reports {
			if r.Kind == "It" && wanted[r.name()] {
				results = append(results, r.result())
			} else if r.Kind != "It" && r.State != "passed" && r.State != "skipped" {
				fmt.Printf("%s: %s: %s\n", r.Kind, r.State, oneLine(r.Failure.Message))
			}
		}
		if len(results) == 0 {
			return errors.Join(runErr, errNoSpec)
		}
		return nil
	})
	return results, err
}

// focusOn chooses specs by their whole names. Ginkgo puts the suite's in front.
func focusOn(specs []string) string {
	quoted := make([]string, len(specs))
	for i, s := range specs {
		quoted[i] = regexp.QuoteMeta(s)
	}
	return " (" + strings.Join(quoted, "|") + ")$"
}

// specReport is what a ginkgo report says of one spec, or of another node of the suite.
type specReport struct {
	Containers []string `json:"ContainerHierarchyTexts"`
	Kind       string   `json:"LeafNodeType"`
	Text       string   `json:"LeafNodeText"`
	Ordered    bool     `json:"IsInOrderedContainer"`
	State      string
	RunTime    time.Duration
	Failure    struct{ Message string }
	Output     string `json:"CapturedGinkgoWriterOutput"`
}

// name is what ginkgo compares with a focus: it leaves out texts that are empty.
func (r specReport) name() string {
	texts := append(slices.Clone(r.Containers), r.Text)
	return strings.Join(slices.DeleteFunc(texts, func(t string) bool { return t == "" }), " ")
}

func (r specReport) result() specResult {
	out := specResult{Spec: r.name(), State: r.State, Seconds: r.RunTime.Round(time.Second).Seconds(), Reason: r.Failure.Message}
	switch {
	case r.State == "skipped" && (r.Failure.Message == "" || strings.Contains(r.Failure.Message, afterFailure)):
		out.State = notRun
	case r.State == "passed", r.State == "skipped", r.State == "pending":
	default: // panicked, timed out, interrupted, aborted
		out.State, out.Reason = "failed", r.State+": "+r.Failure.Message
		out.log = r.Output + "\n" + out.Reason + "\n"
	}
	if len(out.Reason) > maxReason {
		out.Reason = out.Reason[:maxReason] + "…"
	}
	return out
}

// afterFailure is in what ginkgo says of specs that were not run since another, on which
// they stand, has failed. One that was not chosen has no word.
const afterFailure = "earlier spec in an ordered container failed"

// maxReason bounds what is kept of a failure: it may hold the status of a whole pod.
const maxReason = 400

func (v vm) specReports(ctx context.Context) ([]specReport, error) {
	var text strings.Builder
	if err := v.stream(ctx, "cat "+nodeE2EReports+"/report.json", nil, &text, io.Discard); err != nil {
		return nil, fmt.Errorf("read the report: %w", err)
	}
	var suites []struct{ SpecReports []specReport }
	if err := json.Unmarshal([]byte(text.String()), &suites); err != nil {
		return nil, fmt.Errorf("read the report: %w", err)
	}
	var all []specReport
	for _, s := range suites {
		all = append(all, s.SpecReports...)
	}
	return all, nil
}
