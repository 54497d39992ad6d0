package internal_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// archPackage is what the go command says of one package for another architecture.
type archPackage struct {
	ImportPath, Dir string
	GoFiles         []string
	ImportMap       map[string]string
	Error           *struct{ Err string }
}

// typeChecker checks packages, dependencies first, from their sources: compiling all of them takes minutes.
type typeChecker struct {
	files *token.FileSet
	known map[string]*types.Package
	sizes types.Sizes
}

// TestOtherArchitectures holds that all commands are Go for other architectures too. Of dependencies only the declarations
// are looked at.
func TestOtherArchitectures(t *testing.T) {
	const arch = "arm64"
	cmd := exec.Command("go", "list", "-deps", "-json=ImportPath,Dir,GoFiles,ImportMap,Error", "./cmd/...")
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH="+arch, "CGO_ENABLED=0")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := typeChecker{files: token.NewFileSet(), known: map[string]*types.Package{"unsafe": types.Unsafe}, sizes: types.SizesFor("gc", arch)}
	for dec := json.NewDecoder(out); ; {
		var p archPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if p.Error != nil {
			t.Fatalf("%s: %s", p.ImportPath, p.Error.Err)
		}
		if err := c.check(p); err != nil {
			t.Errorf("%s for %s: %v", p.ImportPath, arch, err)
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
}

func (c *typeChecker) check(p archPackage) error {
	if p.ImportPath == "unsafe" {
		return nil
	}
	ours := strings.HasPrefix(p.ImportPath, module)
	var parsed []*ast.File
	for _, name := range p.GoFiles {
		f, err := parser.ParseFile(c.files, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		parsed = append(parsed, f)
	}
	var errs []error
	conf := types.Config{
		Importer: importMap{c, p.ImportMap}, Sizes: c.sizes, IgnoreFuncBodies: !ours, FakeImportC: true,
		Error: func(err error) {
			if ours {
				errs = append(errs, err)
			}
		},
	}
	pkg, _ := conf.Check(p.ImportPath, c.files, parsed, nil)
	c.known[p.ImportPath] = pkg
	return errors.Join(errs...)
}

// importMap finds what a package imports among those that were checked.
type importMap struct {
	c    *typeChecker
	name map[string]string
}

var _ types.Importer = importMap{}

func (m importMap) Import(path string) (*types.Package, error) {
	if mapped := m.name[path]; mapped != "" {
		path = mapped
	}
	if pkg := m.c.known[path]; pkg != nil {
		return pkg, nil
	}
	return nil, fmt.Errorf("%s was not checked before", path)
}
