package main

import (
	"bytes"
	"fmt"
	"io"
)

// format is which of the two families of media types an image is written in.
type format int

const (
	oci format = iota
	docker
)

func (f format) manifest() string {
	if f == docker {
		return "application/vnd.docker.distribution.manifest.v2+json"
	}
	return "application/vnd.oci.image.manifest.v1+json"
}

func (f format) index() string {
	if f == docker {
		return "application/vnd.docker.distribution.manifest.list.v2+json"
	}
	return "application/vnd.oci.image.index.v1+json"
}

func (f format) config() string {
	if f == docker {
		return "application/vnd.docker.container.image.v1+json"
	}
	return "application/vnd.oci.image.config.v1+json"
}

func (f format) layer(kind compression) string {
	if f == docker {
		if kind == plain {
			return "application/vnd.docker.image.rootfs.diff.tar"
		}
		return "application/vnd.docker.image.rootfs.diff.tar." + string(kind)
	}
	if kind == plain {
		return "application/vnd.oci.image.layer.v1.tar"
	}
	return "application/vnd.oci.image.layer.v1.tar+" + string(kind)
}

// config is what an image says about the processes that run from it.
type config struct {
	User         string              `json:"User,omitempty"`
	ExposedPorts map[string]struct{} `json:"ExposedPorts,omitempty"`
	Env          []string            `json:"Env,omitempty"`
	Entrypoint   []string            `json:"Entrypoint,omitempty"`
	Cmd          []string            `json:"Cmd,omitempty"`
	Volumes      map[string]struct{} `json:"Volumes,omitempty"`
	WorkingDir   string              `json:"WorkingDir,omitempty"`
	Labels       map[string]string   `json:"Labels,omitempty"`
	StopSignal   string              `json:"StopSignal,omitempty"`
	ArgsEscaped  bool                `json:"ArgsEscaped,omitempty"`
}

type history struct {
	Created    string `json:"created"`
	CreatedBy  string `json:"created_by"`
	EmptyLayer bool   `json:"empty_layer,omitempty"`
}

type configFile struct {
	platform
	Created string `json:"created"`
	Config  config `json:"config"`
	RootFS  struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
	History []history `json:"history"`
}

type manifest struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	ArtifactType  string            `json:"artifactType,omitempty"`
	Config        descriptor        `json:"config"`
	Layers        []descriptor      `json:"layers"`
	Annotations   map[string]string `json:"annotations,omitempty"`
}

type index struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Manifests     []descriptor `json:"manifests"`
}

const created = "2023-11-14T22:13:20Z"

// image is an image before it is stored.
type image struct {
	format   format
	platform platform
	config   config
	layers   []layer
}

func amd64() platform { return platform{Architecture: "amd64", OS: "linux"} }

func (s store) addImage(img image) (descriptor, error) {
	c, err := s.addConfig(img)
	if err != nil {
		return descriptor{}, err
	}
	m := manifest{SchemaVersion: 2, MediaType: img.format.manifest(), Config: c}
	for _, l := range img.layers {
		d := l.blob
		d.MediaType = img.format.layer(l.kind)
		m.Layers = append(m.Layers, d)
	}
	return s.addJSON(m.MediaType, m)
}

func (s store) addConfig(img image) (descriptor, error) {
	var c configFile
	c.platform, c.Created, c.Config = img.platform, created, img.config
	if c.Architecture == "" {
		c.platform = amd64()
	}
	c.RootFS.Type = "layers"
	for i, l := range img.layers {
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, l.diffID)
		c.History = append(c.History, history{Created: created, CreatedBy: fmt.Sprintf("trial layer %d", i)})
	}
	c.History = append(c.History, history{Created: created, CreatedBy: "trial config", EmptyLayer: true})
	return s.addJSON(img.format.config(), c)
}

func (s store) addIndex(f format, manifests ...descriptor) (descriptor, error) {
	return s.addJSON(f.index(), index{SchemaVersion: 2, MediaType: f.index(), Manifests: manifests})
}

// on says which machine a manifest is for.
func (d descriptor) on(os, architecture, variant string) descriptor {
	d.Platform = &platform{Architecture: architecture, OS: os, Variant: variant}
	return d
}

func newReader(b []byte) io.Reader { return bytes.NewReader(b) }
