package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"testing"
)

// TestRulesCatch: the rules are tried on a file that breaks them, so that they
// cannot become blind without anybody noticing.
func TestRulesCatch(t *testing.T) {
	t.Parallel()
	const text = `package p
import (
	stdlog "log"
	"os"
	"time"
)
var counter, other int
var table = map[string]int{}
func f(time struct{ Sleep func() }) {
	counter++
	table["x"] = 1
	other := 2
	other = 3
	os.Create("x")
	stdlog.Print("x")
	time.Sleep() // not the package
}
`
	fset := token.NewFileSet()
	a, err := parser.ParseFile(fset, "p.go", text, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	f := &file{name: "p.go", ast: a, fset: fset, imports: map[string]string{"stdlog": "log", "os": "os", "time": "time"}}
	var found []string
	for _, b := range bans {
		for _, u := range f.uses(b) {
			found = append(found, b.path+"."+u.name)
		}
	}
	if want := []string{"os.Create", "log.Print"}; !slices.Equal(found, want) {
		t.Errorf("banned calls found: %v, want %v", found, want)
	}
	found = nil
	vars := globals(f)
	ast.Inspect(a, func(n ast.Node) bool {
		for _, lhs := range changed(n) {
			if x := base(lhs); x != nil && vars[x.Name] != nil && x.Obj != nil && x.Obj.Decl == vars[x.Name] {
				found = append(found, x.Name)
			}
		}
		return true
	})
	if want := []string{"counter", "table"}; !slices.Equal(found, want) {
		t.Errorf("changed globals found: %v, want %v", found, want)
	}
}
