package network

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/network/networktest"
	"gantry/internal/pod"
)

func TestFirstValidFileWins(t *testing.T) {
	b := newBed(t, time.Minute)
	list := func(name, version, plugins string) string {
		return fmt.Sprintf(`{"cniVersion": %q, "name": %q, "plugins": %s}`, version, name, plugins)
	}
	b.confFile("01-torn.conflist", `{"cniVersion": "1.0.0", "na`)
	b.confFile("02-missing.conflist", list("x", "1.0.0", `[{"type": "a"}, {"type": "flannel"}]`))
	b.confFile("03-ipam.conflist", list("x", "1.0.0", `[{"type": "a", "ipam": {"type": "dhcp"}}]`))
	b.confFile("04-name.conflist", list("../x", "1.0.0", `[{"type": "a"}]`))
	b.confFile("05-version.conflist", list("x", "9.0.0", `[{"type": "a"}]`))
	b.confFile("06-newer.conflist", list("x", "1.1.0", `[{"type": "a"}]`))
	b.confFile("07-loopback.conf", `{"cniVersion": "1.0.0", "name": "lo", "type": "loopback"}`)
	b.confFile("08-empty.conflist", list("x", "1.0.0", `[]`))
	b.confFile("09-path.conflist", list("x", "1.0.0", `[{"type": "../a"}]`))
	b.confFile("10-null.conflist", `null`)
	b.confFile("11-big.conflist", strings.Repeat(" ", maxConfBytes+1))
	if err := unix.Mkfifo(filepath.Join(b.conf, "12-fifo.conflist"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(b.conf, "13-dir.conflist"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nowhere", filepath.Join(b.conf, "14-link.conflist")); err != nil {
		t.Fatal(err)
	}
	b.confFile("README", "no configuration")
	b.script("loopback", networktest.Script{})
	wants(t, b.Status(t.Context()), pod.ErrUnavailable,
		"01-torn.conflist: parse JSON: unexpected end",
		"02-missing.conflist: plugin flannel is not in "+b.bin,
		"03-ipam.conflist: plugin dhcp is not in",
		"04-name.conflist: network name",
		"05-version.conflist: cniVersion 9.0.0 is not supported",
		"06-newer.conflist: plugin a speaks cniVersion 0.3.1 0.4.0 1.0.0, not 1.1.0",
		"07-loopback.conf: only brings up",
		"08-empty.conflist: ", "09-path.conflist: plugin type", "10-null.conflist: ", "11-big.conflist: larger", "12-fifo.conflist: not a regular",
		"14-link.conflist: ")

	b.confFile("20-good.conflist", list("good", "1.0.0", `[{"type": "a"}]`))
	b.confFile("30-other.conflist", list("other", "1.0.0", `[{"type": "a"}]`))
	if err := b.Status(t.Context()); err != nil {
		t.Fatal(err)
	}
	i := b.Info(t.Context())
	if i.File != "20-good.conflist" || i.Network != "good" || len(i.Rejected) != 13 || i.StatusAndGC {
		t.Errorf("%+v", i)
	}
}

func TestVersionIsChosen(t *testing.T) {
	b := newBed(t, time.Minute)
	b.confFile("10-net.conflist", `{"cniVersions": ["0.4.0", "1.0.0", "1.1.0", "7.0.0"], "name": "net", "plugins": [{"type": "a"}]}`)
	if i := b.Info(t.Context()); i.CNIVersion != "1.0.0" {
		t.Errorf("%+v", i)
	}
	// The answer is kept across processes, until the binary is another one.
	b.on("a", "VERSION", networktest.Step{Hang: true})
	if i := b.open(time.Minute).Info(t.Context()); i.CNIVersion != "1.0.0" {
		t.Errorf("%+v", i)
	}
	b.script("a", networktest.Script{Versions: []string{"0.4.0"}})
	if err := os.Remove(filepath.Join(b.bin, "a")); err != nil {
		t.Fatal(err)
	}
	b.write(filepath.Join(b.bin, "a"), "#!/bin/sh\necho '{\"cniVersion\": \"0.4.0\", \"supportedVersions\": [\"0.4.0\"]}'\n")
	if err := os.Chmod(filepath.Join(b.bin, "a"), 0o755); err != nil {
		t.Fatal(err)
	}
	if i := b.Info(t.Context()); i.CNIVersion != "0.4.0" {
		t.Errorf("%+v", i)
	}
}

// TestListIsWhole: what is stored for DEL needs no file beside it.
func TestListIsWhole(t *testing.T) {
	b := newBed(t, time.Minute)
	b.confFile("10-net.conflist", `{"cniVersions": ["1.0.0"], "name": "net", "plugins": [{"type": "a"}]}`)
	if err := os.Mkdir(filepath.Join(b.conf, "net"), 0o700); err != nil {
		t.Fatal(err)
	}
	b.confFile("net/10-b.conf", `{"type": "b"}`)
	r, err := b.Add(t.Context(), b.attachment())
	if err != nil {
		t.Fatal(err)
	}
	os.RemoveAll(b.conf)
	if err := b.Del(t.Context(), b.attachment(), &r); err != nil {
		t.Fatal(err)
	}
	if got, want := b.sequence(), "a ADD, b ADD, b DEL, a DEL"; got != want {
		t.Errorf("calls: %s, want %s", got, want)
	}
}

func TestPodCIDRs(t *testing.T) {
	b := newBed(t, time.Minute)
	b.confFile("10-net.conflist", `{"cniVersion": "1.0.0", "name": "net", "plugins": [
		{"type": "a", "capabilities": {"ipRanges": true}, "ipam": {"type": "host-local"}}]}`)
	wants(t, b.Status(t.Context()), pod.ErrUnavailable, "10-net.conflist: network net waits for the node's pod CIDRs")
	_, err := b.Add(t.Context(), b.attachment())
	wants(t, err, pod.ErrUnavailable, "waits for")
	b.SetPodCIDRs([]string{"nonsense", "10.1.0.0/24"})
	if err := b.Status(t.Context()); err != nil {
		t.Error(err)
	}
	// Kubelet does not say it again to a new process.
	if err := b.open(time.Minute).Status(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestStatusOfPlugins(t *testing.T) {
	b := newBed(t, time.Minute)
	b.confFile("10-net.conflist", strings.Replace(twoPlugins, "1.0.0", "1.1.0", 1))
	with := func(s map[string]networktest.Step) {
		b.script("b", networktest.Script{Versions: []string{"1.1.0"}, On: s})
	}
	b.script("a", networktest.Script{Versions: []string{"1.1.0"}})
	with(nil)
	if err := b.Status(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, want := b.sequence(), "a STATUS, b STATUS"; got != want {
		t.Errorf("calls: %s, want %s", got, want)
	}
	with(map[string]networktest.Step{"STATUS": {Code: 50, Msg: "no uplink"}})
	if err := b.Status(t.Context()); err != nil {
		t.Error("the answer was not kept:", err)
	}
	wants(t, b.open(time.Minute).Status(t.Context()), pod.ErrUnavailable, "network status: plugin b: no uplink (after ")
}

func TestWatch(t *testing.T) {
	b := newBed(t, time.Minute)
	if err := os.Remove(b.conf); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { b.Watch(t.Context()); close(done) }()
	until := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("never:", what)
			}
		}
	}
	// seen is the state as Watch keeps it, without a reading of our own.
	seen := func() string {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.state == nil || !b.watching {
			return "?"
		}
		return b.state.file
	}
	until("watching", func() bool { return seen() == "" })
	if err := os.Mkdir(b.conf, 0o755); err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond)
	b.confFile("20-net.conflist", twoPlugins)
	until("appears", func() bool { return seen() == "20-net.conflist" })
	b.confFile("10-net.conflist", twoPlugins)
	until("an earlier one", func() bool { return seen() == "10-net.conflist" })
	if err := os.Remove(filepath.Join(b.bin, "b")); err != nil {
		t.Fatal(err)
	}
	until("plugin is gone", func() bool { return seen() == "" })
	b.script("b", networktest.Script{})
	until("plugin is back", func() bool { return seen() == "10-net.conflist" })
	if err := os.Rename(b.conf, b.conf+".old"); err != nil {
		t.Fatal(err)
	}
	until("directory is gone", func() bool { return seen() == "" })
	if err := os.Rename(b.conf+".old", b.conf); err != nil {
		t.Fatal(err)
	}
	until("directory is back", func() bool { return seen() == "10-net.conflist" })
	b.Close()
	<-done
}

func FuzzConf(f *testing.F) {
	f.Add([]byte(twoPlugins))
	f.Add([]byte(`{"name": "x", "type": "a", "cniVersions": ["1.0.0"]}`))
	f.Add([]byte(`{"name": "x", "plugins": [null, {"type": "a", "capabilities": null, "ipam": null}], "disableCheck": "true"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, isList := range []bool{true, false} {
			c, err := parseConf(data, isList)
			if err != nil || len(c.versions) == 0 {
				continue
			}
			c.version = c.versions[0]
			list, err := c.list()
			if err != nil {
				continue
			}
			// What is stored reads back as the same.
			again, err := parseSaved(list.Bytes)
			if err != nil {
				t.Fatalf("%s: %v", list.Bytes, err)
			}
			if again.Name != list.Name || len(again.Plugins) != len(list.Plugins) || again.CNIVersion != list.CNIVersion {
				t.Fatalf("%s: %+v, %+v", list.Bytes, list, again)
			}
			wantsPodCIDRs(list)
		}
	})
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"version": 1, "pod": "x", "args": [["a", "b"]], "confList": {}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var r record
		if json.Unmarshal(data, &r) == nil {
			if list, err := parseSaved(r.ConfList); err == nil {
				_, _ = parseResult(list, r.Raw)
			}
		}
	})
}
