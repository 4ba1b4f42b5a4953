package pki

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

// Every TLS configuration of the product is made in this package, and speaks nothing below TLS 1.3.
func TestEveryConfiguration(t *testing.T) {
	root := filepath.Join("..", "..")
	found := 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a file that went away meanwhile
		}
		if err != nil {
			return err
		}
		if d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "tests") {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			c, ok := n.(*ast.CompositeLit)
			if !ok || name(c.Type) != "tls.Config" {
				return true
			}
			found++
			if filepath.Dir(path) != filepath.Join(root, "cluster", "pki") {
				t.Errorf("%s makes a TLS configuration; take one of cluster/pki's", path)
			}
			least := ""
			for _, e := range c.Elts {
				if kv, ok := e.(*ast.KeyValueExpr); ok && name(kv.Key) == "MinVersion" {
					least = name(kv.Value)
				}
			}
			if least != "tls.VersionTLS13" {
				t.Errorf("%s: a TLS configuration whose MinVersion is %q", path, least)
			}
			return true
		})
		return nil
	})
	if err != nil || found < 5 {
		t.Errorf("%d configurations, %v", found, err)
	}
}

func name(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return name(e.X) + "." + e.Sel.Name
	}
	return ""
}
