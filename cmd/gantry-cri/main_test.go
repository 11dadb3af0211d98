package main

import (
	"bytes"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func writeConfig(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "config.toml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestQuestions(t *testing.T) {
	t.Parallel()
	dir := writeConfig(t, "[cri]\nslow = \"1s\"\nstop-grace = \"2s\"\n")
	for _, c := range []struct {
		args []string
		want []string
	}{
		{[]string{"--version"}, []string{"gantry-cri devel"}},
		{[]string{"--config-dir", dir, "--check-config"}, []string{"is valid (1 files"}},
		{[]string{"--cri-slow=9s", "--config-dir", dir, "--print-config"}, []string{"slow = \"9s\"", "stop-grace = \"2s\""}},
		{[]string{"--config-dir", dir, "--print-config", "--stdio-journal=false"}, []string{"slow = \"1s\"", "journal = false"}},
	} {
		var out, errOut bytes.Buffer
		if err := run(t.Context(), c.args, &out, &errOut); err != nil {
			t.Errorf("%q: %v", c.args, err)
		}
		for _, w := range c.want {
			if !strings.Contains(out.String(), w) {
				t.Errorf("%q: no %q in\n%s", c.args, w, &out)
			}
		}
	}
}

func TestBadCommandLines(t *testing.T) {
	t.Parallel()
	bad := writeConfig(t, "[cri]\nslowly = \"1s\"\n")
	for want, args := range map[string][]string{
		"cri.slowly: there is no such key": {"--config-dir", bad, "--check-config"},
		"takes no arguments":               {"serve"},
		"another isolator of that name":    {"--oci-runtimes", "a=/x", "--isolator-handlers", "a=oci", "--check-config"},
		"Gantry's own":                     {"--oci-runtimes", "oci=/x", "--check-config"},
		"want a duration":                  {"--cri-slow", "x"},
		"want one of":                      {"--log-level=loud"},
		"not defined":                      {"--nothing"},
	} {
		var out, errOut bytes.Buffer
		if err := run(t.Context(), args, &out, &errOut); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %s", args, err, want)
		}
	}
}

func TestListen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "run", "cri.sock")
	l, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := os.Stat(path); err != nil || s.Mode().Perm() != 0o660 {
		t.Errorf("socket: %v, %v", s.Mode(), err)
	}
	if _, err := listen(path); err == nil || !strings.Contains(err.Error(), "somebody serves there already") {
		t.Errorf("a second server: %v", err)
	}
	// A killed server leaves its socket; the next one takes the place.
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	l, err = listen(path)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}

func TestLinesForTheJournal(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	log := slog.New(newJournalHandler(slog.LevelInfo, &b)).With("pod", "x").WithGroup("g")
	log.Debug("not seen")
	log.Info("two\nlines", "time", 1)
	log.Warn("careful")
	log.Error("bad")
	want := "<6>msg=\"two\\nlines\" pod=x g.time=1\n<4>msg=careful pod=x\n<3>msg=bad pod=x\n"
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &b, want)
	}
}
