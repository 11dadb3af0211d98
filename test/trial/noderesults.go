package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Where results of the node suite are kept in the repository: for programs, and for
// people.
const (
	conformanceResults = "test/nodesuite/results.json"
	conformancePage    = "docs/conformance.md"
)

// specResult is how one spec ended.
type specResult struct {
	Spec    string  `json:"spec"`
	State   string  `json:"state"` // passed, failed, skipped, pending, or notRun
	Seconds float64 `json:"seconds"`
	Reason  string  `json:"reason,omitempty"`
	Commit  string  `json:"commit,omitempty"`
	Day     string  `json:"day,omitempty"`
	// Containerd is the same spec's failure with the engine to compare with: then it is
	// the machine's.
	Containerd *peerFailure `json:"containerd,omitempty"`
	// Note is a person's, and stays until the spec passes.
	Note string `json:"note,omitempty"`
	log  string // of a failure
}

type peerFailure struct {
	Reason string `json:"reason"`
	Log    string `json:"log"` // a file of the repository
	Commit string `json:"commit"`
	Day    string `json:"day"`
}

const notRun = "not run"

type specResults []specResult

func (rs specResults) count() (n tally) {
	for _, r := range rs {
		switch r.State {
		case "passed":
			n.passed++
		case "failed":
			n.failed++
		default:
			n.skipped++
		}
	}
	return n
}

// resultStore remembers results in the cache, so that a run that was cut off goes on
// where it was. The key is what a spec can see: sources, machine and engine.
type resultStore struct {
	path   string
	commit string
	known  map[string]specResult
}

// noteInstalled remembers what a VM has: results are that one's, whatever is edited
// meanwhile.
func (t *trial) noteInstalled(ctx context.Context, v vm, how nodeE2E) error {
	sees, err := t.seen(ctx)
	if err != nil {
		return err
	}
	return os.WriteFile(v.path(installedFile), []byte(sees.key(how.engine, nil)+" "+commitHere(ctx)+"\n"), 0o600)
}

const installedFile = "node-e2e.installed"

func (t *trial) openResults(v vm) (*resultStore, error) {
	key, commit, ok := strings.Cut(v.read(installedFile), " ")
	if !ok {
		return nil, fmt.Errorf("VM %s has not what the node suite needs; leave out --no-install", v.name)
	}
	s := &resultStore{path: t.cache.path("node-e2e", key+".json"), commit: commit, known: map[string]specResult{}}
	data, err := os.ReadFile(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	var before specResults
	if err == nil {
		err = json.Unmarshal(data, &before)
	}
	for _, r := range before {
		s.known[r.Spec] = r
	}
	return s, err
}

// todo are the specs that have no good result.
func (s *resultStore) todo(specs []string, again bool) (out []string) {
	for _, spec := range specs {
		if r, ok := s.known[spec]; again || !ok || r.State == "failed" || r.State == notRun {
			out = append(out, spec)
		}
	}
	return out
}

func (s *resultStore) add(results []specResult) error {
	for _, r := range results {
		r.Commit, r.Day = s.commit, time.Now().UTC().Format(time.DateOnly)
		s.known[r.Spec] = r
	}
	all := make(specResults, 0, len(s.known))
	for _, r := range s.known {
		all = append(all, r)
	}
	if err := os.MkdirAll(filepath.Dir(s.path), 0o755); err != nil {
		return err
	}
	return all.write(s.path)
}

// of returns the results of these specs; one without a result was not run.
func (s *resultStore) of(specs []string) (out specResults) {
	for _, spec := range specs {
		r, ok := s.known[spec]
		if !ok {
			r = specResult{Spec: spec, State: notRun}
		}
		out = append(out, r)
	}
	return out
}

func (rs specResults) write(path string) error {
	slices.SortFunc(rs, func(a, b specResult) int { return strings.Compare(a.Spec, b.Spec) })
	var data bytes.Buffer
	enc := json.NewEncoder(&data)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "\t")
	if err := enc.Encode(rs); err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", data.Bytes(), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func readResults(path string) (all specResults, err error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &all)
	}
	if err != nil {
		return nil, fmt.Errorf("read the recorded results: %w", err)
	}
	return all, nil
}

