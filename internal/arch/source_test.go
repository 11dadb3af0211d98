package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

const (
	module = "gantry/"
	root   = "../.."
)

// pkg is a directory with Go files.
type pkg struct {
	dir   string // relative to the module's root
	files []*file
}

type file struct {
	name string // relative to the module's root
	test bool
	ast  *ast.File
	fset *token.FileSet
	// imports maps the name that the file uses to the path it imports.
	imports map[string]string
	lines   int
}

// source is the module, read once. Modules inside this one are left out.
var source = sync.OnceValues(func() (map[string]*pkg, error) {
	pkgs := map[string]*pkg{}
	fset := token.NewFileSet()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return skipDir(path, d.Name())
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		f, err := parse(fset, path)
		if err != nil {
			return err
		}
		dir := filepath.Dir(f.name)
		if pkgs[dir] == nil {
			pkgs[dir] = &pkg{dir: dir}
		}
		pkgs[dir].files = append(pkgs[dir].files, f)
		return nil
	})
	return pkgs, err
})

func skipDir(path, name string) error {
	if path != root && (strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") || name == "testdata" || name == "bin" || name == "out") {
		return fs.SkipDir
	}
	if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil && path != root {
		return fs.SkipDir
	}
	return nil
}

func parse(fset *token.FileSet, path string) (*file, error) {
	a, err := parser.ParseFile(fset, path, nil, parser.ParseComments)
	if err != nil {
		return nil, err
	}
	name, err := filepath.Rel(root, path)
	if err != nil {
		return nil, err
	}
	f := &file{name: name, test: strings.HasSuffix(name, "_test.go"), ast: a, fset: fset, imports: map[string]string{}}
	f.lines = fset.Position(a.FileEnd).Line
	for _, imp := range a.Imports {
		p, err := strconv.Unquote(imp.Path.Value)
		if err != nil {
			return nil, err
		}
		as := p[strings.LastIndexByte(p, '/')+1:]
		if imp.Name != nil {
			as = imp.Name.Name
		}
		if as == "_" {
			as = p
		}
		f.imports[as] = p
	}
	return f, nil
}

// sources are the packages in order.
func sources(t *testing.T) []*pkg {
	t.Helper()
	pkgs, err := source()
	if err != nil {
		t.Fatal(err)
	}
	if len(pkgs) < 10 {
		t.Fatalf("found %d packages below %s: is that the module?", len(pkgs), root)
	}
	var out []*pkg
	for _, p := range pkgs {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b *pkg) int { return strings.Compare(a.dir, b.dir) })
	return out
}

// code is a package's files that are not tests.
func (p *pkg) code() []*file {
	var out []*file
	for _, f := range p.files {
		if !f.test {
			out = append(out, f)
		}
	}
	return out
}

// written are the files that people write: what a program generates from a protocol is as
// that program has it.
func (p *pkg) written() []*file {
	return slices.DeleteFunc(slices.Clone(p.files), func(f *file) bool { return ast.IsGenerated(f.ast) })
}

// writtenCode is what of it is no test.
func (p *pkg) writtenCode() []*file {
	return slices.DeleteFunc(p.code(), func(f *file) bool { return ast.IsGenerated(f.ast) })
}

// forTests tells whether a package exists for tests: fakes and contract suites,
// and all that lies in test/ and bench/.
func (p *pkg) forTests() bool {
	return strings.HasSuffix(p.dir, "test") || within(p.dir, "test") || within(p.dir, "bench")
}

func within(path, prefix string) bool { return path == prefix || strings.HasPrefix(path, prefix+"/") }

func (f *file) at(n ast.Node) string {
	return f.name + ":" + strconv.Itoa(f.fset.Position(n.Pos()).Line)
}
