package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	reader "github.com/erofs/go-erofs"
	"github.com/google/go-cmp/cmp"

	"gantry/internal/image/erofs"
	"gantry/internal/pod"
)

// convertArchive makes a layer's image of an archive.
func convertArchive(t testing.TB, data []byte, l limits) (string, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "layer.erofs")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w, err := erofs.NewWriter(f, erofs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	a, err := readArchive(bytes.NewReader(data), w, l)
	if err != nil {
		return "", err
	}
	if _, err := w.Finish(a.root); err != nil {
		t.Fatal(err)
	}
	return path, nil
}

// wide is enough for everything, unless there is too much of it for an image.
func wide() limits { return limits{bytes: 1 << 30, entries: maxEntries, image: newBudget(newLedger())} }

func layerTree(t testing.TB, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	tree, err := reader.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	return printTree(t, tree)
}

func TestArchive(t *testing.T) {
	t.Parallel()
	const implied = ` map["trusted.gantry.implied":"y"]`
	for name, c := range map[string]struct {
		entries []entry
		want    string
	}{
		"implied directories": {[]entry{{name: "a/b/c", data: "x"}}, ". drwxr-xr-x 0:0" + implied + "\na drwxr-xr-x 0:0" + implied +
			"\na/b drwxr-xr-x 0:0" + implied + "\na/b/c -rw-r--r-- 0:0 \"x\"\n"},
		"directory after its content": {
			[]entry{{name: "./"}, {name: "a/f", data: "x"}, {name: "a/", mode: 0o700, uid: 5}},
			". drwxr-xr-x 0:0\na drwx------ 5:0\na/f -rw-r--r-- 0:0 \"x\"\n",
		},
		"last one counts": {
			[]entry{{name: "./"}, {name: "f", data: "1"}, {name: "f", data: "2"}, {name: "d/"}, {name: "d/x"}, {name: "d", data: "file"}},
			". drwxr-xr-x 0:0\nd -rw-r--r-- 0:0 \"file\"\nf -rw-r--r-- 0:0 \"2\"\n",
		},
		"through a link": {
			[]entry{{name: "./"}, {name: "lib", link: "usr/lib", kind: tar.TypeSymlink}, {name: "usr/lib/"}, {name: "usr/"}, {name: "lib/f", data: "x"}},
			". drwxr-xr-x 0:0\nlib Lrw-r--r-- 0:0 -> usr/lib\nusr drwxr-xr-x 0:0\nusr/lib drwxr-xr-x 0:0\nusr/lib/f -rw-r--r-- 0:0 \"x\"\n",
		},
		"links stay inside": {
			[]entry{{name: "./"}, {name: "up", link: "../../../etc", kind: tar.TypeSymlink}, {name: "up/f", data: "x"}},
			". drwxr-xr-x 0:0\netc drwxr-xr-x 0:0" + implied + "\netc/f -rw-r--r-- 0:0 \"x\"\nup Lrw-r--r-- 0:0 -> ../../../etc\n",
		},
		"hard links": {
			[]entry{{name: "./"}, {name: "a", data: "x"}, {name: "b", link: "a", kind: tar.TypeLink}, {name: "c", link: "/b", kind: tar.TypeLink}},
			". drwxr-xr-x 0:0\na -rw-r--r-- 0:0 links=3 \"x\"\nb -rw-r--r-- 0:0 links=3 \"x\"\nc -rw-r--r-- 0:0 links=3 \"x\"\n",
		},
		"hard link to a lower layer": {
			[]entry{{name: "./"}, {name: "b", link: "below/a", kind: tar.TypeLink}},
			". drwxr-xr-x 0:0\nb ---------- 0:0 \"\" map[\"trusted.gantry.link\":\"below/a\"]\n",
		},
		"whiteouts": {
			[]entry{{name: "./"}, {name: ".wh.gone"}, {name: "d/"}, {name: "d/.wh..wh..opq"}, {name: ".wh..wh.plnk"}},
			". drwxr-xr-x 0:0\nd drwxr-xr-x 0:0 map[\"trusted.overlay.opaque\":\"y\"]\ngone Dc--------- 0:0\n",
		},
		"whiteout of what the layer has": {
			[]entry{{name: "./"}, {name: "f", data: "x"}, {name: ".wh.f"}, {name: ".wh.d"}, {name: "d/"}},
			". drwxr-xr-x 0:0\nd drwxr-xr-x 0:0 map[\"trusted.overlay.opaque\":\"y\"]\nf -rw-r--r-- 0:0 \"x\"\n",
		},
		"overlay whiteout": {[]entry{{name: "./"}, {name: "gone", kind: tar.TypeChar}}, ". drwxr-xr-x 0:0\ngone Dc--------- 0:0\n"},
		"devices in dev": {[]entry{
			{name: "./"},
			{name: "dev/"},
			{name: "dev/null", kind: tar.TypeChar, major: 1, minor: 3},
			{name: "dev/sda", kind: tar.TypeBlock, major: 8},
			{name: "dev/other", kind: tar.TypeLink, link: "dev/null"},
		}, ". drwxr-xr-x 0:0\ndev drwxr-xr-x 0:0\n"},
		"attributes": {[]entry{{name: "./"}, {name: "f", mode: 0o4711, uid: 7, gid: 8, xattrs: map[string]string{
			"security.capability": "\x01\x00", "user.note": "n", "trusted.overlay.redirect": "/", "user.overlay.opaque": "y", "security.selinux": "s", "weird.x": "y",
		}}}, ". drwxr-xr-x 0:0\nf urwx--x--x 7:8 \"\" map[\"security.capability\":\"\\x01\\x00\" \"user.note\":\"n\"]\n"},
		"fifo": {[]entry{{name: "./"}, {name: "p", kind: tar.TypeFifo}}, ". drwxr-xr-x 0:0\np prw-r--r-- 0:0\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path, err := convertArchive(t, archiveOf(t, c.entries...), wide())
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, layerTree(t, path)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestArchiveRefuses(t *testing.T) {
	t.Parallel()
	deep := strings.Repeat("d/", 1500)
	for name, c := range map[string]struct {
		entries []entry
		limits  limits
	}{
		"absolute path":         {entries: []entry{{name: "/etc/passwd"}}},
		"parent":                {entries: []entry{{name: "../etc/passwd"}}},
		"parent inside":         {entries: []entry{{name: "a/../b"}}},
		"parent alone":          {entries: []entry{{name: "../"}}},
		"root is a file":        {entries: []entry{{name: ".", kind: tar.TypeFifo}}},
		"long name":             {entries: []entry{{name: strings.Repeat("n", 256)}}},
		"long path":             {entries: []entry{{name: strings.Repeat("n/", 2100)}}},
		"hard link out":         {entries: []entry{{name: "a", link: "../x", kind: tar.TypeLink}}},
		"hard link to dir":      {entries: []entry{{name: "d/"}, {name: "a", link: "d", kind: tar.TypeLink}}},
		"hard link to nothing":  {entries: []entry{{name: "a", link: "/", kind: tar.TypeLink}}},
		"symlink to nothing":    {entries: []entry{{name: "a", kind: tar.TypeSymlink}}},
		"symlink too long":      {entries: []entry{{name: "a", link: strings.Repeat("x", 4096), kind: tar.TypeSymlink}}},
		"device":                {entries: []entry{{name: "disk", kind: tar.TypeBlock, major: 8}}},
		"device by another way": {entries: []entry{{name: "x/dev/mem", kind: tar.TypeChar, major: 1, minor: 1}}},
		"below a file":          {entries: []entry{{name: "a"}, {name: "a/b"}}},
		"link loop":             {entries: []entry{{name: "a", link: "b", kind: tar.TypeSymlink}, {name: "b", link: "a", kind: tar.TypeSymlink}, {name: "a/x"}}},
		"whiteout of nothing":   {entries: []entry{{name: ".wh."}}},
		"whiteout of parent":    {entries: []entry{{name: ".wh..."}}},
		"whiteout below a file": {entries: []entry{{name: "a"}, {name: "a/.wh.b"}}},
		"owner -1":              {entries: []entry{{name: "a", uid: 1<<32 - 1}}},
		"large attributes":      {entries: []entry{{name: "a", xattrs: map[string]string{"user.a": strings.Repeat("x", 65000), "user.b": strings.Repeat("x", 1000)}}}},
		"large file":            {entries: []entry{{name: "a", size: 1 << 40}}},
		"large archive":         {entries: []entry{{name: "a", data: strings.Repeat("x", 5000)}, {name: "b", data: strings.Repeat("x", 6000)}}, limits: limits{bytes: 10000, entries: 10}},
		"many entries":          {entries: []entry{{name: "a"}, {name: "b"}, {name: "c"}}, limits: limits{bytes: 1 << 20, entries: 2}},
		"many implied entries":  {entries: []entry{{name: "a/b/c/d/e"}}, limits: limits{bytes: 1 << 20, entries: 4}},
		"too deep":              {entries: []entry{{name: deep}, {name: "l", link: deep, kind: tar.TypeSymlink}, {name: "l/" + deep}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if c.limits == (limits{}) {
				c.limits = wide()
			}
			c.limits.image = newBudget(newLedger())
			began := time.Now()
			_, err := convertArchive(t, archiveOf(t, c.entries...), c.limits)
			if !errors.Is(err, pod.ErrInvalid) || !errors.Is(err, errRefused) {
				t.Errorf("error = %v", err)
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ most, blob, want int64 }{
		{0, 1 << 20, freeBytes + maxRatio<<20},  // a small blob cannot be a terabyte
		{0, 100 << 30, defaultMaxLayer},         // a large one is bounded by the layer's limit
		{0, -1, defaultMaxLayer},                // size unknown
		{1 << 20, 1 << 20, 1 << 20},             // the operator's limit
		{2 << 30, 1 << 10, freeBytes + 200<<10}, //
	} {
		if got := layerLimits(c.most, c.blob, nil).bytes; got != c.want {
			t.Errorf("layerLimits(%d, %d) = %d, want %d", c.most, c.blob, got, c.want)
		}
	}
}

// TestManyLinkSteps: symlinks that lead through each other must not cost more than
// the archive that brings them.
// manySteps are symlinks through which "l38" leads to "d", the long way.
func manySteps() []entry {
	entries := []entry{file("d/f", "x")}
	for i := range 38 {
		entries = append(entries, symlink(fmt.Sprintf("l%d", i+1), strings.Repeat("d/../", 800)+fmt.Sprintf("l%d", i)))
	}
	return append(entries, symlink("l0", "d"))
}

func TestManyLinkSteps(t *testing.T) {
	t.Parallel()
	for name, entryOf := range map[string]func(i int) entry{
		"parents":    func(i int) entry { return entry{name: fmt.Sprintf("l38/%d", i)} },
		"hard links": func(i int) entry { return link(fmt.Sprint(i), "l38/f") },
	} {
		entries := manySteps()
		for i := range 5000 {
			entries = append(entries, entryOf(i))
		}
		began := time.Now()
		_, err := convertArchive(t, archiveOf(t, entries...), wide())
		if !errors.Is(err, errRefused) {
			t.Errorf("%s: error = %v", name, err)
		}
		t.Logf("%s: refused after %v", name, time.Since(began))
	}
}

func TestSparse(t *testing.T) {
	t.Parallel()
	// A sparse file of PAX format 1.0: a map of one piece, then its data.
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	// archive/tar writes no sparse files; GNU's records are made by hand.
	sparse := "1\n1048576\n4\n"
	body := sparse + strings.Repeat("\x00", 512-len(sparse)) + "data"
	h := &tar.Header{Name: "GNUSparseFile.0/f", Typeflag: tar.TypeReg, Size: int64(len(body)), Mode: 0o644}
	var raw bytes.Buffer
	pax := paxRecord("GNU.sparse.major", "1") + paxRecord("GNU.sparse.minor", "0") + paxRecord("GNU.sparse.name", "f") + paxRecord("GNU.sparse.realsize", "1048580")
	px := tar.NewWriter(&raw)
	if err := px.WriteHeader(&tar.Header{Name: "pax", Typeflag: tar.TypeReg, Size: int64(len(pax)), Mode: 0o644, Format: tar.FormatUSTAR}); err != nil {
		t.Fatal(err)
	}
	head := raw.Bytes()
	head[156] = 'x'
	fixChecksum(head)
	b.Write(head)
	b.WriteString(pax + strings.Repeat("\x00", 512-len(pax)%512))
	if err := w.WriteHeader(h); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, body); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	path, err := convertArchive(t, b.Bytes(), wide())
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	root, _, err := erofs.Load(f, func(int64) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	if n := root.Children["f"]; n == nil || n.Size != 1048580 {
		t.Errorf("f = %+v", n)
	}
	if _, err := convertArchive(t, b.Bytes(), limits{bytes: 1 << 20, entries: 10, image: newBudget(newLedger())}); !errors.Is(err, errRefused) {
		t.Errorf("a sparse file beyond the limit: %v", err)
	}
}

// TestPAXHeadersAreForgotten is not parallel: it looks at the heap. A name of five
// bytes is part of a record of a megabyte.
func TestPAXHeadersAreForgotten(t *testing.T) {
	const headers = 48
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := range headers {
		h := &tar.Header{
			Typeflag: tar.TypeSymlink, Name: fmt.Sprintf("é%d", i), Linkname: fmt.Sprintf("ü%d", i), Format: tar.FormatPAX,
			PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b", "GANTRY.comment": strings.Repeat("x", 1<<20-2000)},
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	out, err := os.Create(filepath.Join(t.TempDir(), "layer"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	image, err := erofs.NewWriter(out, erofs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	before := heap()
	a, err := readArchive(bytes.NewReader(b.Bytes()), image, wide())
	if err != nil {
		t.Fatal(err)
	}
	grown := int64(heap()) - int64(before)
	runtime.KeepAlive(&b) // or its end would hide what is kept
	if grown > headers<<20/4 {
		t.Errorf("a tree of %d short names keeps %d bytes", headers, grown)
	}
	n := a.root.Children["é7"]
	if n == nil || n.Target != "ü7" || n.Xattrs["user.a"] != "b" {
		t.Errorf("é7 = %+v", n)
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func TestBudgetOfImage(t *testing.T) {
	t.Parallel()
	layer := archiveOf(t, entry{name: "name"}, entry{name: "f", data: strings.Repeat("x", 4000)})
	for name, c := range map[string]struct {
		change func(*budget)
		want   string
	}{
		"entries":  {func(b *budget) { b.entries.Store(3) }, "too many entries"},
		"memory":   {func(b *budget) { b.ledger.maxMemory = 1000 }, "bytes of memory"},
		"archives": {func(b *budget) { b.archived.Store(freeBytes - int64(len(layer)) - 10) }, "what was downloaded"},
		"files":    {func(b *budget) { b.unpacked.Store(freeBytes - 4010) }, "what was downloaded"},
	} {
		l := wide()
		c.change(l.image)
		if _, err := convertArchive(t, layer, l); err != nil {
			t.Errorf("%s: the first layer: %v", name, err)
		}
		if _, err := convertArchive(t, layer, l); !errors.Is(err, errRefused) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: the second layer: %v", name, err)
		}
	}
}

// What a manifest says about sizes is no bound; what came is.
func TestBudgetGrowsWithDownload(t *testing.T) {
	t.Parallel()
	b := newBudget(newLedger())
	b.unpacked.Store(freeBytes + 3*maxRatio)
	if err := b.grow(&b.unpacked, 1); !errors.Is(err, errRefused) {
		t.Errorf("nothing was downloaded: %v", err)
	}
	b.downloaded.Add(4)
	if err := b.grow(&b.unpacked, maxRatio-1); err != nil {
		t.Errorf("four bytes were downloaded: %v", err)
	}
	if err := b.grow(&b.unpacked, 1); !errors.Is(err, errRefused) {
		t.Errorf("four bytes became 801: %v", err)
	}
}

// All images under way share the engine's memory. What one gave back another gets.
func TestMemoryOfAllImages(t *testing.T) {
	t.Parallel()
	l := newLedger()
	one, two := newBudget(l), newBudget(l)
	if err := one.take(maxMemory); err != nil {
		t.Fatal(err)
	}
	if err := two.take(maxMemory); !errors.Is(err, pod.ErrExhausted) || errors.Is(err, errRefused) {
		t.Errorf("two images of %d bytes: %v", maxMemory, err)
	}
	one.close()
	two.close()
	if got := l.left.Load(); got != allMemory {
		t.Errorf("%d bytes are left of %d", got, allMemory)
	}
	if err := two.take(maxMemory); err != nil {
		t.Errorf("after the first one: %v", err)
	}
}

// TestImpliedDirectories: a kilobyte of names must not become a gigabyte of
// directories. It is not parallel: it looks at the heap.
func TestImpliedDirectories(t *testing.T) {
	l := wide()
	l.image.ledger.maxMemory = 16 << 20
	var entries []entry
	for i := range 60 {
		entries = append(entries, entry{name: fmt.Sprintf("%d/", i) + strings.Repeat("d/", 1900)})
	}
	out, err := os.Create(filepath.Join(t.TempDir(), "layer"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	image, err := erofs.NewWriter(out, erofs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	data := archiveOf(t, entries...)
	var most int64
	before := heap()
	// The archive is read in small pieces: between two of them the heap is looked at.
	see := readerFunc(func(p []byte) (int, error) {
		most = max(most, int64(heap())-int64(before))
		n := copy(p[:min(len(p), 32<<10)], data)
		data = data[n:]
		if n == 0 {
			return 0, io.EOF
		}
		return n, nil
	})
	if _, err := readArchive(see, image, l); !errors.Is(err, errRefused) || !strings.Contains(err.Error(), "bytes of memory") {
		t.Errorf("114,000 directories: %v", err)
	}
	if most > 16<<20 {
		t.Errorf("%d bytes of memory were taken", most)
	}
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func paxRecord(key, value string) string {
	for n := len(key) + len(value) + 3; ; n++ {
		if s := fmt.Sprintf("%d %s=%s\n", n, key, value); len(s) == n {
			return s
		}
	}
}

func fixChecksum(head []byte) {
	copy(head[148:156], "        ")
	sum := 0
	for _, c := range head[:512] {
		sum += int(c)
	}
	copy(head[148:156], fmt.Sprintf("%06o\x00 ", sum))
}

// FuzzArchive feeds any bytes. What is accepted must be an image that both our
// reader and another read, with no name or mark that only we may set.
func FuzzArchive(f *testing.F) {
	f.Add(archiveOf(f, entry{name: "./"}, entry{name: "a/b", data: "x"}, entry{name: "l", link: "../a", kind: tar.TypeSymlink}, entry{name: "l/.wh.b"}))
	f.Add(archiveOf(f, entry{name: "h", link: "a", kind: tar.TypeLink}, entry{name: ".wh..wh..opq"}, entry{name: "x", xattrs: map[string]string{"user.a": "b"}}))
	f.Add([]byte("not an archive"))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		out, err := os.CreateTemp(dir, "layer")
		if err != nil {
			t.Fatal(err)
		}
		defer os.Remove(out.Name())
		defer out.Close()
		w, err := erofs.NewWriter(out, erofs.Options{})
		if err != nil {
			t.Fatal(err)
		}
		a, err := readArchive(bytes.NewReader(data), w, limits{bytes: 1 << 20, entries: 1000, image: newBudget(newLedger())})
		if err != nil {
			return
		}
		if _, err := w.Finish(a.root); err != nil {
			t.Fatalf("accepted, and cannot be written: %v", err)
		}
		layer, _, err := erofs.Load(out, func(int64) error { return nil })
		if err != nil {
			t.Fatalf("cannot be read back: %v", err)
		}
		if err := addLayer(newRoot(), layer, 1); err != nil && !errors.Is(err, pod.ErrInvalid) {
			t.Fatal(err)
		}
	})
}
