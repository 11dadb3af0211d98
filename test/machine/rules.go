package machine

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// CheckGuarded is for an ordinary unit test of a package whose other tests run
// on a real machine: it reads those of the current directory, without compiling
// them, and fails if one is not guarded.
func CheckGuarded(t *testing.T) {
	t.Helper()
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range files {
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		if path == "rules_test.go" {
			continue
		}
		for _, decl := range f.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok {
				checkTest(t, path, fn)
			}
		}
	}
}

func checkTest(t *testing.T, path string, fn *ast.FuncDecl) {
	t.Helper()
	name := fn.Name.Name
	if fn.Recv != nil || !strings.HasPrefix(name, "Test") || name == "TestMain" {
		return
	}
	if len(fn.Body.List) == 0 || !callsGuard(fn.Body.List[0]) {
		t.Errorf("%s: %s does not start with guard(t): what it leaves behind would go unseen", path, name)
	}
	ast.Inspect(fn, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok && s.Sel.Name == "Parallel" {
			t.Errorf("%s: %s is parallel: all tests share one machine", path, name)
		}
		return true
	})
}

// callsGuard says whether a statement is a call of guard, or of one of the two for
// tests around a fall of the machine, its result used or not.
func callsGuard(stmt ast.Stmt) bool {
	var found bool
	ast.Inspect(stmt, func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok {
			if id, ok := call.Fun.(*ast.Ident); ok && slices.Contains([]string{"guard", "guardBefore", "guardAfter"}, id.Name) {
				found = true
			}
		}
		return !found
	})
	return found
}
