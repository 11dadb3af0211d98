package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path"
	"strings"
)

// insideDir is where agnhost, as a registry, has its images: one that asks for a password,
// for specs that pull by one.
const insideDir = "var/registry"

// inside gives the files of an image that agnhost is to serve.
func (w *workshop) inside(name, tag string, image descriptor) ([]entry, error) {
	data, err := os.ReadFile(w.blob(image.Digest))
	if err != nil {
		return nil, err
	}
	var m manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("read manifest of %s: %w", name, err)
	}
	top := path.Join(insideDir, name)
	out := []entry{
		file(path.Join(top, "manifests", tag), 0o644, image.Digest+"\n"),
		bytesFile(digestPath(path.Join(top, "manifests"), image.Digest), 0o644, data),
	}
	for _, d := range append([]descriptor{m.Config}, m.Layers...) {
		data, err := os.ReadFile(w.blob(d.Digest))
		if err != nil {
			return nil, err
		}
		out = append(out, bytesFile(digestPath(path.Join(top, "blobs"), d.Digest), 0o644, data))
	}
	return out, nil
}

// digestPath is where agnhost looks for the content of a digest.
func digestPath(dir, digest string) string {
	kind, sum, _ := strings.Cut(digest, ":")
	return path.Join(dir, kind, sum[:2], sum, "data")
}
