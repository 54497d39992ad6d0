package internal_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// source is one package's own code: neither tests nor what a generator wrote.
type source struct {
	name  string // import path without the module's prefix
	fset  *token.FileSet
	files map[string]*ast.File // by path below the repository's root
}

func parsePackages(t *testing.T) []source {
	t.Helper()
	sources, err := parsed()
	if err != nil {
		t.Fatal(err)
	}
	return sources
}

// parsed are all packages, parsed once for all tests, none of which changes them.
var parsed = sync.OnceValues(func() ([]source, error) {
	pkgs, err := listed()
	if err != nil {
		return nil, err
	}
	var sources []source
	for _, p := range pkgs {
		name := strings.TrimPrefix(p.ImportPath, module)
		s := source{name, token.NewFileSet(), map[string]*ast.File{}}
		for _, base := range p.GoFiles {
			file := filepath.Join(name, base)
			content, err := os.ReadFile(filepath.Join("..", file))
			if err != nil {
				return nil, err
			}
			parsed, err := parser.ParseFile(s.fset, file, content, parser.ParseComments)
			if err != nil {
				return nil, err
			}
			if !ast.IsGenerated(parsed) {
				s.files[file] = parsed
			}
		}
		sources = append(sources, s)
	}
	return sources, nil
})

func (s source) lines(n ast.Node) int {
	return s.fset.Position(n.End()).Line - s.fset.Position(n.Pos()).Line + 1
}

func (s source) at(n ast.Node) string {
	pos := s.fset.Position(n.Pos())
	return fmt.Sprintf("%s:%d", pos.Filename, pos.Line)
}

// Yardsticks. What is longer has more than one purpose: it wants a second file, function, type or package.
const (
	maxFile     = 500
	maxFunction = 80
	maxFields   = 15
	maxPackage  = 3000
	maxMain     = 100 // a file of a command: flags, configuration, wiring
	maxMethods  = 7
)

func TestSizes(t *testing.T) {
	for _, s := range parsePackages(t) {
		total := 0
		for name, file := range s.files {
			lines := s.fset.File(file.Pos()).LineCount()
			total += lines
			most := maxFile
			if strings.HasPrefix(name, "cmd/") {
				most = maxMain
			}
			if lines > most {
				t.Errorf("%s has %d lines; at most %d", name, lines, most)
			}
			ast.Inspect(file, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.FuncDecl:
					if l := s.lines(n); l > maxFunction {
						t.Errorf("%s: %s has %d lines; at most %d", s.at(n), n.Name.Name, l, maxFunction)
					}
				case *ast.TypeSpec:
					if st, ok := n.Type.(*ast.StructType); ok && st.Fields.NumFields() > maxFields {
						t.Errorf("%s: %s has %d fields; at most %d", s.at(n), n.Name.Name, st.Fields.NumFields(), maxFields)
					}
				}
				return true
			})
		}
		if total > maxPackage {
			t.Errorf("%s has %d lines; at most %d", s.name, total, maxPackage)
		}
	}
}

// TestInterfaces: an interface says what its consumer needs, so it is the consumer's own and small.
func TestInterfaces(t *testing.T) {
	vocabulary := []string{"internal/hypervisor", "internal/task"}
	// Name → why it may be exported or larger.
	exempt := map[string]string{
		"internal/sandbox.Launcher":   "each kind of pod implements it, and the daemon keeps them in one table",
		"internal/sandbox.Instance":   "launchers of other packages return it",
		"internal/agentclient.Stream": "a stream's type is that of its carrier",
	}
	for _, s := range parsePackages(t) {
		if slices.Contains(vocabulary, s.name) {
			continue
		}
		for _, file := range s.files {
			for _, spec := range typeSpecs(file) {
				i, ok := spec.Type.(*ast.InterfaceType)
				name := s.name + "." + spec.Name.Name
				if !ok || exempt[name] != "" {
					continue
				}
				if spec.Name.IsExported() {
					t.Errorf("%s: %s is exported: an interface belongs to its consumer", s.at(spec), name)
				}
				// One that it is put together from counts as one: it is held to the same.
				if n := i.Methods.NumFields(); n > maxMethods {
					t.Errorf("%s: %s has %d methods; at most %d", s.at(spec), name, n, maxMethods)
				}
			}
		}
	}
}

func typeSpecs(file *ast.File) []*ast.TypeSpec {
	var specs []*ast.TypeSpec
	for _, decl := range file.Decls {
		if d, ok := decl.(*ast.GenDecl); ok {
			for _, spec := range d.Specs {
				if ts, ok := spec.(*ast.TypeSpec); ok {
					specs = append(specs, ts)
				}
			}
		}
	}
	return specs
}

