package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"gantry/internal/pod"
)

func link(name, to string) entry      { return entry{name: name, link: to, kind: tar.TypeLink} }
func symlink(name, to string) entry   { return entry{name: name, link: to, kind: tar.TypeSymlink} }
func file(name, content string) entry { return entry{name: name, data: content} }

const rootLine = ". drwxr-xr-x 0:0\n"

func TestMerge(t *testing.T) {
	t.Parallel()
	root := entry{name: "./"}
	for name, c := range map[string]struct {
		layers [][]entry // lowest first
		want   string
	}{
		"files join": {[][]entry{{root, file("a", "1")}, {root, file("b", "2")}}, "a -rw-r--r-- 0:0 \"1\"\nb -rw-r--r-- 0:0 \"2\"\n"},
		"above wins": {[][]entry{{root, file("a", "1")}, {root, file("a", "2")}}, "a -rw-r--r-- 0:0 \"2\"\n"},
		"whiteout":   {[][]entry{{root, file("a", "1"), file("b", "1")}, {root, {name: ".wh.a"}}}, "b -rw-r--r-- 0:0 \"1\"\n"},
		"opaque": {
			[][]entry{{root, {name: "d/"}, file("d/old", "1")}, {root, {name: "d/"}, file("d/new", "2"), {name: "d/.wh..wh..opq"}}},
			"d drwxr-xr-x 0:0\nd/new -rw-r--r-- 0:0 \"2\"\n",
		},
		"opaque root": {[][]entry{{root, file("old", "1")}, {root, {name: ".wh..wh..opq"}, file("new", "2")}}, "new -rw-r--r-- 0:0 \"2\"\n"},
		// What the middle layer removed must not come back because the upper layer
		// makes a directory of that name again.
		"removed and made again": {
			[][]entry{{root, {name: "d/"}, file("d/old", "1")}, {root, {name: ".wh.d"}}, {root, {name: "d/"}, file("d/new", "2")}},
			"d drwxr-xr-x 0:0\nd/new -rw-r--r-- 0:0 \"2\"\n",
		},
		"a file in between": {[][]entry{{root, {name: "d/"}, file("d/old", "1")}, {root, file("d", "file")}, {root, {name: "d/"}}}, "d drwxr-xr-x 0:0\n"},
		"removed and made in one layer": {
			[][]entry{{root, {name: "d/"}, file("d/old", "1")}, {root, {name: "d/"}, {name: ".wh.d"}, file("d/new", "2")}},
			"d drwxr-xr-x 0:0\nd/new -rw-r--r-- 0:0 \"2\"\n",
		},
		"directory's attributes": {[][]entry{{root, {name: "tmp/", mode: 0o1777}}, {root, {name: "tmp/", mode: 0o700, uid: 3}}}, "tmp drwx------ 3:0\n"},
		"implied directory":      {[][]entry{{root, {name: "tmp/", mode: 0o1777}}, {file("tmp/f", "x")}}, "tmp dtrwxrwxrwx 0:0\ntmp/f -rw-r--r-- 0:0 \"x\"\n"},
		"implied over a symlink": {
			[][]entry{{root, {name: "usr/"}, {name: "usr/lib/"}, symlink("lib", "usr/lib")}, {file("lib/f", "x")}},
			"lib Lrw-r--r-- 0:0 -> usr/lib\nusr drwxr-xr-x 0:0\nusr/lib drwxr-xr-x 0:0\nusr/lib/f -rw-r--r-- 0:0 \"x\"\n",
		},
		"implied over a symlink to nothing": {[][]entry{{root, symlink("lib", "usr/lib")}, {file("lib/f", "x")}}, "lib drwxr-xr-x 0:0\nlib/f -rw-r--r-- 0:0 \"x\"\n"},
		"directory over a symlink": {
			[][]entry{{root, {name: "a/"}, symlink("l", "a")}, {{name: "l/"}, file("l/f", "x")}},
			"a drwxr-xr-x 0:0\nl drwxr-xr-x 0:0\nl/f -rw-r--r-- 0:0 \"x\"\n",
		},
		"hard link to a lower layer": {[][]entry{{root, file("a", "1")}, {root, link("b", "a")}}, "a -rw-r--r-- 0:0 links=2 \"1\"\nb -rw-r--r-- 0:0 links=2 \"1\"\n"},
		"hard link to what goes":     {[][]entry{{root, file("a", "1")}, {root, link("b", "a"), {name: ".wh.a"}}}, "b -rw-r--r-- 0:0 \"1\"\n"},
		"hard link in one layer":     {[][]entry{{root, file("a", "1"), link("b", "a")}, {root, file("a", "2")}}, "a -rw-r--r-- 0:0 \"2\"\nb -rw-r--r-- 0:0 \"1\"\n"},
		"no mark is left":            {[][]entry{{file("a/f", "x"), {name: "a/.wh..wh..opq"}}}, "a drwxr-xr-x 0:0\na/f -rw-r--r-- 0:0 \"x\"\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t)
			var layers []v1.Layer
			for _, entries := range c.layers {
				layers = append(layers, gzLayer(t, entries...))
			}
			s := newStore(t, nil, r)
			img := pullOf(t, s, r.push(t, "m:1", imageWith(t, v1.Config{}, layers...)))
			if diff := cmp.Diff(rootLine+c.want, treeOf(t, s, img)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestMergeRefuses(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	s := newStore(t, nil, r)
	before := filesOf(t, s)
	ref := r.push(t, "m:1", imageWith(t, v1.Config{}, gzLayer(t, file("x", "1")), gzLayer(t, link("a", "not/there"))))
	if _, err := s.Pull(t.Context(), ref, PullOptions{}); !errors.Is(err, pod.ErrInvalid) {
		t.Errorf("error = %v", err)
	}
	if diff := cmp.Diff(before, filesOf(t, s)); diff != "" {
		t.Error(diff)
	}
}

// Hard links to a lower layer, all through the same long way of symlinks.
func TestMergeManyLinkSteps(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	s := newStore(t, nil, r)
	var links []entry
	for i := range 5000 {
		links = append(links, link(fmt.Sprint(i), "l38/f"))
	}
	ref := r.push(t, "m:1", imageWith(t, v1.Config{}, gzLayer(t, manySteps()...), gzLayer(t, links...)))
	if _, err := s.Pull(t.Context(), ref, PullOptions{}); !errors.Is(err, pod.ErrInvalid) {
		t.Errorf("error = %v", err)
	}
}

// TestSameLayerTwice: an image may have a layer twice; it is one device.
func TestSameLayerTwice(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	l := gzLayer(t, entry{name: "./"}, file("a", "1"))
	s := newStore(t, nil, r)
	img := pullOf(t, s, r.push(t, "m:1", imageWith(t, v1.Config{}, l, gzLayer(t, entry{name: "./"}, entry{name: ".wh.a"}), l)))
	if diff := cmp.Diff(rootLine+"a -rw-r--r-- 0:0 \"1\"\n", treeOf(t, s, img)); diff != "" {
		t.Error(diff)
	}
	if len(img.Layers) != 3 {
		t.Errorf("layers = %v", img.Layers)
	}
}
