package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// aptSource is one archive that apt on this machine takes packages from.
type aptSource struct {
	uri        string
	suites     []string
	components []string
	signedBy   string
}

// parseSourcesList reads the one-line format of sources.list(5).
func parseSourcesList(text string) []aptSource {
	var sources []aptSource
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		kind, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		if kind != "deb" {
			continue
		}
		var s aptSource
		rest = strings.TrimSpace(rest)
		if options, after, ok := strings.Cut(rest, "]"); ok && strings.HasPrefix(options, "[") {
			rest = after
			for option := range strings.FieldsSeq(options[1:]) {
				if v, ok := strings.CutPrefix(option, "signed-by="); ok {
					s.signedBy = v
				}
			}
		}
		fields := strings.Fields(rest)
		if len(fields) < 2 {
			continue
		}
		s.uri, s.suites, s.components = fields[0], fields[1:2], fields[2:]
		sources = append(sources, s)
	}
	return sources
}

// parseSourcesStanzas reads the deb822 format of sources.list(5).
func parseSourcesStanzas(text string) []aptSource {
	var sources []aptSource
	var fields map[string]string
	flush := func() {
		if slices.Contains(strings.Fields(fields["types"]), "deb") && fields["enabled"] != "no" {
			for uri := range strings.FieldsSeq(fields["uris"]) {
				sources = append(sources, aptSource{
					uri:        uri,
					suites:     strings.Fields(fields["suites"]),
					components: strings.Fields(fields["components"]),
					signedBy:   signedByPath(fields["signed-by"]),
				})
			}
		}
		fields = nil
	}
	var last string
	scan := bufio.NewScanner(strings.NewReader(text))
	for scan.Scan() {
		line := scan.Text()
		switch {
		case strings.TrimSpace(line) == "":
			flush()
		case strings.HasPrefix(line, "#"):
		case line[0] == ' ' || line[0] == '\t':
			if last != "" {
				fields[last] += "\n" + strings.TrimSpace(line)
			}
		default:
			key, value, ok := strings.Cut(line, ":")
			if !ok {
				continue
			}
			if fields == nil {
				fields = map[string]string{}
			}
			last = strings.ToLower(strings.TrimSpace(key))
			fields[last] = strings.TrimSpace(value)
		}
	}
	flush()
	return sources
}

// signedByPath keeps a Signed-By that names a file; an embedded key is dropped.
func signedByPath(v string) string {
	if strings.HasPrefix(v, "/") && !strings.Contains(v, "\n") {
		return v
	}
	return ""
}

// aptSources reads every source under root's /etc/apt.
func aptSources(root string) ([]aptSource, error) {
	dir := filepath.Join(root, "etc/apt")
	lists, err := filepath.Glob(filepath.Join(dir, "sources.list.d/*.list"))
	if err != nil {
		return nil, fmt.Errorf("list apt sources: %w", err)
	}
	stanzas, err := filepath.Glob(filepath.Join(dir, "sources.list.d/*.sources"))
	if err != nil {
		return nil, fmt.Errorf("list apt sources: %w", err)
	}
	var sources []aptSource
	for _, path := range append(stanzas, append(lists, filepath.Join(dir, "sources.list"))...) {
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read apt sources: %w", err)
		}
		if strings.HasSuffix(path, ".sources") {
			sources = append(sources, parseSourcesStanzas(string(text))...)
		} else {
			sources = append(sources, parseSourcesList(string(text))...)
		}
	}
	return sources, nil
}

// archiveOf picks the Debian archive itself out of the sources: the one with
// the machine's own release in it, not its updates, security or other vendors.
func archiveOf(sources []aptSource, codename string) (aptSource, error) {
	for _, s := range sources {
		if slices.Contains(s.suites, codename) && slices.Contains(s.components, "main") {
			return s, nil
		}
	}
	return aptSource{}, fmt.Errorf("find the Debian archive: no apt source of this machine has suite %q, component main; set GANTRY_MIRROR to the URL of a Debian archive", codename)
}

// debianArchive is the archive that this machine's packages and the VM's come
// from. GANTRY_MIRROR overrides what apt is configured with.
func debianArchive(host osRelease) (aptSource, error) {
	if uri := os.Getenv("GANTRY_MIRROR"); uri != "" {
		return aptSource{uri: uri, suites: []string{host.codename}, components: []string{"main"}}, nil
	}
	sources, err := aptSources("/")
	if err != nil {
		return aptSource{}, err
	}
	return archiveOf(sources, host.codename)
}

// osRelease is what this program needs of os-release(5).
type osRelease struct {
	id, version, codename string
}

func parseOSRelease(text string) osRelease {
	var r osRelease
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		value = strings.Trim(value, `"'`)
		switch key {
		case "ID":
			r.id = value
		case "VERSION_ID":
			r.version = value
		case "VERSION_CODENAME":
			r.codename = value
		}
	}
	return r
}

func hostRelease() (osRelease, error) {
	text, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return osRelease{}, fmt.Errorf("read the host's release: %w", err)
	}
	return parseOSRelease(string(text)), nil
}
