package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestFocusOn(t *testing.T) {
	t.Parallel()
	specs := []string{"[sig-node] A should (root,0644) [NodeConformance]", "[sig-node] B"}
	re := regexp.MustCompile(focusOn(specs))
	for text, want := range map[string]bool{
		"E2eNode Suite [sig-node] A should (root,0644) [NodeConformance]": true,
		"E2eNode Suite [sig-node] B":                                      true,
		"E2eNode Suite [sig-node] B more":                                 false,
		"E2eNode Suite [sig-node] A should":                               false,
	} {
		if re.MatchString(text) != want {
			t.Errorf("%q: chosen is %v", text, !want)
		}
	}
}

// TestBatches: specs that stand on each other are run together, also where only one of
// them is to be done.
func TestBatches(t *testing.T) {
	t.Parallel()
	list := []listedSpec{{"a", ""}, {"b1", "b"}, {"b2", "b"}, {"b3", "b"}, {"c", ""}, {"d", ""}, {"e1", "e"}, {"e2", "e"}}
	for name, c := range map[string]struct {
		todo []string
		want string
	}{
		"all":         {names(list), "a b1 b2 b3|c d e1 e2"},
		"of a group":  {[]string{"b2", "d"}, "b1 b2 b3 d"},
		"in two":      {[]string{"a", "c", "d", "e2", "b3"}, "a b1 b2 b3|c d e1 e2"},
		"none":        {nil, ""},
		"not a group": {[]string{"c"}, "c"},
	} {
		var got []string
		for _, b := range batches(list, c.todo, 4) {
			got = append(got, strings.Join(b, " "))
		}
		if strings.Join(got, "|") != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	if got := batches([]listedSpec{{"x1", "x"}, {"x2", "x"}}, []string{"x1"}, 1); len(got) != 1 || len(got[0]) != 2 {
		t.Errorf("a group larger than a batch: %q", got)
	}
}

func TestSpecResult(t *testing.T) {
	t.Parallel()
	var reports []specReport
	err := json.Unmarshal([]byte(`[
		{"ContainerHierarchyTexts":["[sig-node] A","when b"],"LeafNodeType":"It","LeafNodeText":"works","State":"passed","RunTime":2400000000},
		{"LeafNodeType":"It","LeafNodeText":"times out","State":"timedout","Failure":{"Message":"late"},"CapturedGinkgoWriterOutput":"words"},
		{"LeafNodeType":"It","LeafNodeText":"lacks","State":"skipped","Failure":{"Message":"no swap"}},
		{"LeafNodeType":"It","LeafNodeText":"not chosen","State":"skipped"}]`), &reports)
	if err != nil {
		t.Fatal(err)
	}
	var got specResults
	for _, r := range reports {
		got = append(got, r.result())
	}
	want := specResults{
		{Spec: "[sig-node] A when b works", State: "passed", Seconds: 2},
		{Spec: "times out", State: "failed", Reason: "timedout: late", log: "words\ntimedout: late\n"},
		{Spec: "lacks", State: "skipped", Reason: "no swap"},
		{Spec: "not chosen", State: notRun},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %+v", got)
	}
	if n := got.count(); n != (tally{passed: 1, failed: 1, skipped: 2}) {
		t.Errorf("counted %s", n)
	}
}

// A run that was cut off goes on with what has no good result.
func TestResultsAreRemembered(t *testing.T) {
	t.Parallel()
	tr := &trial{cache: cache(t.TempDir())}
	v := vm{"a", filepath.Join(t.TempDir(), "vm")}
	if _, err := tr.openResults(v); err == nil {
		t.Error("a VM without the suite has results")
	}
	if err := os.MkdirAll(v.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(v.path(installedFile), []byte("key commit\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := tr.openResults(v)
	if err != nil {
		t.Fatal(err)
	}
	specs := []string{"a", "b", "c", "d"}
	if err := s.add([]specResult{{Spec: "a", State: "passed"}, {Spec: "b", State: "failed"}, {Spec: "c", State: "skipped", Reason: "no swap"}}); err != nil {
		t.Fatal(err)
	}
	if s, err = tr.openResults(v); err != nil {
		t.Fatal(err)
	}
	if got := s.todo(specs, false); !slices.Equal(got, []string{"b", "d"}) {
		t.Errorf("to do are %q", got)
	}
	if got := s.todo(specs, true); !slices.Equal(got, specs) {
		t.Errorf("to do again are %q", got)
	}
	if of := s.of(specs); of[0].Commit != "commit" || of[3].State != notRun {
		t.Errorf("results are %+v", of)
	}
}

func TestConformancePage(t *testing.T) {
	t.Parallel()
	page := specResults{
		{Spec: "[sig-node] Pods work [NodeConformance]", State: "passed"},
		{Spec: "[sig-node] Pods fail [NodeConformance]", State: "failed", Reason: "a|b\nc"},
		{Spec: "[sig-node] Swap [Serial] [NodeConformance]", State: notRun},
	}.page()
	for _, want := range []string{"| default | 1 | 1 | 0 | 0 |", "| Serial | 0 | 0 | 0 | 1 |", `| [sig-node] Pods fail [NodeConformance] | failed | a\|b c |`, "| Pods work | 1 |"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q:\n%s", want, page)
		}
	}
}

// TestFailuresOfTheMachine: what fails with the engine to compare with too is told with its
// log, and only that.
func TestFailuresOfTheMachine(t *testing.T) {
	t.Parallel()
	repo := t.TempDir()
	rs := specResults{{Spec: "ours", State: "failed", Reason: "bug"}, {Spec: "passes", State: "passed"}, {Spec: "theirs", State: "failed", Reason: "no image"}}
	if err := rs.excuse(repo, []specResult{
		{Spec: "ours", State: "passed"},
		{Spec: "passes", State: "failed", log: "x"},
		{Spec: "theirs", State: "failed", Reason: "no image either", Day: "today", log: "the words"},
		{Spec: "unknown", State: "failed", log: "x"},
	}); err != nil {
		t.Fatal(err)
	}
	if rs[0].Containerd != nil || rs[1].Containerd != nil || rs[2].Containerd == nil {
		t.Fatalf("excused are %+v", rs)
	}
	if text, err := os.ReadFile(filepath.Join(repo, rs[2].Containerd.Log)); err != nil || !strings.Contains(string(text), "theirs\n\nthe words") {
		t.Errorf("the log is %q, %v", text, err)
	}
	if files, err := os.ReadDir(filepath.Join(repo, peerLogs)); err != nil || len(files) != 1 {
		t.Errorf("the logs are %v, %v", files, err)
	}
	if why := rs[2].why(); !strings.Contains(why, "no image. **The machine's**: with containerd (today) it fails too") {
		t.Errorf("it says %q", why)
	}
}

// TestConformancePageIsOfTheResults: nobody edits the page by hand.
func TestConformancePageIsOfTheResults(t *testing.T) {
	t.Parallel()
	all, err := readResults(filepath.Join("../..", conformanceResults))
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join("../..", conformancePage))
	if err != nil {
		t.Fatal(err)
	}
	if string(page) != all.page() {
		t.Errorf("%s is not what %s says; make test-node-e2e RECORD=1 writes both", conformancePage, conformanceResults)
	}
}

// TestNameOfSpec: ginkgo leaves out a container without a text, and so must the focus.
func TestNameOfSpec(t *testing.T) {
	t.Parallel()
	r := specReport{Containers: []string{"[sig-node] Pod", "", "when"}, Text: "should"}
	if got := r.name(); got != "[sig-node] Pod when should" || len(r.Containers) != 3 {
		t.Errorf("got %q of %q", got, r.Containers)
	}
}
