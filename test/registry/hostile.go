package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// addHostile adds images that attack whoever pulls them. An engine may refuse
// one or unpack it harmlessly: nothing outside the image's own tree may be
// made, changed or read, and the host must not run out of anything.
func addHostile(add func(recipe, ...string)) {
	hostile := func(name string, layers ...[]entry) { add(stack(layers...), "hostile/"+name+":latest") }
	hostile("absolute-path", []entry{file("/etc/trial-pwned", 0o644, "pwned\n")})
	hostile("dotdot", []entry{file("../../../../../../etc/trial-pwned", 0o644, "pwned\n")})
	hostile("dotdot-inside", []entry{dir("a", 0o755), file("a/../../../../../etc/trial-pwned", 0o644, "pwned\n")})
	hostile("dotdot-name", []entry{dir("..", 0o777)})
	hostile("through-link", []entry{symlink("link", "/etc"), file("link/trial-pwned", 0o644, "pwned\n")})
	hostile("through-relative-link", []entry{symlink("link", "../../../../../../etc"), file("link/trial-pwned", 0o644, "pwned\n")})
	hostile("through-lower-link", []entry{symlink("link", "/etc")}, []entry{file("link/trial-pwned", 0o644, "pwned\n")})
	hostile("whiteout-through-link", []entry{symlink("link", "/etc")}, []entry{file("link/.wh.hostname", 0, "")})
	hostile("whiteout-dotdot", []entry{dir("a", 0o755), file("a/.wh...", 0, ""), file("a/.wh.", 0, ""), file(".wh.../../etc", 0, "")})
	hostile("hardlink-absolute", []entry{hardlink("shadow", "/etc/shadow")})
	hostile("hardlink-dotdot", []entry{hardlink("shadow", "../../../../../../etc/shadow")})
	hostile("hardlink-through-link", []entry{symlink("link", "/etc"), hardlink("shadow", "link/shadow")})
	hostile("hardlink-missing", []entry{hardlink("a", "not/there")})
	hostile("hardlink-loop", []entry{hardlink("a", "b"), hardlink("b", "a")})
	hostile("symlink-loop", []entry{symlink("a", "b"), symlink("b", "a"), file("a/x", 0o644, "x")})
	hostile("devices", []entry{device("mem", tar.TypeChar, 1, 1), device("disk", tar.TypeBlock, 254, 0), device("null", tar.TypeChar, 1, 3)})
	// A character device 0:0 is how overlay writes a whiteout.
	hostile("overlay-whiteout", []entry{dir("a", 0o755), file("a/x", 0o644, "x")}, []entry{device("a/x", tar.TypeChar, 0, 0)})
	hostile("overlay-xattr", []entry{
		dir("a", 0o755).xattr("trusted.overlay.opaque", "y"), file("r", 0o644, "x").xattr("trusted.overlay.redirect", "/etc/shadow"),
		file("m", 0o644, "").xattr("trusted.overlay.metacopy", ""),
	})
	hostile("passwd-link", []entry{symlink("etc/passwd", "/proc/1/environ"), symlink("etc/group", "../../../../etc/shadow")})
	hostile("passwd-fifo", []entry{{Header: tar.Header{Typeflag: tar.TypeFifo, Name: "etc/passwd", Mode: 0o644}}})
	hostile("passwd-device", []entry{device("etc/passwd", tar.TypeChar, 1, 5)})
	hostile("etc-link", []entry{file(".wh.etc", 0, "")}, []entry{symlink("etc", "/etc")})
	hostile("proc-link", []entry{file(".wh.proc", 0, ""), file(".wh.sys", 0, ""), file(".wh.dev", 0, "")},
		[]entry{symlink("proc", "/etc"), symlink("sys", "/etc"), symlink("dev", "/etc")})
	hostile("name-too-long", []entry{file(strings.Repeat("n", 300), 0o644, "x"), file(strings.Repeat("p/", 3000)+"x", 0o644, "x")})
	add(rawLayer(func(out io.Writer) error { _, err := io.WriteString(out, "this is no tar archive"); return err }), "hostile/no-tar:latest")
	add(rawLayer(halfTar), "hostile/half-tar:latest")
	add(truncated, "hostile/truncated:latest")
	add(wrongDigest, "hostile/wrong-digest:latest")
	add(wrongSize, "hostile/wrong-size:latest")
	add(wrongDiffID, "hostile/wrong-diffid:latest")
	add(wrongConfig, "hostile/wrong-config:latest")
	add(missingBlob, "hostile/missing-blob:latest")
	add(fewDiffIDs, "hostile/few-diffids:latest")
	add(hugeManifest, "hostile/huge-manifest:latest")
	add(zeros(2<<30), "hostile/zeros:latest")
	add(configured(config{
		Env: []string{"NO_EQUALS", "=novalue", "NEW\nLINE=1"}, Cmd: []string{"env"}, User: "root\nx:0:0", WorkingDir: "/../../etc",
		Volumes: map[string]struct{}{"/../../etc": {}, "/proc": {}, "/": {}, "": {}, "relative": {}},
	}), "hostile/config:latest")
}

