package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestCyclesHaveHalves: a half without a cycle would never run.
func TestCyclesHaveHalves(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../node/*_test.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("no tests: %v", err)
	}
	found := map[string]bool{}
	half := regexp.MustCompile(`(?m)^func (TestPower\w+)\(`)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range half.FindAllStringSubmatch(string(text), -1) {
			found[m[1]] = true
		}
	}
	for _, c := range cycles() {
		for _, name := range []string{c.before(), c.after()} {
			if !found[name] {
				t.Errorf("cycle %s: there is no %s", c.name, name)
			}
			if !regexp.MustCompile(halves).MatchString(name) {
				t.Errorf("%s is not known as a half, so it runs without its cycle", name)
			}
			delete(found, name)
		}
		delete(found, c.cost())
	}
	for name := range found {
		t.Errorf("%s belongs to no cycle", name)
	}
}

func TestCycleChosen(t *testing.T) {
	t.Parallel()
	c := cycle{name: "Off"}
	for pattern, want := range map[string]bool{"TestPower": true, "TestPowerOffAfter": true, "TestPowerCut": false} {
		if got := c.chosen(regexp.MustCompile(pattern), nil); got != want {
			t.Errorf("chosen by %q: %t", pattern, got)
		}
	}
	if !c.chosen(nil, []unproved{{suite: "power", test: "TestPowerCutAfter"}, {suite: "node", test: "TestPowerOffAfter"}}) {
		t.Error("left out because of others")
	}
	if c.chosen(nil, []unproved{{suite: "power", test: "TestPowerOffAfter"}}) {
		t.Error("half of it is unproved and it is run")
	}
	if !c.chosen(nil, []unproved{{suite: "power", test: "TestPowerOffCost"}}) {
		t.Error("left out because of its cost, which is left out alone")
	}
}

func TestParseCPU(t *testing.T) {
	t.Parallel()
	stat := "42 (a ) b) S 1 42 42 0 -1 4194560 9 0 0 0 123 77 5 6 20 0 4 0 100"
	if got, err := parseCPU(stat); err != nil || got != 2*time.Second {
		t.Errorf("%v, %v; want 2 s", got, err)
	}
	for _, bad := range []string{"", "42 (x) S 1", strings.Replace(stat, "123", "x", 1)} {
		if _, err := parseCPU(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	if _, err := processCPU(os.Getpid()); err != nil {
		t.Error(err)
	}
}
