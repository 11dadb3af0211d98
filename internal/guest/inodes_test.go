package guest

import (
	"errors"
	"slices"
	"testing"
	"time"
)

// TestForgetting: files are forgotten when there are many, with what is cached of them only
// if need be and not often, and not again and again for those that are in use.
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
	now := time.Now()
	for i, c := range []struct {
		later           time.Duration
		n, cached, used uint64
		want            []string
	}{
		{0, 100, 0, 0, nil},
		{0, 101, 0, 0, []string{namesOnly}},
		{0, 50, 90, 0, []string{namesOnly}},
		{0, 1, 101, 0, []string{namesOnly, all}},
		{time.Second, 1, 101, 0, []string{namesOnly}}, // read again at once
		{time.Second, 1, 101, 0, []string{namesOnly}},
		{time.Minute, 0, 0, 150, []string{namesOnly, all}}, // open, all of them
		{time.Minute, 0, 100, 150, nil},
		{time.Minute, 1, 100, 150, []string{namesOnly, all}},
		{time.Minute, 0, 0, 10, nil}, // closed
		{time.Minute, 91, 0, 20, []string{namesOnly}},
	} {
		now = now.Add(c.later)
		n, cached, used, dropped = c.n, c.cached, c.used, nil
		if err := f.look(now, count, drop); err != nil || !slices.Equal(dropped, c.want) {
			t.Errorf("look %d: dropped %q, want %q (%v)", i, dropped, c.want, err)
		}
	}
	bad := errors.New("no such file")
	if err := f.look(now, func() (uint64, error) { return 0, bad }, drop); !errors.Is(err, bad) {
		t.Errorf("got %v, want %v", err, bad)
	}
}

func TestSharedIn(t *testing.T) {
	t.Parallel()
	const head = "slabinfo - version: 2.1\n# name            <active_objs> <num_objs> <objsize>\nfuse_request         20     20    152   26    1 : tunables\n"
	for slabs, want := range map[string]uint64{
		head + "fuse_inode         61234  61248    832   19    4 : tunables    0    0    0\next4_inode_cache 1 2 3\n": 61234,
		head: 0, "": 0,
	} {
		if n, err := sharedIn([]byte(slabs)); n != want || err != nil {
			t.Errorf("%q: %d, %v, want %d", slabs, n, err, want)
		}
	}
	if _, err := sharedIn([]byte("fuse_inode what\n")); err == nil {
		t.Error("what is no number is taken")
	}
}
