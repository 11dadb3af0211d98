package machine

import (
	"os"
	"path/filepath"
	"testing"
)

// TestShareFollowsNoLink: the machine can write to the pod's share, and may have put a link
// where something is to be made, mounted or removed.
func TestShareFollowsNoLink(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	share, host := filepath.Join(dir, "share"), filepath.Join(dir, "host")
	for _, d := range []string{share, host, filepath.Join(dir, "source")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(host, "0"), "the host's")
	for link, to := range map[string]string{"away": host, "near": "../host", "part/0": host} {
		path := filepath.Join(share, link)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(to, path); err != nil {
			t.Fatal(err)
		}
	}
	for _, app := range []string{"away", "near", "part"} {
		s := Share{Source: filepath.Join(dir, "source"), Target: filepath.Join(share, app, "0")}
		if err := s.mount(); err == nil {
			t.Errorf("%s: mounted", app)
		}
		if err := unshare([]Share{s}); (err == nil) != (app == "part") { // there the link itself goes
			t.Errorf("%s: taken away with %v", app, err)
		}
	}
	entries, err := os.ReadDir(host)
	if err != nil || len(entries) != 1 {
		t.Errorf("the host's directory has %v, %v", entries, err)
	}
	if data, err := os.ReadFile(filepath.Join(host, "0")); err != nil || string(data) != "the host's" {
		t.Errorf("%q, %v", data, err)
	}
	if err := unshare([]Share{{Target: filepath.Join(share, "none", "0")}}); err != nil {
		t.Errorf("what is not there: %v", err)
	}
}
