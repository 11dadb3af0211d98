package main

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
)

// recipe makes one image.
type recipe func(*workshop) (descriptor, error)

// workshop makes images when they are first asked for.
type workshop struct {
	store
	root    string // of the Debian files
	log     *slog.Logger
	recipes map[string]recipe // by repository:tag

	mu sync.Mutex // held while an image is made
}

func newWorkshop(s store, root string, log *slog.Logger) *workshop {
	return &workshop{store: s, root: strings.TrimSuffix(root, "/"), log: log, recipes: catalog()}
}

// find returns the manifest of an image, making it if need be. A tag that looks
// like a version but is in no recipe stands for the repository's first one:
// suites ask for versions of their own.
func (w *workshop) find(repository, tag string) (descriptor, bool, error) {
	name := repository + ":" + tag
	if w.recipes[name] == nil {
		tags := w.tags(repository)
		if len(tags) == 0 || !looksLikeVersion(tag) || !looksLikeVersion(tags[0]) {
			return descriptor{}, false, nil
		}
		name = repository + ":" + tags[0]
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	d, err := w.make(name)
	return d, true, err
}

// make is find for recipes that build on another image.
//
// Preconditions: w.mu is held and name has a recipe.
func (w *workshop) make(name string) (descriptor, error) {
	if d, ok := w.recall(name); ok {
		return d, nil
	}
	start := time.Now()
	d, err := w.recipes[name](w)
	if err != nil {
		return descriptor{}, fmt.Errorf("make image %s: %w", name, err)
	}
	w.log.Info("made image", "name", name, "digest", d.Digest, "took", time.Since(start).Round(time.Millisecond))
	return d, w.remember(name, d)
}

// tags lists a repository's tags.
func (w *workshop) tags(repository string) []string {
	var tags []string
	for name := range w.recipes {
		if tag, ok := strings.CutPrefix(name, repository+":"); ok {
			tags = append(tags, tag)
		}
	}
	slices.Sort(tags)
	return tags
}

// names lists all images.
func (w *workshop) names() []string {
	var names []string
	for name := range w.recipes {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func looksLikeVersion(tag string) bool {
	tag = strings.TrimPrefix(tag, "v")
	return tag != "" && tag[0] >= '0' && tag[0] <= '9'
}
