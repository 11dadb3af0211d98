package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// descriptor points at a blob, as in the OCI image specification.
type descriptor struct {
	MediaType    string            `json:"mediaType"`
	Digest       string            `json:"digest"`
	Size         int64             `json:"size"`
	URLs         []string          `json:"urls,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
	Platform     *platform         `json:"platform,omitempty"`
	ArtifactType string            `json:"artifactType,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	Variant      string `json:"variant,omitempty"`
}

// store keeps blobs in files named by their digests, and which image was made
// as which manifest.
type store struct{ dir string }

func openStore(dir string) (store, error) {
	for _, sub := range []string{"blobs", "images"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return store{}, fmt.Errorf("open store: %w", err)
		}
	}
	return store{dir}, nil
}

func (s store) blob(digest string) string {
	return filepath.Join(s.dir, "blobs", strings.ReplaceAll(digest, ":", "-"))
}

// add stores what write writes and returns its digest and size.
func (s store) add(write func(io.Writer) error) (descriptor, error) {
	f, err := os.CreateTemp(s.dir, "new-")
	if err != nil {
		return descriptor{}, fmt.Errorf("add blob: %w", err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	h := sha256.New()
	count := &counter{}
	if err := write(io.MultiWriter(f, h, count)); err != nil {
		return descriptor{}, fmt.Errorf("add blob: %w", err)
	}
	if err := f.Close(); err != nil {
		return descriptor{}, fmt.Errorf("add blob: %w", err)
	}
	d := descriptor{Digest: "sha256:" + hex.EncodeToString(h.Sum(nil)), Size: count.n}
	if err := os.Rename(f.Name(), s.blob(d.Digest)); err != nil {
		return descriptor{}, fmt.Errorf("add blob: %w", err)
	}
	return d, nil
}

// addJSON stores a document with its media type.
func (s store) addJSON(mediaType string, v any) (descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return descriptor{}, fmt.Errorf("encode %s: %w", mediaType, err)
	}
	d, err := s.add(func(w io.Writer) error {
		_, err := io.Copy(w, bytes.NewReader(data))
		return err
	})
	d.MediaType = mediaType
	return d, err
}

// forge stores content under a digest that is not its own.
func (s store) forge(digest string, content []byte) error {
	// The true blob may exist under this name already: replace, not rewrite.
	if err := os.Remove(s.blob(digest)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forge blob: %w", err)
	}
	if err := os.WriteFile(s.blob(digest), content, 0o644); err != nil {
		return fmt.Errorf("forge blob: %w", err)
	}
	return nil
}

func (s store) imageFile(name string) string {
	return filepath.Join(s.dir, "images", strings.NewReplacer("/", "%", ":", "@").Replace(name))
}

// remember writes down as which manifest an image was made.
func (s store) remember(name string, d descriptor) error {
	data, err := json.Marshal(d)
	if err != nil {
		return fmt.Errorf("remember %s: %w", name, err)
	}
	if err := os.WriteFile(s.imageFile(name), data, 0o644); err != nil {
		return fmt.Errorf("remember %s: %w", name, err)
	}
	return nil
}

// recall returns an image made before, perhaps by an earlier run.
func (s store) recall(name string) (descriptor, bool) {
	data, err := os.ReadFile(s.imageFile(name))
	if err != nil {
		return descriptor{}, false
	}
	var d descriptor
	if err := json.Unmarshal(data, &d); err != nil {
		return descriptor{}, false
	}
	return d, true
}

// counter counts what is written to it.
type counter struct{ n int64 }

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}
