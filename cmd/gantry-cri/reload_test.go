package main

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gantry/internal/config"
)

func TestReload(t *testing.T) {
	t.Parallel()
	dir := writeConfig(t, "[cri]\nslow = \"1s\"\n")
	write := func(text string) {
		if err := os.WriteFile(filepath.Join(dir, "config.toml"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	started, _, err := config.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	var got config.Config
	applied := 0
	r := &reloader{
		load: func() (config.Config, []string, error) { return config.Load(dir) }, started: started, inForce: started,
		apply: func(c config.Config) { got, applied = c, applied+1 }, log: logger(slog.LevelInfo, &said),
	}
	// What is not valid changes nothing.
	write("[cri]\nslow = \"soon\"\n")
	r.reload()
	if applied != 0 || !strings.Contains(said.String(), "cri.slow") {
		t.Errorf("applied %d times: %s", applied, &said)
	}
	said.Reset()
	write("[log]\nlevel = \"debug\"\n[cri]\nslow = \"2s\"\nsocket = \"/run/x.sock\"\n[isolator]\nweaker-namespaces = [\"system\"]\n")
	r.reload()
	if got.LogLevel != "debug" || got.CRISlow != 2*time.Second || !slices.Equal(got.WeakerSpaces, []string{"system"}) {
		t.Errorf("applied %+v", got)
	}
	for _, want := range []string{`changed="log.level isolator.weaker-namespaces cri.slow"`, "restart", "keys=cri.socket"} {
		if !strings.Contains(said.String(), want) {
			t.Errorf("no %q in %s", want, &said)
		}
	}
	// The same again changes nothing, and what needs a restart needs it still.
	said.Reset()
	r.reload()
	if !strings.Contains(said.String(), `changed=""`) || !strings.Contains(said.String(), "keys=cri.socket") {
		t.Errorf("the second time: %s", &said)
	}
}
