package arch

import (
	"go/ast"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestPackageDocs: every package says what it is for, once, in the file that is
// named like it (main packages: anywhere).
func TestPackageDocs(t *testing.T) {
	t.Parallel()
	for _, p := range sources(t) {
		code := p.writtenCode()
		if len(code) == 0 {
			continue
		}
		var docs []*file
		for _, f := range code {
			if f.ast.Doc != nil {
				docs = append(docs, f)
			}
		}
		name := code[0].ast.Name.Name
		switch {
		case len(docs) == 0:
			t.Errorf("%s: no package comment", p.dir)
		case len(docs) > 1:
			t.Errorf("%s: package comments in %s and %s: one place only", p.dir, docs[0].name, docs[1].name)
		case name == "main":
			if program := path.Base(p.dir); !strings.HasPrefix(strings.ToLower(docs[0].ast.Doc.Text()), program) && !strings.HasPrefix(docs[0].ast.Doc.Text(), "Command "+program) {
				t.Errorf("%s: the comment of a program begins with its name", docs[0].name)
			}
		default:
			if !strings.HasPrefix(docs[0].ast.Doc.Text(), "Package "+name+" ") {
				t.Errorf("%s: the comment begins with \"Package %s\"", docs[0].name, name)
			}
			if want := path.Join(p.dir, path.Base(p.dir)+".go"); docs[0].name != want {
				t.Errorf("%s: the package comment belongs in %s", docs[0].name, want)
			}
		}
	}
}

// TestProofsAreThere: a test that docs/testing.md names is one.
func TestProofsAreThere(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile(filepath.Join(root, "docs/testing.md"))
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	for _, p := range sources(t) {
		for _, f := range p.files {
			for _, d := range f.ast.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok && f.test {
					there[fn.Name.Name] = true
				}
			}
		}
	}
	// What stands before is about running tests, with names that stand for any.
	_, proofs, ok := strings.Cut(string(page), "\n## Faults\n")
	if !ok {
		t.Fatal("docs/testing.md has no chapter about faults")
	}
	for _, name := range regexp.MustCompile(`\bTest[A-Z]\w+`).FindAllString(proofs, -1) {
		if !there[name] {
			t.Errorf("docs/testing.md names %s, which is no test", name)
		}
	}
}

// The budgets are soft: the worst are printed, and a reader decides.
const (
	fileBudget      = 500
	funcBudget      = 60
	interfaceBudget = 7
	fanOutBudget    = 8
)

type overrun struct {
	what string
	n    int
}

func TestBudgets(t *testing.T) {
	t.Parallel()
	var files, funcs, interfaces, fans []overrun
	for _, p := range sources(t) {
		fan := map[string]bool{}
		for _, f := range p.code() {
			files = append(files, overrun{f.name, f.lines})
			for _, imp := range f.imports {
				if strings.HasPrefix(imp, module) {
					fan[imp] = true
				}
			}
			ast.Inspect(f.ast, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.FuncDecl:
					lines := f.fset.Position(n.End()).Line - f.fset.Position(n.Pos()).Line + 1
					funcs = append(funcs, overrun{f.at(n) + " " + n.Name.Name, lines})
				case *ast.TypeSpec:
					if i, ok := n.Type.(*ast.InterfaceType); ok {
						interfaces = append(interfaces, overrun{f.at(n) + " " + n.Name.Name, i.Methods.NumFields()})
					}
				}
				return true
			})
		}
		fans = append(fans, overrun{p.dir, len(fan)})
	}
	worst(t, "files of more than %d lines", fileBudget, files)
	worst(t, "functions of more than %d lines", funcBudget, funcs)
	worst(t, "interfaces of more than %d methods", interfaceBudget, interfaces)
	worst(t, "packages that import more than %d of ours", fanOutBudget, fans)
}

func worst(t *testing.T, what string, budget int, all []overrun) {
	t.Helper()
	over := slices.DeleteFunc(all, func(o overrun) bool { return o.n <= budget })
	slices.SortFunc(over, func(a, b overrun) int { return b.n - a.n })
	t.Logf(what+": %d", budget, len(over))
	for _, o := range over[:min(5, len(over))] {
		t.Logf("  %4d %s", o.n, o.what)
	}
}
