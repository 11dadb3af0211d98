package network

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gantry/internal/network/networktest"
	"gantry/internal/pod"
)

func (b *bed) lease(network, addr string, id pod.ID) {
	b.t.Helper()
	if err := os.MkdirAll(filepath.Join(b.leases, network), 0o755); err != nil {
		b.t.Fatal(err)
	}
	b.write(filepath.Join(b.leases, network, addr), string(id)+"\r\neth0")
}

// ids lists the pods that calls were about, without doubles.
func (b *bed) ids(command string) []string {
	var ids []string
	for _, c := range b.log() {
		if c.Command == command && (len(ids) == 0 || ids[len(ids)-1] != c.Plugin+" "+c.ID) {
			ids = append(ids, c.Plugin+" "+c.ID)
		}
	}
	return ids
}

func TestGC(t *testing.T) {
	b := newBed(t, time.Minute)
	b.confFile("10-net.conflist", `{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "a", "ipam": {"type": "host-local"}}]}`)
	const kept, young, journal, leased, elsewhere pod.ID = "keptkeptkeptkeptkeptkept", "youngyoungyoungyoungyoun",
		"journaljournaljournaljou", "leasedleasedleasedleased", "elsewhereelsewhereelsewh"
	for _, id := range []pod.ID{kept, journal} {
		a := b.attachment()
		a.Pod = id
		if _, err := b.Add(t.Context(), a); err != nil {
			t.Fatal(err)
		}
	}
	b.lease("net", "10.88.0.2", kept)
	b.lease("net", "10.88.0.3", leased)
	b.lease("net", "10.88.0.4", young)
	b.lease("net", "10.88.0.9", "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef")
	b.lease("old", "fd00::3", elsewhere)
	b.write(filepath.Join(b.leases, "net", "last_reserved_ip.0"), "10.88.0.4")
	b.write(filepath.Join(b.leases, "net", "lock"), "")
	torn, fresh := filepath.Join(b.recordDir(), ".new-torn"), filepath.Join(b.recordDir(), ".new-fresh")
	b.write(torn, "{")
	b.write(fresh, "{")
	if err := os.Chtimes(torn, time.Time{}, time.Now().Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	os.Remove(b.calls)
	b.cfg.Exists = func(id pod.ID) bool { return id == young } // made after keep was listed
	if err := b.GC(t.Context(), []Attachment{{Pod: kept}}); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{torn: false, fresh: true} {
		if _, err := os.Lstat(path); (err == nil) != want {
			t.Errorf("%s is there: %v, want %v", path, err == nil, want)
		}
	}
	// The fake releases nothing, so host-local itself is asked too.
	want := []string{"a " + string(journal), "a " + string(leased), "host-local " + string(leased), "a " + string(elsewhere), "host-local " + string(elsewhere)}
	if got := b.ids("DEL"); !cmp.Equal(got, want) {
		t.Error(cmp.Diff(want, got))
	}
	for _, c := range b.log() {
		if c.Plugin == "host-local" && c.ID == string(elsewhere) {
			var in struct {
				Name string
				IPAM struct {
					DataDir string
					Ranges  [][]ipRange
				}
			}
			mustJSON(t, string(c.Stdin), &in)
			if in.Name != "old" || in.IPAM.DataDir != b.leases || in.IPAM.Ranges[0][0].Subnet != "fd00::/64" {
				t.Errorf("%s", c.Stdin)
			}
		}
	}
}

// TestGCGoesOn: one attachment that cannot be released does not hold the others.
func TestGCGoesOn(t *testing.T) {
	b := newBed(t, time.Minute)
	b.confFile("10-net.conflist", twoPlugins)
	for _, id := range []pod.ID{"aaaaaaaaaaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbbbbbbbbbb"} {
		a := b.attachment()
		a.Pod = id
		if _, err := b.Add(t.Context(), a); err != nil {
			t.Fatal(err)
		}
	}
	os.Remove(b.calls)
	b.on("b", "DEL", networktest.Step{Times: 1, Code: 7, Msg: "stuck"})
	wants(t, b.GC(t.Context(), nil), nil, "plugin b: stuck")
	if ids, _ := b.records(); len(ids) != 1 {
		t.Errorf("left: %v", ids)
	}
	if err := b.GC(t.Context(), nil); err != nil {
		t.Error(err)
	}
	if ids, _ := b.records(); len(ids) != 0 {
		t.Errorf("left: %v", ids)
	}
}

// TestGCWithAnUnreadableLease: what is not named as valid the plugins would take away.
func TestGCWithAnUnreadableLease(t *testing.T) {
	b := newBed(t, time.Minute)
	b.confFile("10-net.conflist", strings.Replace(twoPlugins, "1.0.0", "1.1.0", 1))
	for _, p := range []string{"a", "b"} {
		b.script(p, networktest.Script{Versions: []string{"1.1.0"}})
	}
	b.lease("net", "10.88.0.9", "0123456789abcdef")
	b.lease("net", "10.88.0.10", pod.ID(strings.Repeat("0", maxConfBytes)))
	wants(t, b.GC(t.Context(), nil), nil, "10.88.0.10")
	if log := b.sequence(); strings.Contains(log, "GC") {
		t.Errorf("calls: %s", log)
	}
}

// TestGCByPlugins: they are told of every attachment that is valid, those of
// others too.
func TestGCByPlugins(t *testing.T) {
	b := newBed(t, time.Minute)
	b.confFile("10-net.conflist", strings.Replace(twoPlugins, "1.0.0", "1.1.0", 1))
	for _, p := range []string{"a", "b"} {
		b.script(p, networktest.Script{Versions: []string{"1.1.0"}})
	}
	a := b.attachment()
	if _, err := b.Add(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	b.lease("net", "10.88.0.9", "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef")
	b.lease("other", "10.88.0.9", "ffff")
	if err := b.GC(t.Context(), []Attachment{a}); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, c := range b.log() {
		if c.Command != "GC" {
			continue
		}
		n++
		var in map[string]json.RawMessage
		mustJSON(t, string(c.Stdin), &in)
		want := `[{"containerID":"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef","ifname":"eth0"},{"containerID":"` + string(testPod) + `","ifname":"eth0"}]`
		if got := string(in["cni.dev/valid-attachments"]); got != want {
			t.Errorf("%s: %s, want %s", c.Plugin, got, want)
		}
	}
	if n != 2 {
		t.Errorf("calls: %s", b.sequence())
	}
}
