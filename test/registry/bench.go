package main

import (
	"fmt"
	"io"
	"math/rand/v2"
)

// big is one gzip layer of 150 MB: 1,500 files of 100 kB, half of each noise and
// half text, so that it neither packs to nothing nor not at all.
func big(w *workshop) (descriptor, error) {
	entries := []entry{dir("bin", 0o755), dir("data", 0o755)}
	program, err := hostFile(w.root, "/usr/bin/busybox", "bin/busybox", 0o755)
	if err != nil {
		return descriptor{}, err
	}
	entries = append(entries, program, hardlink("bin/sh", "bin/busybox"), hardlink("bin/sleep", "bin/busybox"), hardlink("bin/true", "bin/busybox"))
	for i := range 1500 {
		if i%50 == 0 {
			entries = append(entries, dir(fmt.Sprintf("data/%02d", i/50), 0o755))
		}
		entries = append(entries, noisy(fmt.Sprintf("data/%02d/%04d", i/50, i), uint64(i), 100_000))
	}
	l, err := w.addLayer(gzipped, entries...)
	if err != nil {
		return descriptor{}, err
	}
	return w.addImage(image{layers: []layer{l}, config: config{Cmd: []string{"sleep", "1000000"}, Env: defaultEnv()}})
}

// manyFiles is one gzip layer of 12,000 small files.
func manyFiles(w *workshop) (descriptor, error) {
	base, err := w.busyboxLayer(gzipped)
	if err != nil {
		return descriptor{}, err
	}
	entries := []entry{dir("data", 0o755)}
	for i := range 12000 {
		if i%100 == 0 {
			entries = append(entries, dir(fmt.Sprintf("data/%03d", i/100), 0o755))
		}
		entries = append(entries, noisy(fmt.Sprintf("data/%03d/%05d", i/100, i), uint64(i), 3000))
	}
	l, err := w.addLayer(gzipped, entries...)
	if err != nil {
		return descriptor{}, err
	}
	return w.addImage(image{layers: []layer{base, l}, config: config{Cmd: []string{"sleep", "1000000"}, Env: defaultEnv()}})
}

// noisy is a file of the given size, the same for the same seed.
func noisy(path string, seed uint64, size int) entry {
	e := file(path, 0o644, "")
	e.Size = int64(size)
	e.body = func() (io.ReadCloser, error) {
		content := make([]byte, size)
		random := rand.New(rand.NewPCG(seed, 42))
		for i := 0; i+8 <= size/2; i += 8 {
			v := random.Uint64()
			for j := range 8 {
				content[i+j] = byte(v >> (8 * j))
			}
		}
		const text = "the quick brown fox jumps over the lazy dog; "
		for i := size / 2; i < size; i++ {
			content[i] = text[i%len(text)]
		}
		return io.NopCloser(newReader(content)), nil
	}
	return e
}
