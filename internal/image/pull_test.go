package image

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"gantry/internal/pod"
)

func TestPullFormats(t *testing.T) {
	t.Parallel()
	raw := archiveOf(t, entry{name: "./"}, entry{name: "etc/"}, entry{name: "etc/hostname", data: "one\n"})
	for name, layer := range map[string]v1.Layer{
		"gzip":             layerOf(raw, gzipped(t, raw), types.DockerLayer),
		"zstd":             layerOf(raw, zstded(t, raw), types.OCILayerZStd),
		"tar":              layerOf(raw, raw, types.OCIUncompressedLayer),
		"two gzip members": layerOf(raw, append(gzipped(t, raw[:700]), gzipped(t, raw[700:])...), types.OCILayer),
		"wrong media type": layerOf(raw, zstded(t, raw), types.OCILayer),
	} {
		for _, media := range []types.MediaType{types.DockerManifestSchema2, types.OCIManifestSchema1} {
			if mt, _ := layer.MediaType(); media == types.DockerManifestSchema2 && mt != types.DockerLayer {
				continue // such manifests have layers of their own types only
			}
			t.Run(name+" "+string(media), func(t *testing.T) {
				t.Parallel()
				r := newRegistry(t)
				img := imageWith(t, v1.Config{Env: []string{"A=b"}, Cmd: []string{"sh"}}, layer)
				img = mutate.MediaType(img, media)
				if media == types.OCIManifestSchema1 {
					img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
				}
				ref := r.push(t, "a/b:1", img)
				s := newStore(t, nil, r)
				got := pullOf(t, s, ref)
				want := ". drwxr-xr-x 0:0\netc drwxr-xr-x 0:0\netc/hostname -rw-r--r-- 0:0 \"one\\n\"\n"
				if diff := cmp.Diff(want, treeOf(t, s, got)); diff != "" {
					t.Error(diff)
				}
				if got.ID == "" || got.Tags[0] != ref || got.Config.Env[0] != "A=b" || got.Config.Cmd[0] != "sh" || got.Size == 0 {
					t.Errorf("image = %+v", got)
				}
			})
		}
	}
}

// TestPullAnnotations: those of the image's own manifest, also by an index, if they are
// not too many to be in each list.
func TestPullAnnotations(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	annotated := func(name string, a map[string]string) v1.Image {
		img := mutate.MediaType(imageWith(t, v1.Config{}, gzLayer(t, entry{name: "name", data: name})), types.OCIManifestSchema1)
		img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
		return mutate.Annotations(img, a).(v1.Image)
	}
	few := map[string]string{"org.example.a": "b"}
	index := mutate.Annotations(mutate.AppendManifests(empty.Index, mutate.IndexAddendum{
		Add: annotated("by index", few), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}},
	}), map[string]string{"of.the": "index"}).(v1.ImageIndex)
	s := newStore(t, nil, r)
	for ref, want := range map[string]map[string]string{
		r.push(t, "a/few:1", annotated("few", few)):                                                   few,
		r.push(t, "a/index:1", index):                                                                 few,
		r.push(t, "a/none:1", annotated("none", nil)):                                                 nil,
		r.push(t, "a/many:1", annotated("many", map[string]string{"a": strings.Repeat("x", 17<<10)})): nil,
	} {
		id := pullOf(t, s, ref).ID
		got, err := s.Image(id)
		if err != nil || !maps.Equal(got.Annotations, want) {
			t.Errorf("%s: %d annotations, %v, want %v", ref, len(got.Annotations), err, want)
		}
	}
}