// recorded are the results in the repository, and where that is.
func recorded() (repo string, all specResults, err error) {
	if repo, err = repository(); err != nil {
		return "", nil, err
	}
	all, err = readResults(filepath.Join(repo, conformanceResults))
	return repo, all, err
}

// missingSpecs are those without a recorded pass.
func missingSpecs(specs []string) (out []string, err error) {
	_, all, err := recorded()
	if err != nil {
		return nil, err
	}
	passed := map[string]bool{}
	for _, r := range all {
		passed[r.Spec] = r.State == "passed"
	}
	return slices.DeleteFunc(specs, func(s string) bool { return passed[s] }), nil
}

// recordResults puts results into the repository, in the place of older ones.
func recordResults(results specResults) error {
	repo, all, err := recorded()
	if err != nil {
		return err
	}
	known := map[string]specResult{}
	for _, r := range slices.Concat(all, results) {
		before, ok := known[r.Spec]
		if ok && r.State == notRun { // what was not run now keeps what is known of it
			continue
		}
		if r.State == "failed" && r.Containerd == nil {
			r.Containerd = before.Containerd
		}
		if r.State != "passed" && r.Note == "" {
			r.Note = before.Note
		}
		known[r.Spec] = r
	}
	all = slices.Collect(maps.Values(known))
	return all.publish(repo)
}

func (rs specResults) publish(repo string) error {
	if err := rs.write(filepath.Join(repo, conformanceResults)); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(repo, conformancePage), []byte(rs.page()), 0o644)
}

// peerLogs is where the logs of containerd's failures are.
const peerLogs = "test/nodesuite/containerd"

// maxPeerLog bounds one: the end tells why.
const maxPeerLog = 20_000

// recordPeer notes which of Gantry's recorded failures containerd has too.
func recordPeer(results []specResult) error {
	repo, all, err := recorded()
	if err != nil {
		return err
	}
	if err := all.excuse(repo, results); err != nil {
		return err
	}
	return all.publish(repo)
}

