package node

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gantry/internal/config"
)

// TestWeakerOfTheDocs: the configuration that docs/isolators.md shows arrives at the engine.
func TestWeakerOfTheDocs(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/isolators.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(page), "```toml\n")
	text, _, ok := strings.Cut(rest, "```")
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "config.toml"), []byte(text), 0o644); err != nil || !ok {
		t.Fatalf("no configuration in the page: %v", err)
	}
	c, _, err := config.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	got := FromConfig(c)
	if got.Isolator != "oci" || !slices.Equal(got.Weaker.Namespaces, []string{"kube-system"}) || !slices.Equal(got.Weaker.Labels, []string{"gantry.io/trusted=yes"}) {
		t.Errorf("got %q, %+v", got.Isolator, got.Weaker)
	}
}

// TestConfigurationsOfTheDocs can all be used as they are.
func TestConfigurationsOfTheDocs(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/isolators.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := strings.Split(string(page), "```toml\n")[1:]
	if len(blocks) < 3 {
		t.Errorf("there are %d", len(blocks))
	}
	for _, b := range blocks {
		text, _, _ := strings.Cut(b, "```")
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "config.toml"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, _, err := config.Load(dir); err != nil {
			t.Errorf("%v:\n%s", err, text)
		}
	}
}