func TestPullIndexAndDigest(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	amd := imageWith(t, v1.Config{}, gzLayer(t, entry{name: "arch", data: "amd64"}))
	arm := imageWith(t, v1.Config{}, gzLayer(t, entry{name: "arch", data: "arm64"}))
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: arm, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64"}}},
		mutate.IndexAddendum{Add: amd, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}})
	ref := r.push(t, "multi:latest", index)
	digest, err := index.Digest()
	if err != nil {
		t.Fatal(err)
	}
	s := newStore(t, nil, r)
	for _, arch := range []string{"amd64", "arm64"} {
		img, err := s.Pull(t.Context(), strings.TrimSuffix(ref, ":latest")+"@"+digest.String(), PullOptions{Arch: arch})
		if err != nil {
			t.Fatal(err)
		}
		if got := treeOf(t, s, img); !strings.Contains(got, arch) {
			t.Errorf("%s: tree is %s", arch, got)
		}
		if len(img.Tags) != 0 || len(img.Digests) != 1 || !strings.HasSuffix(img.Digests[0], digest.String()) {
			t.Errorf("names = %v %v", img.Tags, img.Digests)
		}
	}
	if _, err := s.Pull(t.Context(), ref, PullOptions{Arch: "s390x"}); !errors.Is(err, pod.ErrNotFound) {
		t.Errorf("an architecture that is not there: %v", err)
	}
	tagged, err := s.Pull(t.Context(), ref+"@"+digest.String(), PullOptions{Arch: "amd64"})
	if err != nil || len(tagged.Tags) != 0 {
		t.Errorf("tag and digest: %+v, %v", tagged, err)
	}
	for _, n := range []string{tagged.ID, tagged.ID[7:], tagged.ID[7:19], tagged.Digests[0], ref + "@" + digest.String()} {
		if img, err := s.Image(n); err != nil || img.ID != tagged.ID {
			t.Errorf("Image(%q) = %v, %v", n, img, err)
		}
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"nginx":                                 "docker.io/library/nginx:latest",
		"nginx:1":                               "docker.io/library/nginx:1",
		"user/app":                              "docker.io/user/app:latest",
		"host:5000/a/b":                         "host:5000/a/b:latest",
		"registry.k8s.io/p:3.10":                "registry.k8s.io/p:3.10",
		"x:1@sha256:" + strings.Repeat("a", 64): "docker.io/library/x@sha256:" + strings.Repeat("a", 64),
	} {
		named, err := parseName(in)
		if err != nil || named.String() != want {
			t.Errorf("parseName(%q) = %v, %v, want %s", in, named, err, want)
		}
	}
	for _, in := range []string{"", "UPPER", "a b", "x:", "x@sha256:12", "-x", "http://x/y", strings.Repeat("a", 64)} {
		if named, err := parseName(in); !errors.Is(err, pod.ErrInvalid) {
			t.Errorf("parseName(%q) = %v, %v", in, named, err)
		}
	}
}

func TestSecondPullIsCheap(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	base := gzLayer(t, entry{name: "base", data: "b"})
	one := r.push(t, "one:1", imageWith(t, v1.Config{}, base))
	two := r.push(t, "two:1", imageWith(t, v1.Config{}, base, gzLayer(t, entry{name: "top", data: "t"})))
	s := newStore(t, nil, r)
	first := pullOf(t, s, one)
	r.setWrap(nil)
	if again := pullOf(t, s, one); again.ID != first.ID {
		t.Errorf("another image: %v", again)
	}
	if n := r.blobs("GET"); n != 1 {
		t.Errorf("a second pull made %d downloads, want 1 (the config)", n)
	}
	r.setWrap(nil)
	pullOf(t, s, two)
	if n := r.blobs("GET"); n != 2 {
		t.Errorf("an image with one new layer made %d downloads, want 2", n)
	}
	if images, err := s.Images(); err != nil || len(images) != 2 {
		t.Errorf("images = %v, %v", images, err)
	}
	if img, err := s.Pull(t.Context(), one, PullOptions{Policy: IfMissing}); err != nil || img.ID != first.ID {
		t.Errorf("IfMissing: %v, %v", img, err)
	}
	if _, err := s.Pull(t.Context(), "not/there", PullOptions{Policy: Never}); !errors.Is(err, pod.ErrNotFound) {
		t.Errorf("Never: %v", err)
	}
}

