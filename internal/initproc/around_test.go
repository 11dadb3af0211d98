package initproc

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestInsideRefuses: what is not as it has to be is said in the file that the record of
// the end is made of.
func TestInsideRefuses(t *testing.T) {
	t.Parallel()
	const around, process = `{"app":"a","self":{},"around":["/usr/bin/env","{app}"]}`, `{"args":["true"],"cwd":"/"}`
	for name, c := range map[string]struct {
		files map[string]string
		want  string
	}{
		"no plan":         {nil, "no such file"},
		"an OCI app":      {map[string]string{StartFile: `{"runtime":["crun"]}`}, "nothing is put around"},
		"fly's":           {map[string]string{StartFile: `{"self":{}}`}, "nothing is put around"},
		"no process":      {map[string]string{StartFile: around}, ProcessFile},
		"by hand":         {map[string]string{StartFile: around, ProcessFile: process}, insideFile},
		"another's /proc": {map[string]string{StartFile: around, ProcessFile: process, insideFile: `{"proc":1}`}, "another /proc"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			for file, text := range c.files {
				if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			err := inside(dir)
			said, _ := os.ReadFile(filepath.Join(dir, startErrorFile))
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(string(said), c.want) {
				t.Errorf("want %q, got %v; the file says %q", c.want, err, said)
			}
		})
	}
}

func TestCleanRuntimeOfOthers(t *testing.T) {
	t.Parallel()
	for _, s := range []Start{{Program: true}, {Self: &Self{}, Around: []string{"/usr/bin/env", AppArg}}} {
		s.Runtime = []string{"/no/such/runtime"}
		if err := cleanRuntime(s); err != nil {
			t.Errorf("%+v: a runtime was asked: %v", s, err)
		}
	}
}
