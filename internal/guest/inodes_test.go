package guest

import (
	"errors"
	"slices"
	"testing"
)

// TestForgetting: files are forgotten when there are many, with what is cached of them only
// if need be, and not again and again for those that are in use.
func TestForgetting(t *testing.T) {
	t.Parallel()
	f := forgetting{most: 100}
	var n, cached, used uint64
	var dropped []string
	count := func() (uint64, error) { return n + cached + used, nil }
	drop := func(what string) error {
		dropped = append(dropped, what)
		if n = 0; what == all {
			cached = 0
		}
		return nil
	}
	for i, c := range []struct {
		n, cached, used uint64
		want            []string
	}{
		{100, 0, 0, nil},
		{101, 0, 0, []string{namesOnly}},
		{50, 90, 0, []string{namesOnly}},
		{1, 101, 0, []string{namesOnly, all}},
		{0, 0, 150, []string{namesOnly, all}}, // open, all of them
		{0, 100, 150, nil},
		{1, 100, 150, []string{namesOnly, all}},
		{0, 0, 10, nil}, // closed
		{91, 0, 20, []string{namesOnly}},
	} {
		n, cached, used, dropped = c.n, c.cached, c.used, nil
		if err := f.look(count, drop); err != nil || !slices.Equal(dropped, c.want) {
			t.Errorf("look %d: dropped %q, want %q (%v)", i, dropped, c.want, err)
		}
	}
	bad := errors.New("no such file")
	if err := f.look(func() (uint64, error) { return 0, bad }, drop); !errors.Is(err, bad) {
		t.Errorf("got %v, want %v", err, bad)
	}
	if n, err := inodes(); n == 0 || err != nil {
		t.Errorf("the kernel remembers %d files, %v", n, err)
	}
}
