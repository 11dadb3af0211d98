package main

import (
	"os"
	"path/filepath"
	"testing"
)

const stanzas = `Types: deb
# a comment
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main

Types: deb-src
URIs: http://source.example/debian
Suites: bookworm
Components: main

Types: deb
Enabled: no
URIs: http://disabled.example/debian
Suites: bookworm
Components: main
`

func TestArchiveOf(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		file, text, want, key string
	}{
		"deb822":          {"debian.sources", stanzas, "http://mirror.example/debian", "/usr/share/keyrings/debian.gpg"},
		"one line":        {"a.list", "deb http://one.example/debian bookworm main contrib\n", "http://one.example/debian", ""},
		"options":         {"a.list", "deb [arch=amd64 signed-by=/k.gpg] http://opt.example/debian bookworm main # x\n", "http://opt.example/debian", "/k.gpg"},
		"another vendor":  {"a.list", "deb http://vendor.example/apt vendor-bookworm main\ndeb http://d.example/debian bookworm main\n", "http://d.example/debian", ""},
		"embedded key":    {"e.sources", "Types: deb\nURIs: http://e.example\nSuites: bookworm\nComponents: main\nSigned-By:\n -----BEGIN\n .\n abc\n", "http://e.example", ""},
		"nothing matches": {"a.list", "deb http://vendor.example/apt nodistro main\n", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			dir := filepath.Join(root, "etc/apt/sources.list.d")
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, test.file), []byte(test.text), 0o644); err != nil {
				t.Fatal(err)
			}
			sources, err := aptSources(root)
			if err != nil {
				t.Fatal(err)
			}
			got, err := archiveOf(sources, "bookworm")
			if (err != nil) != (test.want == "") {
				t.Fatalf("error %v, want archive %q", err, test.want)
			}
			if got.uri != test.want || got.signedBy != test.key {
				t.Errorf("got %q signed by %q, want %q signed by %q", got.uri, got.signedBy, test.want, test.key)
			}
		})
	}
}

func TestParseOSRelease(t *testing.T) {
	t.Parallel()
	got := parseOSRelease("PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=\"12\"\nVERSION_CODENAME=bookworm\nID=debian\n")
	if want := (osRelease{"debian", "12", "bookworm"}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
