package main

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/klauspost/compress/zstd"
)

// entry is one member of a layer.
type entry struct {
	tar.Header
	body func() (io.ReadCloser, error) // nil for none
}

func dir(path string, mode int64) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: path + "/", Mode: mode}}
}

func file(path string, mode int64, content string) entry {
	return bytesFile(path, mode, []byte(content))
}

func bytesFile(path string, mode int64, content []byte) entry {
	return entry{
		Header: tar.Header{Typeflag: tar.TypeReg, Name: path, Mode: mode, Size: int64(len(content))},
		body:   func() (io.ReadCloser, error) { return io.NopCloser(newReader(content)), nil },
	}
}

func symlink(path, target string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: path, Linkname: target, Mode: 0o777}}
}

func hardlink(path, target string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeLink, Name: path, Linkname: target, Mode: 0o755}}
}

func device(path string, kind byte, major, minor int64) entry {
	return entry{Header: tar.Header{Typeflag: kind, Name: path, Mode: 0o666, Devmajor: major, Devminor: minor}}
}

// owned gives an entry to somebody.
func (e entry) owned(uid, gid int) entry {
	e.Uid, e.Gid = uid, gid
	return e
}

// xattr adds an extended attribute.
func (e entry) xattr(name, value string) entry {
	records := map[string]string{"SCHILY.xattr." + name: value}
	for k, v := range e.PAXRecords {
		records[k] = v
	}
	e.PAXRecords = records
	return e
}

// hostFile copies a file of this machine into a layer.
func hostFile(root, source, target string, mode int64) (entry, error) {
	info, err := os.Stat(root + source)
	if err != nil {
		return entry{}, fmt.Errorf("copy host file: %w", err)
	}
	return entry{
		Header: tar.Header{Typeflag: tar.TypeReg, Name: target, Mode: mode, Size: info.Size()},
		body:   func() (io.ReadCloser, error) { return os.Open(root + source) },
	}, nil
}

// compression of a layer; the names are those of media types' suffixes.
type compression string

const (
	gzipped   compression = "gzip"
	zstandard compression = "zstd"
	plain     compression = ""
)

// layer is a stored layer.
type layer struct {
	blob   descriptor // without a media type, which depends on the image's format
	diffID string
	kind   compression
}

// writeTar writes a layer's members. All times are one, so that the same
// content is the same layer.
func writeTar(w io.Writer, entries []entry) error {
	t := tar.NewWriter(w)
	for _, e := range entries {
		h := e.Header
		h.ModTime = time.Unix(1700000000, 0)
		h.Format = tar.FormatPAX
		if err := t.WriteHeader(&h); err != nil {
			return fmt.Errorf("write %q: %w", h.Name, err)
		}
		if e.body == nil {
			continue
		}
		if err := copyBody(t, e); err != nil {
			return fmt.Errorf("write %q: %w", h.Name, err)
		}
	}
	return t.Close()
}

func copyBody(w io.Writer, e entry) error {
	body, err := e.body()
	if err != nil {
		return err
	}
	defer body.Close()
	_, err = io.Copy(w, body)
	return err
}

func compressor(w io.Writer, kind compression) (io.WriteCloser, error) {
	switch kind {
	case gzipped:
		return gzip.NewWriterLevel(w, gzip.BestSpeed)
	case zstandard:
		return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	default:
		return nopCloser{w}, nil
	}
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// addLayer packs entries.
func (s store) addLayer(kind compression, entries ...entry) (layer, error) {
	return s.addLayerFrom(kind, func(w io.Writer) error { return writeTar(w, entries) })
}

// addLayerFrom packs whatever write writes, be it a tar archive or not.
func (s store) addLayerFrom(kind compression, write func(io.Writer) error) (layer, error) {
	diff := sha256.New()
	blob, err := s.add(func(w io.Writer) error {
		c, err := compressor(w, kind)
		if err != nil {
			return err
		}
		if err := write(io.MultiWriter(c, diff)); err != nil {
			return err
		}
		return c.Close()
	})
	if err != nil {
		return layer{}, err
	}
	return layer{blob, "sha256:" + hex.EncodeToString(diff.Sum(nil)), kind}, nil
}