// excuse notes which failures others have too, and keeps their logs.
func (rs specResults) excuse(repo string, others []specResult) error {
	for _, r := range others {
		i := slices.IndexFunc(rs, func(have specResult) bool { return have.Spec == r.Spec && have.State == "failed" })
		if i < 0 || r.State != "failed" {
			continue
		}
		file := filepath.Join(peerLogs, fmt.Sprintf("%.6x.log", sha256.Sum256([]byte(r.Spec))))
		rs[i].Containerd = &peerFailure{Reason: r.Reason, Log: file, Commit: r.Commit, Day: r.Day}
		if err := os.MkdirAll(filepath.Join(repo, peerLogs), 0o755); err != nil {
			return err
		}
		text := r.Spec + "\n\n" + r.log[max(0, len(r.log)-maxPeerLog):]
		if err := os.WriteFile(filepath.Join(repo, file), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// groupOf is the outermost part of a spec's name.
func groupOf(spec string) string {
	rest := spec
	if _, after, ok := strings.Cut(spec, "] "); ok && strings.HasPrefix(spec, "[sig-") {
		rest = after
	}
	words := strings.Fields(rest)
	return strings.Join(words[:min(2, len(words))], " ")
}

// page tells people of the results.
func (rs specResults) page() string {
	var b strings.Builder
	states := map[string]int{}
	for _, r := range rs {
		states[r.State]++
	}
	fmt.Fprintf(&b, `# Kubernetes' node suite

test/e2e_node of k8s.io/kubernetes v1.37.2, run against Gantry in the trial VM, with the stock kubelet and `+"`PodAndContainerStatsFromCRI=true`"+`.
This page is written by the program that runs it, from [%s](../%s); what was run at which commit stands there.

`+"```"+`
make test-node-e2e                          # the default lane: [NodeConformance], but [Serial], [Slow] and [Flaky]
make test-node-e2e FOCUS='AppArmor'         # some specs; SKIP='…' leaves some out, SKIP= none
make test-node-e2e RECORD=1                 # and put the results here
make test-node-e2e RECORD=1 MISSING=1 WITHIN=2h FOCUS='\[Serial\].*NodeConformance|NodeConformance.*\[Serial\]' SKIP='\[Flaky\]' PROCS=1
make test-node-e2e RECORD=1 MISSING=1 WITHIN=2h FOCUS='\[Slow\].*NodeConformance|NodeConformance.*\[Slow\]' SKIP='\[Flaky\]|\[Serial\]'
make test-node-e2e RECORD=1 PROCS=1 FOCUS='…' SKIP=none ENGINE=containerd      # whether a failure is the machine's
make test-node-e2e AGAIN=1                                                     # also what passed with the same sources
`+"```"+`

A run that was cut off goes on where it was. %d specs passed, %d failed, %d were skipped, %d were not run.

| lane | passed | failed | skipped | not run |
|---|---|---|---|---|
`, conformanceResults, conformanceResults, states["passed"], states["failed"], states["skipped"]+states["pending"], states[notRun])
	for _, l := range lanesOfSuite() {
		counts := map[string]int{}
		for _, r := range rs {
			if laneOf(r.Spec) == l {
				counts[r.State]++
			}
		}
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %d |\n", l, counts["passed"], counts["failed"], counts["skipped"]+counts["pending"], counts[notRun])
	}
	b.WriteString("\nWhere a commit has \"-dirty\" there were changes that are in no commit.\n\n| commit | passed |\n|---|---|\n")
	commits := map[string]int{}
	for _, r := range rs {
		if r.State == "passed" {
			commits[r.Day+" "+r.Commit]++
		}
	}
	for _, c := range slices.Sorted(maps.Keys(commits)) {
		fmt.Fprintf(&b, "| %s | %d |\n", cell(c), commits[c])
	}
	b.WriteString("\n## Not passed\n\n| spec | | reason |\n|---|---|---|\n")
	for _, r := range rs {
		if r.State != "passed" {
			fmt.Fprintf(&b, "| %s | %s | %s |\n", cell(r.Spec), r.State, cell(r.why()))
		}
	}
	b.WriteString("\n## Passed\n\n| group | specs |\n|---|---|\n")
	groups := map[string]int{}
	for _, r := range rs {
		if r.State == "passed" {
			groups[groupOf(r.Spec)]++
		}
	}
	names := make([]string, 0, len(groups))
	for name := range groups {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintf(&b, "| %s | %d |\n", cell(name), groups[name])
	}
	return b.String()
}

// why a spec has not passed.
func (r specResult) why() string {
	if r.Reason == "" && r.State == notRun {
		return "its group, lane " + laneOf(r.Spec) + ", was not reached yet"
	}
	why := r.Reason
	if r.Note != "" {
		why = strings.TrimSuffix(why, ".") + ". " + r.Note + "."
	}
	if c := r.Containerd; c != nil {
		why = fmt.Sprintf("%s. **The machine's**: with containerd (%s) it fails too, [log](../%s): %s", strings.TrimSuffix(why, "."), c.Day, c.Log, c.Reason)
	}
	return why
}

func lanesOfSuite() []string { return []string{"default", "Serial", "Slow", "Flaky", "other"} }

func laneOf(spec string) string {
	for _, l := range []string{"Flaky", "Serial", "Slow"} {
		if strings.Contains(spec, "["+l+"]") {
			return l
		}
	}
	if strings.Contains(spec, "[NodeConformance]") {
		return "default"
	}
	return "other"
}

// cell makes a text fit into a table.
func cell(s string) string {
	return strings.NewReplacer("|", "\\|", "\n", " ", "<", "&lt;").Replace(strings.Join(strings.Fields(s), " "))
}
