package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"
	"golang.org/x/tools/txtar"

	"gantry/internal/disk"
	"gantry/internal/pod"
)

var update = flag.Bool("update", false, "write golden files")

// TestRemoveDamaged: an image without a readable record is in nobody's way once it
// is removed by its ID.
func TestRemoveDamaged(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	inUse := ""
	s := newStore(t, func(c *Config) { c.InUse = func(id string) bool { return id == inUse } }, r)
	empty := filesOf(t, s)
	ref := r.push(t, "one:1", imageWith(t, v1.Config{}, gzLayer(t, file("base", "b"))))
	img := pullOf(t, s, ref)
	if err := s.RemoveDamaged(t.Context(), img.ID); !errors.Is(err, pod.ErrState) {
		t.Errorf("one that is whole: %v", err)
	}
	if err := os.WriteFile(filepath.Join(s.imageDir(hexOf(img.ID)), recordFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.GC(t.Context(), GCOptions{Images: true}); err == nil || !strings.Contains(err.Error(), img.ID) {
		t.Errorf("gc does not name the damaged image: %v", err)
	}
	inUse = img.ID
	if err := s.RemoveDamaged(t.Context(), img.ID); !errors.Is(err, pod.ErrState) {
		t.Errorf("one in use: %v", err)
	}
	inUse = ""
	if err := s.RemoveDamaged(t.Context(), img.ID); err != nil {
		t.Error(err)
	}
	for _, id := range []string{img.ID, img.ID[:20], "../../etc", ""} {
		if err := s.RemoveDamaged(t.Context(), id); !errors.Is(err, pod.ErrNotFound) {
			t.Errorf("%q: %v", id, err)
		}
	}
	if _, err := s.GC(t.Context(), GCOptions{Images: true}); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(empty, filesOf(t, s)); diff != "" {
		t.Errorf("left: %s", diff)
	}
}

func TestRemove(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	inUse := ""
	s := newStore(t, func(c *Config) { c.InUse = func(id string) bool { return id == inUse } }, r)
	empty := filesOf(t, s)
	base := gzLayer(t, file("base", "b"))
	one := r.push(t, "one:1", imageWith(t, v1.Config{}, base))
	r.push(t, "one:2", imageWith(t, v1.Config{}, base))
	two := r.push(t, "two:1", imageWith(t, v1.Config{}, base, gzLayer(t, file("top", "t"))))
	img := pullOf(t, s, one)
	alone := filesOf(t, s)
	second := pullOf(t, s, two)

	inUse = second.ID
	if err := s.Remove(t.Context(), two); !errors.Is(err, pod.ErrState) {
		t.Errorf("in use: %v", err)
	}
	inUse = ""
	for range 2 {
		if err := s.Remove(t.Context(), two); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(alone, filesOf(t, s)); diff != "" {
		t.Errorf("the other image's files: %s", diff)
	}
	pullOf(t, s, strings.Replace(one, ":1", ":2", 1))
	if err := s.Untag(t.Context(), one); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Image(img.ID); err != nil || len(got.Tags) != 1 {
		t.Errorf("after untag: %+v, %v", got, err)
	}
	if _, err := s.Image(one); !errors.Is(err, pod.ErrNotFound) {
		t.Errorf("the name that was taken: %v", err)
	}
	if err := s.Untag(t.Context(), strings.Replace(one, ":1", ":2", 1)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(empty, filesOf(t, s)); diff != "" {
		t.Errorf("left: %s", diff)
	}
}

func TestGC(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	s := newStore(t, nil, r)
	ref := r.push(t, "keep:1", imageWith(t, v1.Config{}, gzLayer(t, file("f", "x"))))
	pullOf(t, s, ref)
	whole := filesOf(t, s)
	left := strings.Repeat("a", 64)
	write(t, s.layerPath(left), "layer")
	write(t, s.blobPath(left), "blob")
	write(t, filepath.Join(s.dir(dirRefs), ".half.json.1"), "")
	if err := s.writeRef("docker.io/library/gone:1", idPrefix+left); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"prepare/layer-" + left, "prepare/pull-x", "prepare/image-y", "garbage/image-z", "prepare/somebody-elses"} {
		if err := os.Mkdir(filepath.Join(s.cfg.Root, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	busy, err := s.work(t.Context(), "layer-busy")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.close()
	dry, err := s.GC(t.Context(), GCOptions{DryRun: true})
	if err != nil {
		t.Fatal(err)
	}
	did, err := s.GC(t.Context(), GCOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(kinds(dry), kinds(did)); diff != "" {
		t.Errorf("dry run and run differ: %s", diff)
	}
	if diff := cmp.Diff(map[string]int{"directory": 4, "layer": 1, "blob": 1, "ref": 2}, kinds(did)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(whole+"prepare/layer-busy\nprepare/somebody-elses\n", sorted(filesOf(t, s), "prepare/layer-busy", "prepare/somebody-elses")); diff != "" {
		t.Error(diff)
	}
	if items, err := s.GC(t.Context(), GCOptions{Images: true}); err != nil || len(items) != 0 {
		t.Errorf("no Keep: %v, %v", items, err)
	}
	items, err := s.GC(t.Context(), GCOptions{Images: true, Keep: func(string) bool { return false }})
	if err != nil || kinds(items)["image"] != 1 {
		t.Errorf("images: %v, %v", items, err)
	}
	if images, err := s.Images(); err != nil || len(images) != 0 {
		t.Errorf("images = %v, %v", images, err)
	}
}

// sorted moves lines to the end.
func sorted(list string, last ...string) string {
	for _, l := range last {
		list = strings.Replace(list, l+"\n", "", 1) + l + "\n"
	}
	return list
}

func kinds(items []GCItem) map[string]int {
	out := map[string]int{}
	for _, i := range items {
		out[i.Kind]++
	}
	return out
}

// TestGCFailsClosed: with a record that cannot be read, nobody knows which layers
// are needed.
func TestGCFailsClosed(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	s := newStore(t, nil, r)
	img := pullOf(t, s, r.push(t, "one:1", imageWith(t, v1.Config{}, gzLayer(t, file("f", "1")))))
	other := pullOf(t, s, r.push(t, "two:1", imageWith(t, v1.Config{}, gzLayer(t, file("f", "2")))))
	record := filepath.Join(s.imageDir(hexOf(img.ID)), recordFile)
	if err := os.WriteFile(record, []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * tick) // records never change otherwise: let the memory of them end
	if err := os.Chtimes(s.dir(dirImages), time.Time{}, time.Now()); err != nil {
		t.Fatal(err)
	}
	if items, err := s.GC(t.Context(), GCOptions{Images: true, Keep: func(string) bool { return false }}); err == nil || len(items) > 0 {
		t.Errorf("gc = %v, %v", items, err)
	}
	if err := s.Remove(t.Context(), other.ID); err != nil {
		t.Error(err)
	}
	if !disk.Exists(s.layerPath(hexOf(img.Layers[0].DiffID))) {
		t.Error("the layer is gone")
	}
	if images, err := s.Images(); err != nil || len(images) != 0 {
		t.Errorf("images = %v, %v", images, err)
	}
	// The next pull repairs it.
	pullOf(t, s, img.Tags[0])
	if _, err := s.GC(t.Context(), GCOptions{}); err != nil {
		t.Error(err)
	}
}

// TestGCDuringPull runs GC all the time while an image is pulled again and again.
func TestGCDuringPull(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	var layers []v1.Layer
	for i := range 4 {
		layers = append(layers, gzLayer(t, file(fmt.Sprintf("f%d", i), strings.Repeat("x", 1000))))
	}
	ref := r.push(t, "gc:1", imageWith(t, v1.Config{}, layers...))
	s := newStore(t, nil, r)
	other, err := Open(t.Context(), s.cfg)
	if err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond): // who waits for the lock asks now and then
			}
			if _, err := other.GC(t.Context(), GCOptions{}); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	for range 20 {
		img := pullOf(t, s, ref)
		if tree := treeOf(t, s, img); strings.Count(tree, "\n") != 5 {
			t.Errorf("tree = %s", tree)
		}
		if err := s.Remove(t.Context(), img.ID); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	<-done
}

func TestBrokenPulls(t *testing.T) {
	t.Parallel()
	raw := archiveOf(t, file("f", strings.Repeat("content ", 100000)))
	good := layerOf(raw, gzipped(t, raw), types.DockerLayer)
	blob := gzipped(t, raw)
	wrong := bytes.Clone(raw)
	wrong[len(wrong)-1] ^= 1
	var unreachable string
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	unreachable = l.Addr().String()
	l.Close()
	isLayer := func(q *http.Request) bool {
		d, _ := good.Digest()
		return q.Method == http.MethodGet && strings.HasSuffix(q.URL.Path, d.String())
	}
	for name, c := range map[string]struct {
		layer v1.Layer
		wrap  func(http.ResponseWriter, *http.Request, http.Handler)
		ref   string
		want  error
		says  string
	}{
		"no registry":   {ref: unreachable + "/a:1", want: pod.ErrUnavailable, says: "read manifest"},
		"no image":      {ref: "HOST/not/there:1", want: pod.ErrNotFound, says: "read manifest"},
		"no tag":        {ref: "HOST/a:2", want: pod.ErrNotFound, says: "read manifest"},
		"bad name":      {ref: "UPPER", want: pod.ErrInvalid, says: "UPPER"},
		"diff ID":       {layer: layerOf(wrong, blob, types.DockerLayer), want: pod.ErrInvalid, says: "the image's config says"},
		"no archive":    {layer: layerOf([]byte("x"), gzipped(t, bytes.Repeat([]byte("x"), 1000)), types.DockerLayer), want: pod.ErrInvalid, says: "read archive"},
		"broken gzip":   {layer: layerOf(raw, append(bytes.Clone(blob[:200]), bytes.Repeat([]byte{1}, 500)...), types.DockerLayer), want: pod.ErrInvalid, says: "fetch layer 2 of 2"},
		"half a stream": {layer: layerOf(raw, blob[:len(blob)/2], types.DockerLayer), want: pod.ErrInvalid, says: "fetch layer 2 of 2"},
		"half a tar":    {layer: layerOf(raw, raw[:2000], types.DockerLayer), want: pod.ErrInvalid, says: "unexpected EOF"},
		"xz":            {layer: layerOf(raw, append([]byte("\xfd7zXZ\x00"), raw...), types.DockerLayer), want: pod.ErrUnsupported, says: "xz"},
		"a terabyte": {layer: func() v1.Layer {
			head := archiveOf(t, entry{name: "zeros", size: 1 << 40})
			return layerOf(head, gzipped(t, head), types.DockerLayer)
		}(), want: pod.ErrInvalid, says: "file of 1099511627776 bytes"},
		"other content": {wrap: func(w http.ResponseWriter, q *http.Request, next http.Handler) {
			if isLayer(q) {
				other := bytes.Clone(blob)
				other[4] ^= 0xff // its time
				w.Write(other)
				return
			}
			next.ServeHTTP(w, q)
		}, want: pod.ErrInvalid, says: "download has digest"},
		"too long": {wrap: func(w http.ResponseWriter, q *http.Request, next http.Handler) {
			if isLayer(q) {
				w.Write(append(bytes.Clone(blob), blob...))
				return
			}
			next.ServeHTTP(w, q)
		}, want: pod.ErrInvalid, says: "longer than"},
		"cut off": {wrap: func(w http.ResponseWriter, q *http.Request, next http.Handler) {
			if isLayer(q) {
				w.Write(blob[:100])
				panic(http.ErrAbortHandler)
			}
			next.ServeHTTP(w, q)
		}, want: pod.ErrUnavailable, says: "fetch layer 2 of 2"},
		"no such blob": {wrap: func(w http.ResponseWriter, q *http.Request, next http.Handler) {
			if isLayer(q) {
				http.NotFound(w, q)
				return
			}
			next.ServeHTTP(w, q)
		}, want: pod.ErrNotFound, says: "download"},
		"server error": {wrap: func(w http.ResponseWriter, q *http.Request, next http.Handler) {
			http.Error(w, "out of order", http.StatusBadGateway)
		}, want: pod.ErrUnavailable, says: "read manifest"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t)
			layer := c.layer
			if layer == nil {
				layer = good
			}
			base := gzLayer(t, file("base", "b"))
			pushed := r.push(t, "a:1", imageWith(t, v1.Config{}, base, layer))
			s := newStore(t, nil, r)
			pullOf(t, s, r.push(t, "base:1", imageWith(t, v1.Config{}, base)))
			before := filesOf(t, s)
			r.setWrap(c.wrap)
			ref := strings.ReplaceAll(c.ref, "HOST", r.host)
			if ref == "" {
				ref = pushed
			}
			_, err := s.Pull(contextWith(t, time.Minute), ref, PullOptions{})
			if !errors.Is(err, c.want) || !strings.Contains(fmt.Sprint(err), c.says) {
				t.Errorf("error = %v, want %v that says %q", err, c.want, c.says)
			}
			if name != "bad name" && !strings.Contains(fmt.Sprint(err), "(after ") {
				t.Errorf("error names no duration: %v", err)
			}
			if diff := cmp.Diff(before, filesOf(t, s)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// All trees of an image are in memory at once: they are bounded together, also
// where its layers came one by one with other images.
func TestManyEntriesInAll(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	s := newStore(t, nil, r)
	s.ledger.maxEntries = 6
	before := filesOf(t, s)
	one := gzLayer(t, file("a", ""), file("b", ""), file("c", ""))
	two := gzLayer(t, file("d", ""), file("e", ""), file("f", ""), file("g", ""))
	both := r.push(t, "both:1", imageWith(t, v1.Config{}, one, two))
	refused := func() {
		t.Helper()
		if _, err := s.Pull(t.Context(), both, PullOptions{}); !errors.Is(err, pod.ErrInvalid) || !strings.Contains(err.Error(), "entries") {
			t.Errorf("error = %v", err)
		}
	}
	refused()
	if diff := cmp.Diff(before, filesOf(t, s)); diff != "" {
		t.Error(diff)
	}
	for i, l := range []v1.Layer{one, two} {
		pullOf(t, s, r.push(t, fmt.Sprintf("part%d:1", i), imageWith(t, v1.Config{}, l)))
	}
	refused()
}

// Layers that are there already count like those that come: their trees are all in
// memory while they are merged.
func TestMuchMemoryInAll(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	s := newStore(t, nil, r)
	deep := func(name string) v1.Layer { return gzLayer(t, file(name+strings.Repeat("/d", 50), "")) }
	one, two := deep("a"), deep("b")
	both := r.push(t, "both:1", imageWith(t, v1.Config{}, one, two))
	s.ledger.maxMemory = 90 << 10
	for i, l := range []v1.Layer{one, two} {
		pullOf(t, s, r.push(t, fmt.Sprintf("part%d:1", i), imageWith(t, v1.Config{}, l)))
	}
	if _, err := s.Pull(t.Context(), both, PullOptions{}); !errors.Is(err, pod.ErrInvalid) || !strings.Contains(err.Error(), "bytes of memory") {
		t.Errorf("error = %v", err)
	}
	if got := s.ledger.left.Load(); got != allMemory {
		t.Errorf("%d bytes are taken when nothing is under way", allMemory-got)
	}
	s.ledger.maxMemory = maxMemory
	pullOf(t, s, both)
}

// A record that is too large to be read back would keep GC from removing anything,
// for good. A config may have 4 MiB, and JSON can make more of it.
func TestHugeConfig(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	s := newStore(t, nil, r)
	escaped := strings.Repeat("<", 3<<20)
	for name, c := range map[string]struct {
		config v1.Config
		want   error
	}{
		"labels":      {v1.Config{Labels: map[string]string{"a": escaped}}, nil},
		"environment": {v1.Config{Env: []string{"A=" + escaped}}, nil},
		"command":     {v1.Config{Cmd: make([]string, 1_300_000)}, pod.ErrInvalid},
	} {
		ref := r.push(t, name+":1", plainConfig{imageWith(t, c.config, gzLayer(t, file(name, "x")))})
		before := filesOf(t, s)
		_, err := s.Pull(t.Context(), ref, PullOptions{})
		if !errors.Is(err, c.want) || err != nil && !strings.Contains(err.Error(), "at most 8388608 are read") {
			t.Errorf("%s: error = %v", name, err)
		}
		if diff := cmp.Diff(before, filesOf(t, s)); diff != "" && err != nil {
			t.Error(diff)
		}
		if _, err := s.GC(t.Context(), GCOptions{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// plainConfig is an image whose config has its characters as they are.
type plainConfig struct{ v1.Image }

func (p plainConfig) RawConfigFile() ([]byte, error) {
	raw, err := p.Image.RawConfigFile()
	return bytes.ReplaceAll(raw, []byte(`\u003c`), []byte("<")), err
}

func (p plainConfig) ConfigName() (v1.Hash, error) { return partial.ConfigName(p) }

func (p plainConfig) Manifest() (*v1.Manifest, error) {
	m, err := p.Image.Manifest()
	if err != nil {
		return nil, err
	}
	raw, err := p.RawConfigFile()
	if err != nil {
		return nil, err
	}
	m = m.DeepCopy()
	m.Config.Size = int64(len(raw))
	m.Config.Digest, err = p.ConfigName()
	return m, err
}

func (p plainConfig) RawManifest() ([]byte, error) {
	m, err := p.Manifest()
	if err != nil {
		return nil, err
	}
	return json.Marshal(m)
}

func (p plainConfig) Digest() (v1.Hash, error) { return partial.Digest(p) }

// TestKeptLayers: what was finished before the connection broke is not fetched
// again.
func TestKeptLayers(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	first, second := gzLayer(t, file("a", "1")), gzLayer(t, file("b", "2"))
	ref := r.push(t, "a:1", imageWith(t, v1.Config{}, first, second))
	s := newStore(t, func(c *Config) { c.Parallel = 1 }, r)
	d, err := second.Digest()
	if err != nil {
		t.Fatal(err)
	}
	r.setWrap(func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		if strings.HasSuffix(q.URL.Path, d.String()) {
			http.Error(w, "", http.StatusServiceUnavailable)
			return
		}
		next.ServeHTTP(w, q)
	})
	if _, err := s.Pull(t.Context(), ref, PullOptions{}); !errors.Is(err, pod.ErrUnavailable) {
		t.Fatalf("error = %v", err)
	}
	r.setWrap(nil)
	pullOf(t, s, ref)
	if n := r.blobs("GET"); n != 2 {
		t.Errorf("%d downloads, want 2: config and second layer", n)
	}
}

func TestKeepBlobs(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	l := gzLayer(t, file("a", "1"))
	d, err := l.Digest()
	if err != nil {
		t.Fatal(err)
	}
	s := newStore(t, func(c *Config) { c.KeepBlobs = true }, r)
	img := pullOf(t, s, r.push(t, "a:1", imageWith(t, v1.Config{}, l)))
	if !disk.Exists(s.blobPath(d.Hex)) {
		t.Error("the blob was not kept")
	}
	if items, err := s.GC(t.Context(), GCOptions{}); err != nil || len(items) > 0 {
		t.Errorf("gc = %v, %v", items, err)
	}
	if err := s.Remove(t.Context(), img.ID); err != nil {
		t.Fatal(err)
	}
	if disk.Exists(s.blobPath(d.Hex)) {
		t.Error("the blob outlived its image")
	}
}

func TestSecrets(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	s := newStore(t, nil, r)
	img := pullOf(t, s, r.push(t, "a:1", imageWith(t, v1.Config{Env: []string{"TOKEN=hunter2"}}, gzLayer(t, file("a", "1")))))
	err := filepath.WalkDir(s.cfg.Root, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		if bytes.Contains(data, []byte("hunter2")) && st.Mode&0o077 != 0 {
			t.Errorf("%s has mode %o", path, st.Mode)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{dirLayers, dirBlobs, dirPrepare} {
		if st, err := os.Stat(s.dir(dir)); err != nil || st.Mode()&0o077 != 0 {
			t.Errorf("%s: %v, %v", dir, st.Mode(), err)
		}
	}
	if img.Config.Env[0] != "TOKEN=hunter2" {
		t.Errorf("env = %v", img.Config.Env)
	}
}

func TestInfo(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	s := newStore(t, nil, r)
	before, err := s.Info()
	if err != nil {
		t.Fatal(err)
	}
	pullOf(t, s, r.push(t, "a:1", imageWith(t, v1.Config{}, gzLayer(t, file("a", strings.Repeat("x", 1<<20))))))
	after, err := s.Info()
	if err != nil || after.UsedBytes < before.UsedBytes+1<<20 || after.Inodes <= before.Inodes || after.Mountpoint != s.cfg.Root {
		t.Errorf("info = %+v after %+v, %v", after, before, err)
	}
}

func TestTree(t *testing.T) {
	t.Parallel()
	img := &Image{ID: idPrefix + strings.Repeat("ab", 32), Tags: []string{"docker.io/library/app:1"}, Layers: []Layer{
		{DiffID: idPrefix + strings.Repeat("1", 64)}, {DiffID: idPrefix + strings.Repeat("2", 64)}, {DiffID: idPrefix + strings.Repeat("1", 64)},
	}}
	var got txtar.Archive
	for _, mode := range []MountMode{MountFile, MountLoop} {
		s := &Store{cfg: Config{Root: "/var/lib/gantry", Run: "/run/gantry"}, mode: mode}
		tree := s.Tree(img)
		if err := tree.Mount.Validate(); err != nil {
			t.Error(err)
		}
		got.Files = append(got.Files, txtar.File{Name: string(mode), Data: fmt.Appendf(nil, "%s\n%s\n%s", tree.Path, tree.Mount.Name, tree.Mount.Text())})
	}
	golden := "testdata/tree.txtar"
	if *update {
		if err := os.WriteFile(golden, txtar.Format(&got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(txtar.Format(&got))); diff != "" {
		t.Error(diff)
	}
}

// TestFlat reads an image through its flat copy, as a loop device would have it.
func TestFlat(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	ref := r.push(t, "a:1", imageWith(t, v1.Config{}, gzLayer(t, entry{name: "./"}, file("a", "1"), link("h", "a")), gzLayer(t, entry{name: "./"}, file("b", strings.Repeat("2", 10000)))))
	s := newStore(t, nil, r)
	img := pullOf(t, s, ref)
	want := treeOf(t, s, img)
	s.mode = MountLoop // booted with another kernel
	if err := s.EnsureTree(t.Context(), img.ID); err != nil {
		t.Fatal(err)
	}
	flat := filepath.Join(s.imageDir(hexOf(img.ID)), flatFile)
	if diff := cmp.Diff(want, layerTree(t, flat)); diff != "" {
		t.Error(diff)
	}
	first, err := os.ReadFile(flat)
	if err != nil {
		t.Fatal(err)
	}
	loop := newStore(t, func(c *Config) { c.Mount = MountLoop }, r)
	pullOf(t, loop, ref)
	second, err := os.ReadFile(filepath.Join(loop.imageDir(hexOf(img.ID)), flatFile))
	if err != nil || !bytes.Equal(first, second) {
		t.Errorf("a flat copy made at the pull is another one: %v", err)
	}
}

func TestHasPath(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	lower := gzLayer(t, entry{name: "./"}, entry{name: "d/"}, file("d/gone", "1"), file("d/kept", "1"))
	upper := gzLayer(t, entry{name: "./"}, file("d/.wh.gone", ""), symlink("way", "d/kept"), symlink("loop", "loop"), symlink("up", "../../../d"),
		symlink("around", "up/../up/kept"))
	s := newStore(t, nil, r)
	img := pullOf(t, s, r.push(t, "a:1", imageWith(t, v1.Config{}, lower, upper)))
	for path, want := range map[string]bool{
		"d": true, "d/": true, "/d/kept": true, "way": true, "up/kept": true,
		"d/gone": false, "none": false, "d/kept/x": false, "loop": false, "../../d": true, "around": true,
	} {
		if got, err := s.HasPath(img.ID, path); got != want || err != nil {
			t.Errorf("HasPath(%q) = %v, %v", path, got, err)
		}
	}
	if _, err := s.HasPath("sha256:"+strings.Repeat("0", 64), "d"); err == nil {
		t.Error("an image that is not there has a path")
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	for _, c := range []Config{{}, {Root: "relative", Run: "/run"}, {Root: "/a,b", Run: "/run"}} {
		if _, err := Open(t.Context(), c); !errors.Is(err, pod.ErrInvalid) {
			t.Errorf("Open(%+v) = %v", c, err)
		}
	}
}

func FuzzName(f *testing.F) {
	for _, s := range []string{"nginx", "a/b:c@sha256:" + strings.Repeat("0", 64), "host:5000/x", "..", "sha256:" + strings.Repeat("1", 64)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		named, err := parseName(s)
		if err != nil {
			if !errors.Is(err, pod.ErrInvalid) {
				t.Error(err)
			}
			return
		}
		again, err := parseName(named.String())
		if err != nil || again.String() != named.String() {
			t.Errorf("%q is %q, which is %v (%v)", s, named, again, err)
		}
		if f := refFile(named.String()); len(f) > 255 || strings.Contains(f, "/") {
			t.Errorf("file = %q", f)
		}
	})
}

func FuzzRecord(f *testing.F) {
	hex := strings.Repeat("a", 64)
	f.Add([]byte(`{"version":1,"id":"sha256:`+hex+`","manifests":["sha256:`+hex+`"],"layers":[{"diffID":"sha256:`+hex+`","size":1}]}`), []byte(`{"version":1,"name":"a","image":"sha256:`+hex+`"}`))
	f.Add([]byte(`{"version":1,"id":"../../etc"}`), []byte(`{}`))
	f.Fuzz(func(t *testing.T, record, ref []byte) {
		if r, err := parseRecord(record); err == nil {
			img := r.image()
			for path := range img.files().layers {
				if len(path) != 64 || !isHex(path) {
					t.Errorf("layer %q", path)
				}
			}
		}
		if r, err := parseRef(ref); err == nil && hexOf(r.Image) == "" {
			t.Errorf("image %q", r.Image)
		}
	})
}

// TestProbeIsWaitedFor: two programs start at the same time, and one of them asks
// the kernel. Both must mount images in the same way.
func TestProbeIsWaitedFor(t *testing.T) {
	t.Parallel()
	s := newStore(t, func(c *Config) { c.Run = t.TempDir() })
	w, err := s.work(t.Context(), imagePrefix+"probe")
	if err != nil {
		t.Fatal(err)
	}
	found := make(chan MountMode)
	go func() { found <- s.probeMount(t.Context()) }()
	select {
	case m := <-found:
		t.Errorf("another probe was not waited for: %s", m)
	case <-time.After(100 * time.Millisecond):
	}
	if err := os.WriteFile(filepath.Join(s.cfg.Run, probeFile), []byte("loop\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := w.close(); err != nil {
		t.Fatal(err)
	}
	if m := <-found; m != MountLoop {
		t.Errorf("the other program found loop, and this one %s", m)
	}
}
