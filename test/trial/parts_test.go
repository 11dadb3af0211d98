package main

import (
	"slices"
	"testing"
)

func TestPartsOfSuites(t *testing.T) {
	t.Parallel()
	list := "machine: Linux\nTestA\nTestB\nTestC\nTestD\nok\n"
	var all []string
	for part := 1; part <= 3; part++ {
		all = append(all, partOfTests(list, part, 3)...)
	}
	if want := []string{"TestA", "TestD", "TestB", "TestC"}; !slices.Equal(all, want) {
		t.Errorf("the parts have %v, want %v", all, want)
	}
	for name, want := range map[string]string{"node": "node", "node-3": "node", "e2e-1": "e2e", "node-4": "node-4", "power": "power", "power-1": "power-1"} {
		if got, _, _ := wholeOf(name); got != want {
			t.Errorf("%s is of %s, want %s", name, got, want)
		}
	}
	for suite := range partsOfSuites() {
		for i, name := range partsOf(suite) {
			if whole, part, of := wholeOf(name); whole != suite || part != i+1 || of != partsOfSuites()[suite] {
				t.Errorf("%s is part %d of %d of %s", name, part, of, whole)
			}
		}
	}
}
