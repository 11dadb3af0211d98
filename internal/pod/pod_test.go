package pod

import (
	"regexp"
	"testing"
)

func TestLevel(t *testing.T) {
	t.Parallel()
	shape := regexp.MustCompile(`^s0:c(\d{1,4}),c(\d{1,4})$`)
	seen := map[string]bool{}
	for range 2000 {
		id := NewID()
		l := Level(id)
		if m := shape.FindStringSubmatch(l); m == nil || m[1] == m[2] || Level(id) != l {
			t.Fatalf("level %q of %s", l, id)
		}
		seen[l] = true
	}
	if len(seen) < 1980 {
		t.Errorf("%d levels for 2000 pods", len(seen))
	}
}
