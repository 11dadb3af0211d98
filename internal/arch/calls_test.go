package arch

import (
	"go/ast"
	"go/token"
	"slices"
	"strings"
	"testing"
)

// ban is a name of a foreign package that code may not use, and why.
type ban struct {
	path   string
	names  []string // nil: all
	except func(p *pkg, f *file) bool
	why    string
}

func inTests(p *pkg, f *file) bool   { return f.test || p.forTests() }
func inVMTests(p *pkg, _ *file) bool { return within(p.dir, "test") || within(p.dir, "bench") }
func inMain(p *pkg, f *file) bool    { return inTests(p, f) || within(p.dir, "cmd") }
func inCLI(p *pkg, f *file) bool     { return inMain(p, f) || p.dir == "internal/cli" }

var bans = []ban{
	{"os", []string{"Create"}, inTests, "a crash leaves half a file under the right name: disk.WriteFile, or os.OpenFile with O_EXCL"},
	{"os", []string{"IsNotExist", "IsExist", "IsPermission", "IsTimeout"}, nil, "they do not look into wrapped errors: errors.Is(err, fs.ErrNotExist)"},
	{"os", []string{"Exit"}, inMain, "what was deferred does not run: return an error to main"},
	{"os", []string{"Chdir", "Setenv", "Unsetenv", "Clearenv"}, inMain, "they change the whole process under everybody's feet"},
	{"log", nil, inTests, "it is global: take a *slog.Logger in the Config"},
	{"log/slog", []string{"Default", "SetDefault", "Debug", "Info", "Warn", "Error", "DebugContext", "InfoContext", "WarnContext", "ErrorContext"}, inMain, "the default logger is global: take a *slog.Logger in the Config"},
	{"fmt", []string{"Print", "Printf", "Println"}, inCLI, "only programs print; the rest returns, or logs"},
	{"context", []string{"Background"}, inMain, "work that nobody can cancel: take a ctx (context.WithoutCancel(ctx) for undoing things)"},
	{"context", []string{"TODO"}, nil, "the ctx is missing: add the parameter"},
	{"time", []string{"Sleep"}, inVMTests, "nothing can interrupt it, and tests get slow and flaky: a timer and select, or wait for the thing itself"},
	{"time", []string{"Tick"}, nil, "it cannot be stopped: time.NewTicker"},
	{"io/ioutil", nil, nil, "deprecated: os and io"},
	{"math/rand", nil, nil, "names and secrets must not be guessed: crypto/rand, or math/rand/v2 with a seed in tests"},
	{"path/filepath", []string{"Walk"}, nil, "filepath.WalkDir does not stat every file"},
	{"net/http", []string{"DefaultClient", "Get", "Post", "Head"}, inTests, "no time-out, and global"},
	{"testing", []string{"Short"}, nil, "tests do not differ by a flag: the slow ones live in test/e2e"},
}

// allowed are uses of a banned name that were looked at, by file and name.
var allowed = map[string]string{
	"internal/engine/execgroup.go time.Sleep":           "at most a second, for killed processes to be reaped",
	"internal/engine/step.go time.Sleep":                "a failpoint is to block",
	"internal/initproc/stdio.go time.Sleep":             "a program that does nothing else while it waits",
	"internal/stdio/server.go time.Sleep":               "a pause before the same call is tried again",
	"internal/image/store_test.go time.Sleep":           "waits for another goroutine to block, which nothing tells of",
	"internal/network/attach_test.go time.Sleep":        "waits for processes of others to end",
	"internal/network/conf_test.go time.Sleep":          "lets the clock of the file system tick",
	"internal/network/networktest/plugin.go time.Sleep": "a plugin that hangs or is slow is what it plays",
	"internal/stdio/attach_test.go time.Sleep":          "polls a server in another process",
	"internal/stdio/bench_test.go time.Sleep":           "waits for garbage to be collected in another process",
	"internal/stdio/format_test.go time.Sleep":          "shows that nothing happens for a while",
	"internal/stdio/stdio_test.go time.Sleep":           "polls a server in another process",
	"internal/stdio/supervise_test.go time.Sleep":       "polls a server in another process",
}

func TestBannedCalls(t *testing.T) {
	t.Parallel()
	used := map[string]bool{}
	for _, p := range sources(t) {
		for _, f := range p.written() {
			for _, b := range bans {
				if b.except != nil && b.except(p, f) {
					continue
				}
				for _, u := range f.uses(b) {
					key := f.name + " " + b.path + "." + u.name
					used[key] = true
					if allowed[key] == "" {
						t.Errorf("%s: %s.%s: %s", f.at(u.node), b.path, u.name, b.why)
					}
				}
			}
		}
	}
	for key := range allowed {
		if !used[key] {
			t.Errorf("allowed has %q, which is not used any more", key)
		}
	}
}

type use struct {
	name string
	node ast.Node
}

// uses finds the names of a ban in a file.
func (f *file) uses(b ban) []use {
	var as string
	for name, path := range f.imports {
		if path == b.path {
			as = name
		}
	}
	if as == "" {
		return nil
	}
	var found []use
	ast.Inspect(f.ast, func(n ast.Node) bool {
		s, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		// An identifier that is declared in the file is a variable, not the package.
		x, ok := s.X.(*ast.Ident)
		if ok && x.Name == as && x.Obj == nil && (b.names == nil || slices.Contains(b.names, s.Sel.Name)) {
			found = append(found, use{s.Sel.Name, s})
		}
		return true
	})
	return found
}

