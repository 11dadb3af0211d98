package arch

import (
	"errors"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// tracked are the text files of the tree, as git would commit them.
func tracked(t *testing.T) []string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "git", "ls-files", "-co", "--exclude-standard")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Skipf("cannot list the files, is this not a git clone? %v", err)
	}
	return strings.Fields(string(out))
}

func read(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestNoReplace: the product builds from what others can get too. A module that
// only makes parts of the test bed may have to replace.
func TestNoReplace(t *testing.T) {
	t.Parallel()
	for _, mod := range []string{"go.mod", "tools/go.mod"} {
		for line := range strings.Lines(read(t, mod)) {
			if strings.HasPrefix(strings.TrimSpace(line), "replace") {
				t.Errorf("%s: %s", mod, strings.TrimSpace(line))
			}
		}
	}
	if strings.Contains(read(t, "go.mod"), "\ntool ") {
		t.Error("go.mod: tools belong in tools/go.mod, see docs/decisions")
	}
}

var (
	changelogName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]*\.md$`)
	changelogLine = regexp.MustCompile(`^(Added|Changed|Fixed|Removed|Security): [A-Z].{9,}[^.]$`)
)

// TestChangelog: see changelog/README.md for the form.
func TestChangelog(t *testing.T) {
	t.Parallel()
	dirs, err := filepath.Glob(filepath.Join(root, "changelog", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range dirs {
		name := filepath.Base(path)
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		first, rest, _ := strings.Cut(string(data), "\n")
		switch {
		case !changelogName.MatchString(name):
			t.Errorf("%s: name it like what-changed.md", path)
		case !changelogLine.MatchString(first) || len(first) > 100:
			t.Errorf("%s: the first line is %q, want \"Added|Changed|Fixed|Removed|Security: One sentence without a full stop\", at most 100 characters", path, first)
		case rest != "" && !strings.HasPrefix(rest, "\n"):
			t.Errorf("%s: leave the second line empty", path)
		case !strings.HasSuffix(string(data), "\n") || strings.HasSuffix(string(data), "\n\n"):
			t.Errorf("%s: end it with one newline", path)
		}
	}
}

var decisionName = regexp.MustCompile(`^(\d{4})-[a-z0-9-]+\.md$`)

// TestDecisions: a record has a number of its own and says the four things.
func TestDecisions(t *testing.T) {
	t.Parallel()
	entries, err := os.ReadDir(filepath.Join(root, "docs/decisions"))
	if err != nil {
		t.Fatal(err)
	}
	numbers := map[string]string{}
	for _, e := range entries {
		m := decisionName.FindStringSubmatch(e.Name())
		if m == nil {
			t.Errorf("docs/decisions/%s: name it NNNN-title.md", e.Name())
			continue
		}
		if other := numbers[m[1]]; other != "" {
			t.Errorf("docs/decisions: %s and %s have the same number", other, e.Name())
		}
		numbers[m[1]] = e.Name()
		text := strings.ToLower(read(t, "docs/decisions/"+e.Name()))
		for _, part := range []string{"context", "choice", "given up", "change our mind"} {
			if !strings.Contains(text, part) {
				t.Errorf("docs/decisions/%s: does not say %q", e.Name(), part)
			}
		}
	}
}

var link = regexp.MustCompile(`\]\(([^)\s]+)\)`)

// TestLinks: what a page points at is there.
func TestLinks(t *testing.T) {
	t.Parallel()
	for _, name := range tracked(t) {
		if !strings.HasSuffix(name, ".md") || strings.Contains(name, "testdata/") {
			continue
		}
		for _, m := range link.FindAllStringSubmatch(read(t, name), -1) {
			u, err := url.Parse(m[1])
			if err != nil || u.Scheme != "" || u.Path == "" {
				continue
			}
			if _, err := os.Stat(filepath.Join(root, filepath.Dir(name), u.Path)); errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: links to %s, which is not there", name, m[1])
			}
		}
	}
}

// TestReadme: the first screen tells a newcomer the two commands.
func TestReadme(t *testing.T) {
	t.Parallel()
	lines := strings.SplitN(read(t, "README.md"), "\n", 21)
	top := strings.Join(lines[:min(20, len(lines))], "\n")
	for _, command := range []string{"make demo", "make test"} {
		if !strings.Contains(top, command) {
			t.Errorf("README.md: %q does not stand in the first 20 lines", command)
		}
	}
}

var target = regexp.MustCompile(`(?m)^\.PHONY: (\S+)\n(\S+):([^\n]*)$`)

// TestMakefile: what people call has a line of help; parts of a target have none.
func TestMakefile(t *testing.T) {
	t.Parallel()
	found := target.FindAllStringSubmatch(read(t, "Makefile"), -1)
	if len(found) < 10 {
		t.Fatalf("found %d targets: is every .PHONY line followed by its target?", len(found))
	}
	for _, m := range found {
		if m[1] != m[2] {
			t.Errorf("Makefile: .PHONY %s stands above %s", m[1], m[2])
		}
		if !strings.Contains(m[3], "## ") && !strings.HasPrefix(m[2], "check-") {
			t.Errorf("Makefile: %s has no ## help", m[2])
		}
	}
}

// TestNoForeignPlaces: the tree knows no machine and no package registry; the
// machine's own settings say where packages come from.
func TestNoForeignPlaces(t *testing.T) {
	t.Parallel()
	banned := []string{
		"deb.debian" + ".org", "proxy.golang" + ".org", "sum.golang" + ".org", "registry.npmjs" + ".org",
		"files.pythonhosted" + ".org", "snapshot.debian" + ".org", "/work" + "/main", "/work" + "/shared",
	}
	for _, name := range tracked(t) {
		data, err := os.ReadFile(filepath.Join(root, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted, not yet committed
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range banned {
			if strings.Contains(string(data), b) {
				t.Errorf("%s speaks of %s", name, b)
			}
		}
	}
}
