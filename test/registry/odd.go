package main

import (
	"archive/tar"
	"fmt"
	"strings"
)

// addOdd adds images that are unusual but right: they must unpack to exactly
// what the comment says.
func addOdd(add func(recipe, ...string)) {
	odd := func(name string, layers ...[]entry) { add(stack(layers...), "odd/"+name+":latest") }
	// /a/kept and /a/new exist, /a/gone does not.
	odd("whiteout",
		[]entry{dir("a", 0o755), file("a/gone", 0o644, "x"), file("a/kept", 0o644, "x")},
		[]entry{dir("a", 0o755), file("a/.wh.gone", 0, ""), file("a/new", 0o644, "x")})
	// /a holds new alone.
	odd("opaque",
		[]entry{dir("a", 0o755), file("a/one", 0o644, "x"), dir("a/two", 0o755), file("a/two/three", 0o644, "x")},
		[]entry{dir("a", 0o755), file("a/new", 0o644, "x"), file("a/.wh..wh..opq", 0, "")})
	// The whiteout is of nothing, and is no file either.
	odd("whiteout-of-nothing", []entry{dir("a", 0o755), file("a/.wh.never", 0, ""), file("a/b", 0o644, "x")})
	// /a is a file, /b a directory, /c a link to b.
	odd("replaced",
		[]entry{dir("a", 0o755), file("a/x", 0o644, "x"), file("b", 0o644, "x"), dir("c", 0o755), file("c/x", 0o644, "x")},
		[]entry{file("a", 0o644, "file\n"), dir("b", 0o755), file("b/x", 0o644, "x"), symlink("c", "b")})
	// The last of two members of one name counts.
	odd("twice", []entry{file("a", 0o644, "first\n"), file("a", 0o600, "second\n")})
	// Directories that no member names exist, root's, 0755.
	odd("no-parents", []entry{file("a/b/c/d", 0o644, "deep\n")})
	odd("dot-slash", []entry{{Header: tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755}}, file("./a", 0o644, "x"), dir("./b", 0o755)})
	odd("absolute-links", []entry{dir("real", 0o755), file("real/f", 0o644, "right\n"), symlink("abs", "/real"), symlink("f", "/abs/f")})
	// Inside the image this is its own /etc/passwd, whatever the host has.
	odd("links-up", []entry{symlink("up", "../../../../etc/passwd")})
	odd("names", []entry{
		file("with space", 0o644, "x"), file("with\nnewline", 0o644, "x"), file("with\xff byte", 0o644, "x"), file("mit Ümläut", 0o644, "x"),
		file("with=equals,comma:colon", 0o644, "x"), file("-dash", 0o644, "x"), file(strings.Repeat("n", 255), 0o644, "x"),
		file(strings.Repeat("d/", 500)+"deep", 0o644, "x"), file("\\x41", 0o644, "x"), file("%s", 0o644, "x"),
	})
	odd("modes", []entry{
		file("suid", 0o4755, "x"), file("sgid", 0o2755, "x"), dir("sticky", 0o1777), file("none", 0, "x"),
		file("other", 0o644, "x").owned(1234, 1235), file("high-id", 0o644, "x").owned(2000000000, 2000000001),
		file("capable", 0o755, "x").xattr("security.capability", "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"),
		file("attr", 0o644, "x").xattr("user.note", "trial"),
	})
	odd("fifo", []entry{{Header: tar.Header{Typeflag: tar.TypeFifo, Name: "fifo", Mode: 0o600}}})
	odd("hardlinks",
		[]entry{file("a", 0o644, "one inode\n"), hardlink("b", "a"), dir("d", 0o755), hardlink("d/c", "a")},
		[]entry{hardlink("d/across", "a")})
	// An empty layer, twice the same.
	odd("empty-layer", []entry{file("a", 0o644, "x")}, nil, nil)
	var entries []entry
	for i := range 5000 {
		entries = append(entries, file(fmt.Sprintf("wide/%04d", i), 0o644, ""))
	}
	odd("wide", append([]entry{dir("wide", 0o755)}, entries...))
}

// stack is busybox with the given layers above.
func stack(above ...[]entry) recipe {
	return func(w *workshop) (descriptor, error) {
		base, err := w.busyboxLayer(gzipped)
		if err != nil {
			return descriptor{}, err
		}
		img := image{config: config{Cmd: []string{"sh"}, Env: defaultEnv()}, layers: []layer{base}}
		for _, entries := range above {
			l, err := w.addLayer(gzipped, entries...)
			if err != nil {
				return descriptor{}, err
			}
			img.layers = append(img.layers, l)
		}
		return w.addImage(img)
	}
}