// TestNoPanicNoInit: an error is returned; nothing happens because a package was
// linked in.
func TestNoPanicNoInit(t *testing.T) {
	t.Parallel()
	for _, p := range sources(t) {
		for _, f := range p.written() {
			for _, d := range f.ast.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
					t.Errorf("%s: no init(): what happens at start stands in main", f.at(fn))
				}
			}
			if inTests(p, f) {
				continue
			}
			ast.Inspect(f.ast, func(n ast.Node) bool {
				if c, ok := n.(*ast.CallExpr); ok {
					if x, ok := c.Fun.(*ast.Ident); ok && x.Name == "panic" && x.Obj == nil {
						t.Errorf("%s: no panic: return an error", f.at(c))
					}
				}
				return true
			})
		}
	}
}

// TestSkipsSayWhy: a test that cannot run is reported with its reason.
func TestSkipsSayWhy(t *testing.T) {
	t.Parallel()
	for _, p := range sources(t) {
		for _, f := range p.written() {
			ast.Inspect(f.ast, func(n ast.Node) bool {
				c, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				s, ok := c.Fun.(*ast.SelectorExpr)
				if ok && (s.Sel.Name == "SkipNow" || s.Sel.Name == "Skip" && len(c.Args) == 0 && inTests(p, f)) {
					t.Errorf("%s: a test is skipped without a reason", f.at(c))
				}
				return true
			})
		}
	}
}

// TestNoChangingGlobals: a variable of a package is set where it is declared and
// never again. The one that the linker sets, version, is a string in main.
func TestNoChangingGlobals(t *testing.T) {
	t.Parallel()
	for _, p := range sources(t) {
		if p.forTests() {
			continue
		}
		vars := map[string]bool{}
		for _, f := range p.writtenCode() {
			for name := range globals(f) {
				vars[name] = true
			}
		}
		for _, f := range p.writtenCode() {
			own := globals(f)
			ast.Inspect(f.ast, func(n ast.Node) bool {
				for _, lhs := range changed(n) {
					x := base(lhs)
					if x == nil || !vars[x.Name] {
						continue
					}
					if x.Obj == nil || own[x.Name] == x.Obj.Decl {
						t.Errorf("%s: %s is a variable of the package and is changed: put it into a struct", f.at(n), x.Name)
					}
				}
				return true
			})
		}
	}
}

// globals are the variables that a file declares for its package.
func globals(f *file) map[string]any {
	vars := map[string]any{}
	for _, d := range f.ast.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.VAR {
			continue
		}
		for _, s := range g.Specs {
			spec, ok := s.(*ast.ValueSpec)
			if !ok {
				continue
			}
			for _, name := range spec.Names {
				vars[name.Name] = spec
			}
		}
	}
	delete(vars, "_")
	return vars
}

// changed are the expressions that a statement gives a new value.
func changed(n ast.Node) []ast.Expr {
	switch n := n.(type) {
	case *ast.AssignStmt:
		if n.Tok != token.DEFINE {
			return n.Lhs
		}
	case *ast.IncDecStmt:
		return []ast.Expr{n.X}
	case *ast.CallExpr:
		if f, ok := n.Fun.(*ast.Ident); ok && f.Obj == nil && (f.Name == "delete" || f.Name == "clear") && len(n.Args) > 0 {
			return n.Args[:1]
		}
	}
	return nil
}

// base is the variable at the bottom of a.b[c].
func base(e ast.Expr) *ast.Ident {
	for {
		switch x := e.(type) {
		case *ast.Ident:
			return x
		case *ast.SelectorExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.StarExpr:
			e = x.X
		case *ast.ParenExpr:
			e = x.X
		default:
			return nil
		}
	}
}

// TestMessages: "verb object: cause", in lower case, without "failed to".
func TestMessages(t *testing.T) {
	t.Parallel()
	for _, p := range sources(t) {
		for _, f := range p.writtenCode() {
			ast.Inspect(f.ast, func(n ast.Node) bool {
				c, ok := n.(*ast.CallExpr)
				if !ok || len(c.Args) == 0 {
					return true
				}
				s, ok := c.Fun.(*ast.SelectorExpr)
				if !ok || s.Sel.Name != "Errorf" && s.Sel.Name != "New" {
					return true
				}
				x, _ := s.X.(*ast.Ident)
				lit, _ := c.Args[0].(*ast.BasicLit)
				if x == nil || lit == nil || f.imports[x.Name] != "fmt" && f.imports[x.Name] != "errors" {
					return true
				}
				text := strings.ToLower(strings.Trim(lit.Value, "\"`"))
				for _, word := range []string{"failed to ", "unable to ", "could not ", "error while", "error: "} {
					if strings.Contains(text, word) {
						t.Errorf("%s: %q: say what was done and to what (\"start unit x: cause\"), not %q", f.at(c), text, strings.TrimSpace(word))
					}
				}
				return true
			})
		}
	}
}
