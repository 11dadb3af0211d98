package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	ggcr "github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
)

// entry is one entry of a test layer. A name that ends in / is a directory.
type entry struct {
	name, data, link string
	kind             byte
	mode             int64
	uid, gid         int
	xattrs           map[string]string
	major, minor     int64
	size             int64 // if not that of data: nothing is written
}

func archiveOf(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{
			Name: e.name, Linkname: e.link, Typeflag: e.kind, Mode: e.mode, Uid: e.uid, Gid: e.gid,
			Size: int64(len(e.data)), Devmajor: e.major, Devminor: e.minor, ModTime: time.Unix(1700000000, 0), Format: tar.FormatPAX,
		}
		switch {
		case h.Typeflag != 0:
		case strings.HasSuffix(e.name, "/"):
			h.Typeflag = tar.TypeDir
		default:
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o644
			if h.Typeflag == tar.TypeDir {
				h.Mode = 0o755
			}
		}
		if len(e.xattrs) > 0 {
			h.PAXRecords = map[string]string{}
			for k, v := range e.xattrs {
				h.PAXRecords["SCHILY.xattr."+k] = v
			}
		}
		if e.size > 0 {
			h.Size = e.size
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.data); err != nil {
			t.Fatal(err)
		}
		if e.size > 0 {
			return b.Bytes()
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gzipped(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zstded(t testing.TB, data []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll(data, nil)
}

// testLayer is a layer of any bytes, with any digests.
type testLayer struct {
	v1.Layer
	diffID v1.Hash
}

func (l testLayer) DiffID() (v1.Hash, error) { return l.diffID, nil }

func layerOf(raw, blob []byte, media types.MediaType) v1.Layer {
	sum := sha256.Sum256(raw)
	return testLayer{static.NewLayer(blob, media), v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}}
}

// gzLayer is the usual layer.
func gzLayer(t testing.TB, entries ...entry) v1.Layer {
	raw := archiveOf(t, entries...)
	return layerOf(raw, gzipped(t, raw), types.DockerLayer)
}

func imageWith(t testing.TB, config v1.Config, layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		t.Fatal(err)
	}
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture, cf.Config = "linux", "amd64", config
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		t.Fatal(err)
	}
	return img
}

// testRegistry is a registry in this process. Its handler can be wrapped.
type testRegistry struct {
	*httptest.Server
	host string

	mu       sync.Mutex
	wrap     func(http.ResponseWriter, *http.Request, http.Handler)
	requests []string
}

func newRegistry(t testing.TB) *testRegistry {
	t.Helper()
	inner := registry.New(registry.Logger(nopLogger()))
	r := &testRegistry{}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		r.requests = append(r.requests, req.Method+" "+req.URL.Path)
		wrap := r.wrap
		r.mu.Unlock()
		if wrap != nil {
			wrap(w, req, inner)
			return
		}
		inner.ServeHTTP(w, req)
	}))
	t.Cleanup(r.Close)
	r.host = strings.TrimPrefix(r.URL, "http://")
	return r
}

func (r *testRegistry) setWrap(f func(http.ResponseWriter, *http.Request, http.Handler)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wrap, r.requests = f, nil
}

// blobs counts the downloads of layers and configs.
func (r *testRegistry) blobs(method string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, q := range r.requests {
		if strings.HasPrefix(q, method+" ") && strings.Contains(q, "/blobs/sha256:") {
			n++
		}
	}
	return n
}

// push puts an image or index into the registry and returns its name.
func (r *testRegistry) push(t testing.TB, tag string, img ggcr.Taggable) string {
	t.Helper()
	ref, err := name.ParseReference(r.host+"/"+tag, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	switch img := img.(type) {
	case v1.Image:
		err = ggcr.Write(ref, img)
	case v1.ImageIndex:
		err = ggcr.WriteIndex(ref, img)
	default:
		err = ggcr.Put(ref, img)
	}
	if err != nil {
		t.Fatal(err)
	}
	return r.host + "/" + tag
}

// newStore opens a store that knows the registries.
func newStore(t testing.TB, change func(*Config), registries ...*testRegistry) *Store {
	t.Helper()
	dir := t.TempDir()
	var conf strings.Builder
	for _, r := range registries {
		fmt.Fprintf(&conf, "[[registry]]\nlocation = %q\ninsecure = true\n", r.host)
	}
	write(t, filepath.Join(dir, "registries.conf"), conf.String())
	write(t, filepath.Join(dir, "policy.json"), `{"default":[{"type":"insecureAcceptAnything"}]}`)
	write(t, filepath.Join(dir, "auth.json"), `{}`)
	if err := os.Mkdir(filepath.Join(dir, "registries.conf.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Root: filepath.Join(dir, "root"), Run: filepath.Join(dir, "run"), Mount: MountFile,
		RegistriesConf: filepath.Join(dir, "registries.conf"), RegistriesConfDir: filepath.Join(dir, "registries.conf.d"),
		PolicyFile: filepath.Join(dir, "policy.json"), AuthFile: filepath.Join(dir, "auth.json"),
		Log: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	}
	if change != nil {
		change(&cfg)
	}
	s, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func write(t testing.TB, path, data string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
}

func pullOf(t testing.TB, s *Store, ref string) *Image {
	t.Helper()
	img, err := s.Pull(t.Context(), ref, PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// treeOf prints an image's merged tree: path, mode, owner, and what is in it.
func treeOf(t testing.TB, s *Store, img *Image) string {
	t.Helper()
	u, err := s.openImage(img)
	if err != nil {
		t.Fatal(err)
	}
	defer u.close()
	return printTree(t, u.tree)
}

// files lists all files of a store but those of configuration.
func filesOf(t testing.TB, s *Store) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(s.cfg.Root, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(s.cfg.Root, path)
		if err != nil {
			return err
		}
		b.WriteString(rel + "\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func contextWith(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
