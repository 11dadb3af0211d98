package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	bigImage   = "docker.io/bench/big:latest"
	bigFiles   = "1500"
	registry   = "http://127.0.0.1:5000"
	repository = registry + "/v2/bench/big"
)

// measurePull times a pull that downloads the layer, and looks at what was made of
// it.
func measurePull(ctx context.Context, b *bench, e *engine) error {
	if err := e.forget(ctx, bigImage); err != nil {
		return err
	}
	layer, err := bigLayer(ctx)
	if err != nil {
		return err
	}
	if err := settle(ctx); err != nil {
		return err
	}
	if _, err := ask(ctx, http.MethodDelete, registry+"/trial/requests"); err != nil {
		return err
	}
	began := time.Now()
	if err := e.pull(ctx, bigImage); err != nil {
		return err
	}
	took := ms(time.Since(began))
	requests, err := ask(ctx, http.MethodGet, registry+"/trial/requests")
	if err != nil {
		return err
	}
	if n := strings.Count(string(requests), "GET /v2/bench/big/blobs/"+layer); n == 0 {
		return errors.New("the layer was not downloaded: something was left of the image")
	}
	if err := b.checkBig(ctx, e); err != nil {
		return err
	}
	b.add(mPull, e, took)
	return e.forget(ctx, bigImage)
}

// checkBig runs the image that was pulled and counts its files.
func (b *bench) checkBig(ctx context.Context, e *engine) error {
	p, err := b.newPod(e, true, "")
	if err != nil {
		return err
	}
	if err := p.run(ctx, bigImage, "/bin/busybox find /data -type f | /bin/busybox wc -l"); err != nil {
		return err
	}
	text, err := p.log.await(ctx, func(text string) bool { return strings.HasSuffix(text, "\n") })
	if err == nil && !strings.HasSuffix(text, " "+bigFiles+"\n") {
		err = fmt.Errorf("an app counts %q files in the image, not %s", text, bigFiles)
	}
	return errors.Join(err, p.stop(ctx), p.remove(ctx))
}

// forget removes an image, and waits until it is not there.
func (e *engine) forget(ctx context.Context, image string) error {
	spec := &cri.ImageSpec{Image: image}
	if _, err := e.images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: spec}); err != nil {
		return fmt.Errorf("remove %s: %w", image, err)
	}
	s, err := e.images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: spec})
	if err != nil {
		return fmt.Errorf("look for %s: %w", image, err)
	}
	if s.Image != nil {
		return fmt.Errorf("image %s is there after its removal", image)
	}
	return nil
}

// bigLayer is the digest of the image's one layer; asking for it makes the registry
// make the image.
func bigLayer(ctx context.Context) (string, error) {
	data, err := ask(ctx, http.MethodGet, repository+"/manifests/latest")
	if err != nil {
		return "", err
	}
	var manifest struct {
		Layers []struct{ Digest string }
	}
	if err := json.Unmarshal(data, &manifest); err != nil {
		return "", fmt.Errorf("read manifest of %s: %w", bigImage, err)
	}
	if len(manifest.Layers) != 1 {
		return "", fmt.Errorf("image %s has %d layers, want 1", bigImage, len(manifest.Layers))
	}
	return manifest.Layers[0].Digest, nil
}

func ask(ctx context.Context, method, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return nil, err
	}
	client := http.Client{Timeout: 5 * time.Minute}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: %s: %s", method, url, resp.Status, data)
	}
	return data, err
}

// floorPull is a download, decompressed by one processor into one file.
func floorPull(ctx context.Context, b *bench) error {
	layer, err := bigLayer(ctx)
	if err != nil {
		return err
	}
	out := filepath.Join(b.scratch, "layer")
	defer os.Remove(out)
	began := time.Now()
	if err := command(ctx, "sh", "-c", fmt.Sprintf("curl -sSf %s/blobs/%s | gzip -dc >%s", repository, layer, out)); err != nil {
		return err
	}
	b.addFloor(mUnpack, ms(time.Since(began)))
	info, err := os.Stat(out)
	if err == nil && info.Size() < 150e6 {
		err = fmt.Errorf("the layer has %d bytes, want 150 MB", info.Size())
	}
	return err
}
