package erofs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func free(int64) error { return nil }

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// costlyTrees are trees of many nodes, by what most of them are.
func costlyTrees(n int) map[string]func() *Node {
	eachName := func(root *Node, make func(i int) *Node) *Node {
		for i := range n {
			root.Children[fmt.Sprintf("%08d", i)] = make(i)
		}
		return root
	}
	return map[string]func() *Node{
		"files": func() *Node {
			return eachName(NewDir(0), func(int) *Node { return &Node{Mode: 0o100644} })
		},
		"links": func() *Node {
			return eachName(NewDir(0), func(i int) *Node {
				return &Node{Mode: 0o120777, Target: strings.Repeat("t", 200) + fmt.Sprint(i)}
			})
		},
		"names of one file": func() *Node {
			f := &Node{Mode: 0o100644}
			return eachName(NewDir(0), func(int) *Node { return f })
		},
		"empty directories": func() *Node { return eachName(NewDir(0), func(int) *Node { return NewDir(0) }) },
		"small directories": func() *Node {
			return eachName(NewDir(0), func(int) *Node {
				d := NewDir(0)
				d.Children["f"] = &Node{Mode: 0o100644}
				return d
			})
		},
		"deep directories": func() *Node {
			root := NewDir(0)
			here := root
			for range n {
				d := NewDir(0)
				here.Children["d"] = d
				here = d
			}
			return root
		},
		"attributes": func() *Node {
			return eachName(NewDir(0), func(i int) *Node {
				return &Node{Mode: 0o100644, Xattrs: map[string]string{"user.number": fmt.Sprint(i), "user.b": "c"}}
			})
		},
	}
}

func costOf(n *Node, seen map[*Node]bool) int64 {
	if seen[n] {
		return 0
	}
	seen[n] = true
	cost := n.Cost()
	for name, child := range n.Children {
		cost += NameCost(name) + costOf(child, seen)
	}
	return cost
}

// TestCost is not parallel: it looks at the heap. What a tree takes while it is
// written, and when it is loaded, must not be more than what is counted for it.
func TestCost(t *testing.T) {
	const n = 20_000
	for name, tree := range costlyTrees(n) {
		before := heap()
		root := tree()
		l, err := plan(root, 1, 0)
		if err != nil {
			t.Fatal(err)
		}
		real := heap() - before
		counted := costOf(root, map[*Node]bool{})
		runtime.KeepAlive(l)
		t.Logf("%s: %d bytes each, counted %d", name, real/n, counted/n)
		if real > counted || real < counted/4 {
			t.Errorf("%s: a tree of %d nodes takes %d bytes, counted were %d", name, n, real, counted)
		}
		checkLoadCost(t, root)
	}
}

func checkLoadCost(t *testing.T, root *Node) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w, err := NewWriter(f, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Finish(root); err != nil {
		t.Fatal(err)
	}
	runtime.KeepAlive(root)
	var taken, most int64
	before := heap()
	loaded, _, err := Load(f, func(bytes int64) error {
		taken += bytes
		most = max(most, taken)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if real := heap() - before; real > taken || taken > most {
		t.Errorf("loaded, it takes %d bytes, counted were %d, and %d at most", real, taken, most)
	}
	runtime.KeepAlive(loaded)
	full := errors.New("full")
	taken = 0
	_, _, err = Load(f, func(bytes int64) error {
		if taken += bytes; taken > most/2 {
			return full
		}
		return nil
	})
	if !errors.Is(err, full) {
		t.Errorf("with half of it: %v", err)
	}
}

// TestAppendKeepsHoles: a copy of a sparse image must not fill the disk.
func TestAppendKeepsHoles(t *testing.T) {
	t.Parallel()
	const blocks = 16 << 10
	dir := t.TempDir()
	from, err := os.Create(filepath.Join(dir, "from"))
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	for _, at := range []int64{0, 5000 * BlockSize, 9000*BlockSize + 17} {
		if _, err := from.WriteAt([]byte("data"), at); err != nil {
			t.Fatal(err)
		}
	}
	if err := from.Truncate(blocks * BlockSize); err != nil {
		t.Fatal(err)
	}
	to, err := os.Create(filepath.Join(dir, "to"))
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	w, err := NewWriter(to, Options{})
	if err != nil {
		t.Fatal(err)
	}
	start, err := w.Append(from, blocks)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Finish(NewDir(0)); err != nil {
		t.Fatal(err)
	}
	var got [4]byte
	for _, at := range []int64{0, 5000 * BlockSize, 9000*BlockSize + 17} {
		if _, err := to.ReadAt(got[:], int64(start)*BlockSize+at); err != nil || string(got[:]) != "data" {
			t.Errorf("at %d: %q, %v", at, got, err)
		}
	}
	if used := usedBytes(t, to); used > 1<<20 {
		t.Errorf("a copy of three blocks takes %d bytes", used)
	}
	if _, err := w.Append(from, blocks+1); err == nil {
		t.Error("more blocks than there are were appended")
	}
}

func usedBytes(t *testing.T, f *os.File) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}
