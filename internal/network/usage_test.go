package network

import (
	"fmt"
	"slices"
	"testing"
)

const netDev = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
  eth0: 18446744073709551615 12 3 4 0 0 0 0 5000 60 7 8 0 0 0 0
net1:2: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16
`

func TestParseNetDev(t *testing.T) {
	t.Parallel()
	got, err := parseNetDev(netDev)
	want := []InterfaceUsage{
		{"eth0", Traffic{1<<64 - 1, 12, 3, 4}, Traffic{5000, 60, 7, 8}},
		{"net1:2", Traffic{1, 2, 3, 4}, Traffic{9, 10, 11, 12}},
		{"lo", Traffic{100, 1, 0, 0}, Traffic{100, 1, 0, 0}},
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, bad := range []string{"eth0: 1 2 3\n", "eth0: a 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n", "eth0: 1 2 3 4 5 6 7 8 9 10 11 -1 13 14 15 16\n"} {
		if got, err := parseNetDev(bad); err == nil {
			t.Errorf("%q gave %+v", bad, got)
		}
	}
}

// An app may have any number of interfaces, and their names are any bytes: neither may
// keep the node's statistics from being told.
func TestParseNetDevOfHostileApp(t *testing.T) {
	t.Parallel()
	const counters = ": 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n"
	text := "eth0" + counters + "\xff\xfe" + counters
	for i := range 1000 {
		text += fmt.Sprint("d", i) + counters
	}
	got, err := parseNetDev(text)
	if err != nil || len(got) != maxInterfaces || got[0].Name != "eth0" || got[1].Name != `"\xff\xfe"` {
		t.Errorf("%d interfaces, %v: %+v", len(got), err, got[:min(2, len(got))])
	}
}

// TestUsageOfHost: the kernel's own words are understood.
func TestUsageOfHost(t *testing.T) {
	t.Parallel()
	got, err := Usage("")
	if err != nil || len(got) == 0 || got[len(got)-1].Name != Loopback || slices.ContainsFunc(got, func(u InterfaceUsage) bool { return u.Name == "" }) {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := Usage(t.TempDir()); err == nil {
		t.Error("a directory is a network namespace")
	}
}
