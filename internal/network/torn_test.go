package network

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestGCTorn: leases that a power loss left empty are of no container, and only gc
// can tell. Those of other networks, of this boot or with a content stay.
func TestGCTorn(t *testing.T) {
	b := newBed(t, time.Minute)
	b.confFile("10-net.conflist", `{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "a", "ipam": {"type": "host-local"}}]}`)
	booted, err := bootTime()
	if err != nil || booted.After(time.Now()) {
		t.Fatalf("boot time %v, %v", booted, err)
	}
	old := booted.Add(-time.Hour)
	for _, f := range []struct {
		path, text string
		at         time.Time
	}{
		{"net/10.88.0.2", "", old},
		{"net/10.88.0.3", "\x00\x00\x00", old},
		{"net/fd00::4", "", old},
		{"net/10.88.0.5", "", time.Now()},
		{"net/10.88.0.6", "0123456789abcdef\r\neth0", old},
		{"net/last_reserved_ip.0", "", old},
		{"net/lock", "", old},
		{"other/10.88.0.2", "", old},
	} {
		path := filepath.Join(b.leases, f.path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		b.write(path, f.text)
		if err := os.Chtimes(path, f.at, f.at); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.GC(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(b.leases, "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range left {
		left[i] = left[i][len(b.leases)+1:]
	}
	want := []string{"net/10.88.0.5", "net/10.88.0.6", "net/last_reserved_ip.0", "net/lock", "other/10.88.0.2"}
	if diff := cmp.Diff(want, left); diff != "" {
		t.Error(diff)
	}
}
