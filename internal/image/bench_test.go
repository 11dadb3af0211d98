package image

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
)

// BenchmarkConvert converts a gzip layer of 150 MB in 1,500 files, without a
// registry: digest, decompression, digest, checks, writing, fsync.
func BenchmarkConvert(b *testing.B) {
	var entries []entry
	for i := range 1500 {
		content := make([]byte, 100_000)
		random := rand.New(rand.NewPCG(uint64(i), 42))
		for j := 0; j < len(content)/2; j++ {
			content[j] = byte(random.Uint32())
		}
		copy(content[len(content)/2:], bytes.Repeat([]byte("the quick brown fox "), 2500))
		entries = append(entries, file(fmt.Sprintf("data/%02d/%04d", i/50, i), string(content)))
	}
	raw := archiveOf(b, entries...)
	for name, data := range map[string][]byte{"gzip": gzipped(b, raw), "zstd": zstded(b, raw), "plain": raw} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(raw)))
			for b.Loop() {
				out, err := os.Create(filepath.Join(b.TempDir(), "layer"))
				if err != nil {
					b.Fatal(err)
				}
				ctx := b.Context()
				in := &blobReader{ctx: ctx, abort: func(error) {}, body: io.NopCloser(bytes.NewReader(data)), blob: blob{digestOf(data), digestOf(raw), int64(len(data))}, image: newBudget(newLedger())}
				if _, err := convert(in, out, 0); err != nil {
					b.Fatal(err)
				}
				out.Close()
				os.Remove(out.Name())
			}
		})
	}
}

func digestOf(data []byte) digest.Digest {
	sum := sha256.Sum256(data)
	return digest.NewDigestFromEncoded(digest.SHA256, hex.EncodeToString(sum[:]))
}

// BenchmarkManyLayers pulls an image of 127 small layers.
func BenchmarkManyLayers(b *testing.B) {
	r := newRegistry(b)
	var layers []v1.Layer
	for i := range 127 {
		layers = append(layers, gzLayer(b, file(fmt.Sprintf("layers/%03d", i), "x")))
	}
	ref := r.push(b, "many:1", imageWith(b, v1.Config{}, layers...))
	for b.Loop() {
		s := newStore(b, nil, r)
		if _, err := s.Pull(b.Context(), ref, PullOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}
