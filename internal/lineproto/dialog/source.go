package dialog

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// Source calls f with each expression of the Go files of a directory, its tests
// excepted, and where it stands. A test that looks there for what a server may say
// notices a reply that no script has.
func Source(dir string, f func(at string, e ast.Expr)) error {
	files := token.NewFileSet()
	return fs.WalkDir(os.DirFS(dir), ".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != ".":
			return fs.SkipDir
		case filepath.Ext(path) != ".go", strings.HasSuffix(path, "_test.go"):
			return nil
		}
		file, err := parser.ParseFile(files, filepath.Join(dir, path), nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if e, ok := n.(ast.Expr); ok {
				f(files.Position(e.Pos()).String(), e)
			}
			return true
		})
		return nil
	})
}

var verb = regexp.MustCompile(`%[-+# 0-9.]*[a-zA-Z]`)

// Pattern returns a regular expression for the texts that e, or a format that e is,
// may give: what is no string literal in it may be anything.
func Pattern(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		if s, err := strconv.Unquote(e.Value); e.Kind == token.STRING && err == nil {
			parts := verb.Split(s, -1)
			for i := range parts {
				parts[i] = regexp.QuoteMeta(parts[i])
			}
			return strings.Join(parts, ".*")
		}
	case *ast.BinaryExpr:
		return Pattern(e.X) + Pattern(e.Y)
	case *ast.CallExpr:
		if s, ok := e.Fun.(*ast.SelectorExpr); ok && s.Sel.Name == "Sprintf" {
			return Pattern(e.Args[0])
		}
	}
	return ".*"
}