// TestPackageState: what a package does starts where it is called, and what it remembers belongs to a value that
// somebody made. So there is no init function, and no variable of a package that changes.
func TestPackageState(t *testing.T) {
	// The linker writes it.
	written := []string{"internal/version.Version"}
	for _, s := range parsePackages(t) {
		vars := map[string]*ast.Ident{}
		for _, file := range s.files {
			for _, decl := range file.Decls {
				switch d := decl.(type) {
				case *ast.FuncDecl:
					if d.Name.Name == "init" && d.Recv == nil {
						t.Errorf("%s: a package does nothing by being imported", s.at(d))
					}
				case *ast.GenDecl:
					if d.Tok != token.VAR {
						continue
					}
					for _, spec := range d.Specs {
						v := spec.(*ast.ValueSpec)
						embeds := d.Doc != nil && strings.Contains(docText(d.Doc), "//go:embed")
						for _, id := range v.Names {
							if id.Name == "_" || slices.Contains(written, s.name+"."+id.Name) {
								continue
							}
							vars[id.Name] = id
							if len(v.Values) == 0 && !embeds || stateful(v) {
								t.Errorf("%s: variable %s holds state of the package: make it a field of a value", s.at(id), id.Name)
							}
						}
					}
				}
			}
		}
		for _, file := range s.files {
			for _, id := range changed(file) {
				// An identifier that the parser resolved to something else is a local one of the same name.
				if v := vars[id.Name]; v != nil && (id.Obj == nil || id.Obj.Pos() == v.Pos()) {
					t.Errorf("%s: %s is a variable of the package and changes here", s.at(id), id.Name)
				}
			}
		}
	}
}

func docText(doc *ast.CommentGroup) string {
	var b strings.Builder
	for _, c := range doc.List {
		b.WriteString(c.Text + "\n")
	}
	return b.String()
}

// stateful tells whether a variable's type or value is one that lives by changing. sync.OnceValue and its like compute
// a constant late.
func stateful(v *ast.ValueSpec) bool {
	found := false
	for _, n := range append([]ast.Expr{v.Type}, v.Values...) {
		if n == nil {
			continue
		}
		ast.Inspect(n, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncLit:
				return false
			case *ast.ChanType:
				found = true
			case *ast.SelectorExpr:
				if x, ok := n.X.(*ast.Ident); ok && (x.Name == "atomic" || x.Name == "sync" && !strings.HasPrefix(n.Sel.Name, "OnceValue")) {
					found = true
				}
			}
			return true
		})
	}
	return found
}

// changed lists the identifiers that a file assigns to, or to a part of, or whose address it takes.
func changed(file *ast.File) []*ast.Ident {
	var ids []*ast.Ident
	add := func(e ast.Expr) {
		for {
			switch x := e.(type) {
			case *ast.Ident:
				ids = append(ids, x)
				return
			case *ast.IndexExpr:
				e = x.X
			case *ast.SelectorExpr:
				e = x.X
			case *ast.StarExpr:
				e = x.X
			case *ast.ParenExpr:
				e = x.X
			default:
				return
			}
		}
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.AssignStmt:
			if n.Tok != token.DEFINE {
				for _, e := range n.Lhs {
					add(e)
				}
			}
		case *ast.IncDecStmt:
			add(n.X)
		case *ast.UnaryExpr:
			if n.Op == token.AND {
				add(n.X)
			}
		case *ast.CallExpr:
			if f, ok := n.Fun.(*ast.Ident); ok && (f.Name == "delete" || f.Name == "clear") && len(n.Args) > 0 {
				add(n.Args[0])
			}
		}
		return true
	})
	return ids
}

// TestLogKeys: a field has one name everywhere, that of package logfields.
func TestLogKeys(t *testing.T) {
	// Method → position of the first key.
	calls := map[string]int{
		"Debug": 1, "Info": 1, "Warn": 1, "Error": 1, "With": 0, "Log": 3,
		"DebugContext": 2, "InfoContext": 2, "WarnContext": 2, "ErrorContext": 2,
	}
	attrs := []string{"String", "Int", "Int64", "Uint64", "Bool", "Duration", "Time", "Float64", "Any", "Group"}
	for _, s := range parsePackages(t) {
		for _, file := range s.files {
			ast.Inspect(file, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				fun, ok := call.Fun.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				var keys []ast.Expr
				receiver := strings.ToLower(lastName(fun.X))
				if first, ok := calls[fun.Sel.Name]; ok && strings.HasSuffix(receiver, "log") {
					for i := first; i < len(call.Args); i += 2 {
						if _, ok := call.Args[i].(*ast.CallExpr); ok { // an attribute: stands alone
							i--
							continue
						}
						keys = append(keys, call.Args[i])
					}
				} else if receiver == "slog" && slices.Contains(attrs, fun.Sel.Name) && len(call.Args) > 0 {
					keys = append(keys, call.Args[0])
				}
				for _, key := range keys {
					if lit, ok := key.(*ast.BasicLit); ok {
						t.Errorf("%s: log key %s is not one of logfields", s.at(lit), lit.Value)
					}
				}
				return true
			})
		}
	}
}

func lastName(e ast.Expr) string {
	switch x := e.(type) {
	case *ast.Ident:
		return x.Name
	case *ast.SelectorExpr:
		return x.Sel.Name
	case *ast.CallExpr:
		return lastName(x.Fun)
	}
	return ""
}
