package main

import "io"

// multi is an index: this machine's image, two for other machines, and an
// attestation that is no image at all, as builders add nowadays.
func multi(f format) recipe {
	return func(w *workshop) (descriptor, error) {
		native, err := w.make("busybox:" + map[format]string{oci: "oci", docker: "docker"}[f])
		if err != nil {
			return descriptor{}, err
		}
		manifests := []descriptor{}
		for _, p := range []platform{{Architecture: "arm64", OS: "linux", Variant: "v8"}, {Architecture: "s390x", OS: "linux"}} {
			d, err := w.addForeign(f, p)
			if err != nil {
				return descriptor{}, err
			}
			manifests = append(manifests, d)
		}
		manifests = append(manifests, native.on("linux", "amd64", ""))
		if f == oci {
			attestation, err := w.addAttestation()
			if err != nil {
				return descriptor{}, err
			}
			attestation.Annotations = map[string]string{
				"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": native.Digest,
			}
			manifests = append(manifests, attestation.on("unknown", "unknown", ""))
		}
		return w.addIndex(f, manifests...)
	}
}

// foreign is an index without an image for this machine.
func foreign(w *workshop) (descriptor, error) {
	d, err := w.addForeign(oci, platform{Architecture: "arm64", OS: "linux", Variant: "v8"})
	if err != nil {
		return descriptor{}, err
	}
	return w.addIndex(oci, d)
}

func (w *workshop) addForeign(f format, p platform) (descriptor, error) {
	l, err := w.addLayer(gzipped, dir("bin", 0o755), file("bin/sh", 0o755, "a program for "+p.Architecture+"\n"))
	if err != nil {
		return descriptor{}, err
	}
	d, err := w.addImage(image{format: f, platform: p, layers: []layer{l}, config: config{Cmd: []string{"sh"}}})
	return d.on(p.OS, p.Architecture, p.Variant), err
}

func (w *workshop) addAttestation() (descriptor, error) {
	statement, err := w.add(func(out io.Writer) error {
		_, err := io.WriteString(out, `{"_type":"https://in-toto.io/Statement/v0.1"}`)
		return err
	})
	if err != nil {
		return descriptor{}, err
	}
	statement.MediaType = "application/vnd.in-toto+json"
	c, err := w.addConfig(image{platform: platform{Architecture: "unknown", OS: "unknown"}})
	if err != nil {
		return descriptor{}, err
	}
	return w.addJSON(oci.manifest(), manifest{SchemaVersion: 2, MediaType: oci.manifest(), Config: c, Layers: []descriptor{statement}})
}

// schema1 is a manifest of the format that nobody accepts any more.
func schema1(w *workshop) (descriptor, error) {
	return w.addJSON("application/vnd.docker.distribution.manifest.v1+prettyjws", map[string]any{
		"schemaVersion": 1, "name": "schema1", "tag": "latest", "architecture": "amd64",
		"fsLayers": []any{}, "history": []any{}, "signatures": []any{},
	})
}

// artifact is a manifest that carries something else than an image.
func artifact(w *workshop) (descriptor, error) {
	empty, err := w.add(func(out io.Writer) error {
		_, err := io.WriteString(out, "{}")
		return err
	})
	if err != nil {
		return descriptor{}, err
	}
	empty.MediaType = "application/vnd.oci.empty.v1+json"
	return w.addJSON(oci.manifest(), manifest{
		SchemaVersion: 2, MediaType: oci.manifest(), ArtifactType: "application/vnd.example.notes", Config: empty, Layers: []descriptor{empty},
	})
}