// rawLayer is busybox under a layer of any bytes.
func rawLayer(write func(io.Writer) error) recipe {
	return altered(func(w *workshop, img *image) error {
		l, err := w.addLayerFrom(gzipped, write)
		img.layers = append(img.layers, l)
		return err
	})
}

// halfTar ends in the middle of a member.
func halfTar(out io.Writer) error {
	var whole bytes.Buffer
	if err := writeTar(&whole, []entry{bytesFile("a", 0o644, make([]byte, 1<<16))}); err != nil {
		return err
	}
	_, err := out.Write(whole.Bytes()[:20000])
	return err
}

// altered is busybox with a small layer of its own above, so that whatever is
// done to that layer's blob hurts no other image.
func altered(change func(*workshop, *image) error) recipe {
	return func(w *workshop) (descriptor, error) {
		base, err := w.busyboxLayer(gzipped)
		if err != nil {
			return descriptor{}, err
		}
		img := image{config: config{Cmd: []string{"sh"}, Env: defaultEnv()}, layers: []layer{base}}
		if err := change(w, &img); err != nil {
			return descriptor{}, err
		}
		return w.addImage(img)
	}
}

// victim is a layer that is unlike any other image's.
func (w *workshop) victim(name string) (layer, []byte, error) {
	l, err := w.addLayer(gzipped, file("victim", 0o644, strings.Repeat(name+"\n", 4096)))
	if err != nil {
		return layer{}, nil, err
	}
	content, err := os.ReadFile(w.blob(l.blob.Digest))
	return l, content, err
}

// truncated has a layer whose blob ends early, with the size that it should
// have in the manifest.
func truncated(w *workshop) (descriptor, error) {
	return altered(func(w *workshop, img *image) error {
		l, content, err := w.victim("truncated")
		if err != nil {
			return err
		}
		img.layers = append(img.layers, l)
		return w.forge(l.blob.Digest, content[:len(content)/2])
	})(w)
}

// wrongDigest has a layer whose blob is another one of the same length.
func wrongDigest(w *workshop) (descriptor, error) {
	return altered(func(w *workshop, img *image) error {
		l, content, err := w.victim("wrong digest")
		if err != nil {
			return err
		}
		img.layers = append(img.layers, l)
		// Still a good gzip stream: only its header's time differs.
		forged := bytes.Clone(content)
		forged[4] ^= 0xff
		return w.forge(l.blob.Digest, forged)
	})(w)
}

// wrongSize has a layer that is longer than its manifest says.
func wrongSize(w *workshop) (descriptor, error) {
	return altered(func(w *workshop, img *image) error {
		l, _, err := w.victim("wrong size")
		l.blob.Size -= 10
		img.layers = append(img.layers, l)
		return err
	})(w)
}

// wrongDiffID has a layer that unpacks to something else than its config says.
func wrongDiffID(w *workshop) (descriptor, error) {
	return altered(func(w *workshop, img *image) error {
		l, _, err := w.victim("wrong diff ID")
		l.diffID = "sha256:" + strings.Repeat("12345678", 8)
		img.layers = append(img.layers, l)
		return err
	})(w)
}

// fewDiffIDs has more layers than its config knows of.
func fewDiffIDs(w *workshop) (descriptor, error) {
	base, err := w.busyboxLayer(gzipped)
	if err != nil {
		return descriptor{}, err
	}
	c, err := w.addConfig(image{layers: []layer{base}, config: config{Cmd: []string{"sh"}}})
	if err != nil {
		return descriptor{}, err
	}
	l, _, err := w.victim("few diff IDs")
	if err != nil {
		return descriptor{}, err
	}
	m := manifest{SchemaVersion: 2, MediaType: oci.manifest(), Config: c}
	for _, l := range []layer{base, l} {
		d := l.blob
		d.MediaType = oci.layer(l.kind)
		m.Layers = append(m.Layers, d)
	}
	return w.addJSON(m.MediaType, m)
}

