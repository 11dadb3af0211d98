package network

import (
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gantry/internal/network/networktest"
	"gantry/internal/pod"
)

// TestMain lets the test binary be the plugins.
func TestMain(m *testing.M) {
	if os.Getenv("CNI_COMMAND") != "" {
		os.Exit(networktest.Main())
	}
	// The race detector makes every program sleep a second at its end.
	os.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	os.Exit(m.Run())
}

const testPod = pod.ID("aaaabbbbccccddddeeeeffff")

// bed is a Network with directories of its own and plugins a, b and ipam.
type bed struct {
	*Network
	t                    *testing.T
	conf, bin, cache     string
	leases, netns, calls string
}

func newBed(t *testing.T, timeout time.Duration) *bed {
	t.Helper()
	t.Parallel()
	dir := t.TempDir()
	b := &bed{
		t: t, conf: filepath.Join(dir, "net.d"), bin: filepath.Join(dir, "bin"), cache: filepath.Join(dir, "cache"),
		leases: filepath.Join(dir, "leases"), netns: filepath.Join(dir, "netns"), calls: filepath.Join(dir, "calls"),
	}
	for _, d := range []string{b.conf, b.bin, b.leases} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b.write(b.netns, "")
	for _, p := range []string{"a", "b", "host-local", "portmap"} {
		b.script(p, networktest.Script{})
	}
	b.Network = b.open(timeout)
	return b
}

// open makes another Network on the same directories, as another process would.
func (b *bed) open(timeout time.Duration) *Network {
	b.t.Helper()
	n, err := New(Config{
		ConfDir: b.conf, BinDirs: []string{b.bin}, CacheDir: b.cache, Timeout: timeout,
		Log: slog.New(slog.NewTextHandler(b.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		b.t.Fatal(err)
	}
	n.leaseDir = b.leases
	n.sys = system{
		isNetNS:    func(p string) bool { _, err := os.Stat(p); return err == nil },
		loopbackUp: func(string) error { return nil },
		checkLink:  func(string, Result) error { return nil },
		standIn:    func(_, addr string) (string, func(), error) { return "stand-in " + addr, func() {}, nil },
	}
	b.t.Cleanup(n.Close)
	return n
}

func (b *bed) write(path, text string) {
	b.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bed) confFile(name, text string) { b.write(filepath.Join(b.conf, name), text) }

func (b *bed) script(plugin string, s networktest.Script) {
	b.t.Helper()
	s.Log = b.calls
	exe, err := os.Executable()
	if err == nil {
		err = networktest.Install(b.bin, plugin, exe, s)
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

// on makes a plugin do something at a command.
func (b *bed) on(plugin, command string, s networktest.Step) {
	b.script(plugin, networktest.Script{On: map[string]networktest.Step{command: s}})
}

// log lists the calls but VERSION.
func (b *bed) log() []networktest.Call {
	b.t.Helper()
	calls, err := networktest.Calls(b.calls)
	if err != nil {
		b.t.Fatal(err)
	}
	var some []networktest.Call
	for _, c := range calls {
		if c.Command != "VERSION" {
			some = append(some, c)
		}
	}
	return some
}

// sequence is the log in short: "a ADD, b ADD".
func (b *bed) sequence() string {
	var s []string
	for _, c := range b.log() {
		s = append(s, c.Plugin+" "+c.Command)
	}
	return strings.Join(s, ", ")
}

func (b *bed) attachment() Attachment {
	return Attachment{Pod: testPod, Name: "web", Namespace: "default", UID: "u-1", NetNS: b.netns}
}

func (b *bed) recorded() bool {
	_, err := os.Stat(b.recordPath(testPod))
	return err == nil
}

const twoPlugins = `{"cniVersion": "1.0.0", "name": "net", "plugins": [
	{"type": "a"}, {"type": "b", "capabilities": {"portMappings": true, "bandwidth": true, "ipRanges": true, "dns": true}}]}`

func mustJSON(t *testing.T, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatal(err)
	}
}

// wants checks an error's text and kind.
func wants(t *testing.T, err error, kind error, texts ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	if kind != nil && !errors.Is(err, kind) {
		t.Errorf("error %q is no %v", err, kind)
	}
	for _, s := range texts {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("error %q lacks %q", err, s)
		}
	}
	if strings.ContainsAny(err.Error(), "\n\x1b") {
		t.Errorf("error %q is not one clean line", err)
	}
}