// TestPullRepairs: an image of which a file is gone is told of with the remedy, and a pull
// brings what is missing, whatever its policy. Nothing else is downloaded.
func TestPullRepairs(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	ref := r.push(t, "a:1", imageWith(t, v1.Config{}, gzLayer(t, entry{name: "./"}, file("a", "1")), gzLayer(t, entry{name: "./"}, file("b", "2"))))
	s := newStore(t, nil, r)
	img := pullOf(t, s, ref)
	want := treeOf(t, s, img)
	if err := s.Whole(img); err != nil {
		t.Error(err)
	}
	for _, path := range []string{s.layerPath(hexOf(img.Layers[1].DiffID)), filepath.Join(s.imageDir(hexOf(img.ID)), mergedFile)} {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		for _, err := range []error{s.Whole(img), s.EnsureTree(t.Context(), img.ID)} {
			if !errors.Is(err, pod.ErrState) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "gantry pull "+ref) {
				t.Errorf("without %s: %v", path, err)
			}
		}
		if never, err := s.Pull(t.Context(), ref, PullOptions{Policy: Never}); err != nil || never.ID != img.ID {
			t.Errorf("Never: %v, %v", never, err)
		}
		r.setWrap(nil)
		again, err := s.Pull(t.Context(), ref, PullOptions{Policy: IfMissing})
		if err != nil || again.ID != img.ID {
			t.Fatalf("pull: %v, %v", again, err)
		}
		if n := r.blobs("GET"); n > 2 {
			t.Errorf("%d downloads for one file", n)
		}
		if err := s.Whole(again); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(want, treeOf(t, s, again)); diff != "" {
			t.Error(diff)
		}
	}
}

func TestTagMoves(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	s := newStore(t, nil, r)
	ref := r.push(t, "app:1", imageWith(t, v1.Config{}, gzLayer(t, entry{name: "v", data: "1"})))
	first := pullOf(t, s, ref)
	r.push(t, "app:1", imageWith(t, v1.Config{}, gzLayer(t, entry{name: "v", data: "2"})))
	second := pullOf(t, s, ref)
	if first.ID == second.ID {
		t.Fatal("the tag did not move")
	}
	old, err := s.Image(first.ID)
	if err != nil || len(old.Tags) != 0 || len(old.Digests) != 1 {
		t.Errorf("old image = %+v, %v", old, err)
	}
}

// TestConcurrentPulls pulls one image many times, through several stores on one
// directory, as several processes would.
func TestConcurrentPulls(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	var layers []v1.Layer
	for i := range 5 {
		layers = append(layers, gzLayer(t, entry{name: fmt.Sprintf("f%d", i), data: strings.Repeat(fmt.Sprint(i), 100000)}))
	}
	ref := r.push(t, "many:1", imageWith(t, v1.Config{}, layers...))
	r.setWrap(nil)
	s := newStore(t, nil, r)
	var wg sync.WaitGroup
	for range 4 {
		other, err := Open(t.Context(), s.cfg)
		if err != nil {
			t.Fatal(err)
		}
		for range 5 {
			wg.Go(func() {
				img, err := other.Pull(t.Context(), ref, PullOptions{})
				if err != nil || len(img.Layers) != 5 {
					t.Errorf("pull: %v, %v", img, err)
				}
			})
		}
	}
	wg.Wait()
	layerGets := 0
	r.mu.Lock()
	for _, q := range r.requests {
		for _, l := range layers {
			d, _ := l.Digest()
			if strings.HasPrefix(q, "GET") && strings.HasSuffix(q, d.String()) {
				layerGets++
			}
		}
	}
	r.mu.Unlock()
	if layerGets != 5 {
		t.Errorf("%d downloads of 5 layers", layerGets)
	}
	left, err := os.ReadDir(s.dir(dirPrepare))
	if err != nil || len(left) != 0 {
		t.Errorf("left in prepare: %v, %v", left, err)
	}
}