// wrongConfig has a config blob that is not what its digest says.
func wrongConfig(w *workshop) (descriptor, error) {
	base, err := w.busyboxLayer(gzipped)
	if err != nil {
		return descriptor{}, err
	}
	img := image{layers: []layer{base}, config: config{Cmd: []string{"sh"}, Labels: map[string]string{"of": "wrong-config"}}}
	c, err := w.addConfig(img)
	if err != nil {
		return descriptor{}, err
	}
	d, err := w.addImage(img)
	if err != nil {
		return descriptor{}, err
	}
	content, err := os.ReadFile(w.blob(c.Digest))
	if err != nil {
		return descriptor{}, err
	}
	return d, w.forge(c.Digest, bytes.Replace(content, []byte("sh"), []byte("su"), 1))
}

// missingBlob has a layer that the registry does not have.
func missingBlob(w *workshop) (descriptor, error) {
	return altered(func(w *workshop, img *image) error {
		l, _, err := w.victim("missing blob")
		if err != nil {
			return err
		}
		img.layers = append(img.layers, l)
		return os.Remove(w.blob(l.blob.Digest))
	})(w)
}

// hugeManifest is a manifest of 32 MiB.
func hugeManifest(w *workshop) (descriptor, error) {
	base, err := w.make("busybox:oci")
	if err != nil {
		return descriptor{}, err
	}
	content, err := os.ReadFile(w.blob(base.Digest))
	if err != nil {
		return descriptor{}, err
	}
	d, err := w.add(func(out io.Writer) error {
		if _, err := out.Write(content); err != nil {
			return err
		}
		_, err := io.Copy(out, io.LimitReader(spaces{}, 32<<20))
		return err
	})
	d.MediaType = oci.manifest()
	return d, err
}

type spaces struct{}

func (spaces) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

// zeros is an image with a file of so many zero bytes: a small download that
// becomes a large file. A gzip stream may be many streams one after the other,
// so that one MiB is compressed once and repeated.
func zeros(size int64) recipe {
	return func(w *workshop) (descriptor, error) {
		const piece = 1 << 20
		head := tar.Header{Typeflag: tar.TypeReg, Name: "zeros", Mode: 0o644, Size: size, ModTime: time.Unix(1700000000, 0), Format: tar.FormatPAX}
		var header bytes.Buffer
		if err := tar.NewWriter(&header).WriteHeader(&head); err != nil {
			return descriptor{}, err
		}
		packedHeader, err := gzipBytes(header.Bytes())
		if err != nil {
			return descriptor{}, err
		}
		blank := make([]byte, piece)
		packedPiece, err := gzipBytes(blank)
		if err != nil {
			return descriptor{}, err
		}
		packedEnd, err := gzipBytes(blank[:1024]) // two empty blocks end an archive
		if err != nil {
			return descriptor{}, err
		}
		diff := sha256.New()
		blob, err := w.add(func(out io.Writer) error {
			write := func(packed, content []byte) error {
				diff.Write(content)
				_, err := out.Write(packed)
				return err
			}
			if err := write(packedHeader, header.Bytes()); err != nil {
				return err
			}
			for range size / piece {
				if err := write(packedPiece, blank); err != nil {
					return err
				}
			}
			return write(packedEnd, blank[:1024])
		})
		if err != nil {
			return descriptor{}, err
		}
		base, err := w.busyboxLayer(gzipped)
		if err != nil {
			return descriptor{}, err
		}
		l := layer{blob, "sha256:" + hex.EncodeToString(diff.Sum(nil)), gzipped}
		return w.addImage(image{layers: []layer{base, l}, config: config{Cmd: []string{"sh"}, Env: defaultEnv()}})
	}
}

func gzipBytes(content []byte) ([]byte, error) {
	var out bytes.Buffer
	z, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := z.Write(content); err != nil {
		return nil, fmt.Errorf("compress: %w", err)
	}
	if err := z.Close(); err != nil {
		return nil, fmt.Errorf("compress: %w", err)
	}
	return out.Bytes(), nil
}
