package main

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// start serves images made of a root with one program in it.
func start(t *testing.T) (*httptest.Server, *workshop) {
	t.Helper()
	root := t.TempDir()
	program := filepath.Join(root, "usr/bin/busybox")
	if err := os.MkdirAll(filepath.Dir(program), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho sh\necho sleep\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	blobs, err := openStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	shop := newWorkshop(blobs, root, log)
	server := httptest.NewServer(newServer(shop, log).handler(open))
	t.Cleanup(server.Close)
	return server, shop
}

func reference(t *testing.T, server *httptest.Server, image string) name.Reference {
	t.Helper()
	ref, err := name.ParseReference(strings.TrimPrefix(server.URL, "http://")+"/"+image, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func TestImagesAreValid(t *testing.T) {
	t.Parallel()
	server, shop := start(t)
	for _, image := range shop.names() {
		switch repository, _, _ := strings.Cut(image, ":"); {
		case strings.HasPrefix(image, "hostile/"), strings.HasPrefix(image, "bench/"),
			strings.Contains(image, "nginx"), strings.Contains(image, "httpd"), strings.Contains(image, "agnhost"), strings.Contains(image, "device-plugin"), repository == "e2e-test-images/busybox", repository == "e2e-test-images/glibc-dns-testing",
			repository == "multi", repository == "schema1", repository == "artifact", image == "layers:127":
			continue
		}
		img, err := remote.Image(reference(t, server, image))
		if err != nil {
			t.Errorf("%s: %v", image, err)
			continue
		}
		var how []validate.Option
		switch image { // what the validator does not know, or forbids
		case "busybox:plain", "busybox:zstd", "odd/twice:latest":
			how = append(how, validate.Fast)
		}
		if err := validate.Image(img, how...); err != nil {
			t.Errorf("%s: %v", image, err)
		}
	}
}

func TestIndexesAreValid(t *testing.T) {
	t.Parallel()
	server, _ := start(t)
	for _, image := range []string{"multi:oci", "multi:docker", "multi:foreign"} {
		idx, err := remote.Index(reference(t, server, image))
		if err != nil {
			t.Errorf("%s: %v", image, err)
			continue
		}
		if err := validate.Index(idx, validate.Fast); err != nil {
			t.Errorf("%s: %v", image, err)
		}
	}
}

func TestHostileImagesCanBeMade(t *testing.T) {
	t.Parallel()
	_, shop := start(t)
	for _, image := range shop.names() {
		if !strings.HasPrefix(image, "hostile/") || image == "hostile/zeros:latest" {
			continue
		}
		repository, tag, _ := strings.Cut(image, ":")
		if _, ok, err := shop.find(repository, tag); err != nil || !ok {
			t.Errorf("%s: found %v, error %v", image, ok, err)
		}
	}
}

func TestZeros(t *testing.T) {
	t.Parallel()
	server, shop := start(t)
	shop.recipes["hostile/zeros:latest"] = zeros(8 << 20)
	img, err := remote.Image(reference(t, server, "hostile/zeros:latest"))
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(img); err != nil {
		t.Error(err)
	}
}

func TestSameFilesMakeTheSameImage(t *testing.T) {
	t.Parallel()
	_, one := start(t)
	_, two := start(t)
	for _, image := range []string{"busybox:latest", "busybox:zstd", "layers:10", "multi:latest", "odd/names:latest", "config:latest"} {
		repository, tag, _ := strings.Cut(image, ":")
		a, _, err := one.find(repository, tag)
		if err != nil {
			t.Fatal(err)
		}
		b, _, err := two.find(repository, tag)
		if err != nil {
			t.Fatal(err)
		}
		if a.Digest != b.Digest {
			t.Errorf("%s is once %s and once %s", image, a.Digest, b.Digest)
		}
	}
}

func TestUnknownVersionIsTheOneThereIs(t *testing.T) {
	t.Parallel()
	server, _ := start(t)
	for image, want := range map[string]bool{
		"e2e-test-images/nonroot:1.29-2": true, "e2e-test-images/nonroot:nosuchtag": false, "nosuch/image:1": false, "user:1": false,
	} {
		if _, err := remote.Head(reference(t, server, image)); (err == nil) != want {
			t.Errorf("%s: error %v, want found %v", image, err, want)
		}
	}
}

func TestPullByDigestBeforeTag(t *testing.T) {
	t.Parallel()
	server, _ := start(t)
	_, other := start(t)
	d, _, err := other.find("busybox", "zstd")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := remote.Image(reference(t, server, "busybox@"+d.Digest)); err != nil {
		t.Error(err)
	}
}

func TestDoors(t *testing.T) {
	t.Parallel()
	_, shop := start(t)
	account := remote.WithAuth(&authn.Basic{Username: accountUser, Password: accountPassword})
	for _, d := range []door{locked, token} {
		server := httptest.NewServer(newServer(shop, shop.log).handler(d))
		t.Cleanup(server.Close)
		if _, err := remote.Image(reference(t, server, "busybox:latest")); err == nil {
			t.Errorf("door %d is open to anybody", d)
		}
		if _, err := remote.Image(reference(t, server, "busybox:latest"), account); err != nil {
			t.Errorf("door %d with the password: %v", d, err)
		}
	}
}

func TestFaults(t *testing.T) {
	t.Parallel()
	server, shop := start(t)
	d, _, err := shop.find("busybox", "latest")
	if err != nil {
		t.Fatal(err)
	}
	url := server.URL + "/v2/busybox/manifests/latest"
	order(t, server, `{"match": "busybox", "times": 1, "status": 503}`)
	order(t, server, `{"match": "busybox", "times": 1, "cut": true, "after": 7}`)
	if status, _, _ := get(t, url); status != http.StatusServiceUnavailable {
		t.Errorf("first answer %d, want 503", status)
	}
	if _, body, err := get(t, url); err == nil || len(body) != 7 {
		t.Errorf("second answer has %d bytes, error %v; want 7 and an error", len(body), err)
	}
	if status, body, err := get(t, url); status != http.StatusOK || err != nil || int64(len(body)) != d.Size {
		t.Errorf("third answer %d with %d bytes, error %v; want 200 with %d", status, len(body), err, d.Size)
	}
}

func order(t *testing.T, server *httptest.Server, fault string) {
	t.Helper()
	resp, err := http.Post(server.URL+"/trial/faults", "application/json", strings.NewReader(fault))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("order %s: %s", fault, resp.Status)
	}
}

func get(t *testing.T, url string) (int, []byte, error) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, body, err
}

func TestLibraries(t *testing.T) {
	t.Parallel()
	got := libraries("\tlinux-vdso.so.1 (0x1)\n\tlibz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x2)\n\t/lib64/ld-linux-x86-64.so.2 (0x3)\n")
	want := "/lib/x86_64-linux-gnu/libz.so.1 /lib64/ld-linux-x86-64.so.2"
	if strings.Join(got, " ") != want {
		t.Errorf("got %v, want %s", got, want)
	}
}