// TestLeaveFlight: a caller that gives up does not end the pull of the others; the
// last one does.
func TestLeaveFlight(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	ref := r.push(t, "slow:1", imageWith(t, v1.Config{}, gzLayer(t, entry{name: "f", data: "x"})))
	reached, release := make(chan struct{}, 10), make(chan struct{})
	r.setWrap(func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		if strings.Contains(q.URL.Path, "/blobs/") {
			reached <- struct{}{}
			select {
			case <-release:
			case <-q.Context().Done():
				return
			}
		}
		next.ServeHTTP(w, q)
	})
	s := newStore(t, nil, r)
	ctx := contextWith(t, 300*time.Millisecond)
	errs := make(chan error, 2)
	go func() {
		_, err := s.Pull(ctx, ref, PullOptions{})
		errs <- err
	}()
	<-reached
	go func() {
		_, err := s.Pull(t.Context(), ref, PullOptions{})
		errs <- err
	}()
	if err := <-errs; err == nil {
		t.Error("the impatient caller got an answer")
	}
	close(release)
	if err := <-errs; err != nil {
		t.Errorf("the patient caller: %v", err)
	}
}

func TestProgress(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	ref := r.push(t, "p:1", imageWith(t, v1.Config{}, gzLayer(t, entry{name: "f", data: strings.Repeat("abc", 1<<20)})))
	s := newStore(t, nil, r)
	var stages []string
	var last Progress
	_, err := s.Pull(t.Context(), ref, PullOptions{Progress: func(p Progress) {
		if len(stages) == 0 || stages[len(stages)-1] != p.Stage {
			stages = append(stages, p.Stage)
		}
		if p.Stage == "layer" {
			last = p
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"manifest", "layer", "store", "done"}, stages); diff != "" {
		t.Error(diff)
	}
	if last.Bytes != last.Total || last.Total == 0 || last.Layer != 1 || last.Layers != 1 {
		t.Errorf("last = %+v", last)
	}
}

// TestCredentials: the registry wants a user, and a mirror must not see it.
func TestCredentials(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	ref := r.push(t, "private:1", imageWith(t, v1.Config{}, gzLayer(t, entry{name: "f", data: "x"})))
	r.setWrap(func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		if u, p, ok := q.BasicAuth(); !ok || u != "me" || p != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"no"}]}`, http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, q)
	})
	for name, c := range map[string]struct {
		auth *Auth
		ok   bool
	}{
		"none":          {nil, false},
		"wrong":         {&Auth{Username: "me", Password: "guess"}, false},
		"right":         {&Auth{Username: "me", Password: "secret"}, true},
		"auth string":   {&Auth{Auth: "bWU6c2VjcmV0"}, true},
		"other server":  {&Auth{Username: "me", Password: "secret", ServerAddress: "https://elsewhere.example"}, false},
		"this server":   {&Auth{Username: "me", Password: "secret", ServerAddress: r.URL}, true},
		"broken string": {&Auth{Auth: "%%%"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStore(t, nil, r)
			before := filesOf(t, s)
			_, err := s.Pull(t.Context(), ref, PullOptions{Auth: c.auth})
			if (err == nil) != c.ok {
				t.Fatalf("error = %v", err)
			}
			if err == nil {
				return
			}
			if !errors.Is(err, pod.ErrInvalid) || strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "guess") {
				t.Errorf("error = %v", err)
			}
			if diff := cmp.Diff(before, filesOf(t, s)); diff != "" {
				t.Error(diff)
			}
		})
	}
	t.Run("auth.json", func(t *testing.T) {
		t.Parallel()
		s := newStore(t, nil, r)
		write(t, s.cfg.AuthFile, fmt.Sprintf(`{"auths":{%q:{"auth":"bWU6c2VjcmV0"}}}`, r.host))
		pullOf(t, s, ref)
	})
}

// A registry that takes a request and never answers must not hold a pull for ever.
func TestSilentRegistry(t *testing.T) {
	t.Parallel()
	layer := gzLayer(t, file("f", "x"))
	digest, err := layer.Digest()
	if err != nil {
		t.Fatal(err)
	}
	for path, says := range map[string]string{
		"/v2/": "read manifest: no answer within", "/manifests/": "read manifest: no answer within",
		digest.String(): "download: nothing came for",
	} {
		t.Run(says, func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t)
			ref := r.push(t, "a:1", imageWith(t, v1.Config{}, layer))
			r.setWrap(func(w http.ResponseWriter, q *http.Request, next http.Handler) {
				if strings.Contains(q.URL.Path, path) {
					<-q.Context().Done()
					return
				}
				next.ServeHTTP(w, q)
			})
			s := newStore(t, func(c *Config) { c.Patience = 300 * time.Millisecond }, r)
			_, err := s.Pull(contextWith(t, 20*time.Second), ref, PullOptions{})
			if !errors.Is(err, pod.ErrUnavailable) || !strings.Contains(err.Error(), says) {
				t.Errorf("error = %v", err)
			}
		})
	}
}

// A manifest that does not tell a layer's size would lift the bound on what the
// layer unpacks to.
func TestLayerWithoutSize(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	ref := r.push(t, "a:1", imageWith(t, v1.Config{}, gzLayer(t, file("f", "x"))))
	r.setWrap(func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		if q.Method != http.MethodGet || !strings.Contains(q.URL.Path, "/manifests/") {
			next.ServeHTTP(w, q)
			return
		}
		answer := httptest.NewRecorder()
		next.ServeHTTP(answer, q)
		head, layers, _ := strings.Cut(answer.Body.String(), `"layers":`)
		layers = regexp.MustCompile(`"size":\d+`).ReplaceAllString(layers, `"size":-1`)
		w.Header().Set("Content-Type", answer.Header().Get("Content-Type"))
		fmt.Fprint(w, head, `"layers":`, layers)
	})
	_, err := newStore(t, nil, r).Pull(t.Context(), ref, PullOptions{})
	if !errors.Is(err, pod.ErrInvalid) || !strings.Contains(err.Error(), "size -1") {
		t.Errorf("error = %v", err)
	}
}

// Registries redirect to signed addresses: the signature is for nobody else.
func TestSignedAddressIsNotTold(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	ref := r.push(t, "a:1", imageWith(t, v1.Config{}, gzLayer(t, file("f", "x"))))
	r.setWrap(func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		if strings.Contains(q.URL.Path, "/blobs/") {
			http.Redirect(w, q, "http://127.0.0.1:1/blob?expires=9&signature=hunter2", http.StatusTemporaryRedirect)
			return
		}
		next.ServeHTTP(w, q)
	})
	_, err := newStore(t, nil, r).Pull(t.Context(), ref, PullOptions{})
	if !errors.Is(err, pod.ErrUnavailable) || !strings.Contains(err.Error(), "127.0.0.1:1/blob?") || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("error = %v", err)
	}
}

func TestMirror(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	r.push(t, "mirror/library/app:1", imageWith(t, v1.Config{}, gzLayer(t, entry{name: "f", data: "x"})))
	s := newStore(t, nil, r)
	write(t, filepath.Join(s.cfg.RegistriesConfDir, "mirror.conf"),
		fmt.Sprintf("[[registry]]\nlocation = \"docker.io\"\n[[registry.mirror]]\nlocation = \"%s/mirror\"\ninsecure = true\n", r.host))
	img := pullOf(t, s, "app:1")
	if img.Tags[0] != "docker.io/library/app:1" {
		t.Errorf("tags = %v", img.Tags)
	}
}

// TestRegistriesAreReadAgain: what the operator writes counts for the next pull.
func TestRegistriesAreReadAgain(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	r.push(t, "mirror/app:1", imageWith(t, v1.Config{}, gzLayer(t, entry{name: "f", data: "x"})))
	s := newStore(t, nil, r)
	const ref = "127.0.0.1:1/app:1"
	if _, err := s.Pull(t.Context(), ref, PullOptions{}); !errors.Is(err, pod.ErrUnavailable) {
		t.Fatalf("nobody is there: %v", err)
	}
	write(t, filepath.Join(s.cfg.RegistriesConfDir, "later.conf"),
		fmt.Sprintf("[[registry]]\nprefix = \"127.0.0.1:1\"\nlocation = \"%s/mirror\"\ninsecure = true\n", r.host))
	if _, err := s.Pull(t.Context(), ref, PullOptions{}); err != nil {
		t.Errorf("with another place for it: %v", err)
	}
}

// TestTokenIsNotForMirrors: a token is for the registry that it was given for. A
// mirror gives out its own.
func TestTokenIsNotForMirrors(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	image := imageWith(t, v1.Config{}, gzLayer(t, entry{name: "f", data: "x"}))
	r.push(t, "mirror/library/app:1", image)
	own := r.push(t, "own:1", image)
	var mu sync.Mutex
	seen := map[string]bool{}
	r.setWrap(func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		mu.Lock()
		seen[q.Header.Get("Authorization")] = true
		mu.Unlock()
		switch {
		case q.URL.Path == "/token":
			fmt.Fprint(w, `{"token":"of-the-mirror"}`)
		case !strings.HasPrefix(q.Header.Get("Authorization"), "Bearer "):
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="test"`, r.URL))
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"no"}]}`, http.StatusUnauthorized)
		default:
			next.ServeHTTP(w, q)
		}
	})
	pull := func(s *Store, ref string) map[string]bool {
		t.Helper()
		mu.Lock()
		clear(seen)
		mu.Unlock()
		if _, err := s.Pull(t.Context(), ref, PullOptions{Auth: &Auth{RegistryToken: "mine"}}); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		defer mu.Unlock()
		return maps.Clone(seen)
	}
	s := newStore(t, nil, r)
	if got := pull(s, own); !got["Bearer mine"] || got["Bearer of-the-mirror"] {
		t.Errorf("the registry itself got %v", got)
	}
	mirrored := newStore(t, nil, r)
	write(t, filepath.Join(mirrored.cfg.RegistriesConfDir, "mirror.conf"),
		fmt.Sprintf("[[registry]]\nlocation = \"docker.io\"\n[[registry.mirror]]\nlocation = \"%s/mirror\"\ninsecure = true\n", r.host))
	if got := pull(mirrored, "app:1"); got["Bearer mine"] || !got["Bearer of-the-mirror"] {
		t.Errorf("the mirror got %v", got)
	}
}

func TestPolicy(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	ref := r.push(t, "p:1", imageWith(t, v1.Config{}, gzLayer(t, entry{name: "f", data: "x"})))
	for name, c := range map[string]struct {
		policy string
		want   error
	}{
		"reject":     {`{"default":[{"type":"reject"}]}`, ErrSignature},
		"allow here": {fmt.Sprintf(`{"default":[{"type":"reject"}],"transports":{"docker":{%q:[{"type":"insecureAcceptAnything"}]}}}`, r.host), nil},
		"broken":     {`{`, pod.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStore(t, nil, r)
			write(t, s.cfg.PolicyFile, c.policy)
			before := filesOf(t, s)
			_, err := s.Pull(t.Context(), ref, PullOptions{})
			if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Fatalf("error = %v, want %v", err, c.want)
			}
			if err == nil {
				return
			}
			if diff := cmp.Diff(before, filesOf(t, s)); diff != "" {
				t.Error(diff)
			}
		})
	}
}
