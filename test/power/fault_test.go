//go:build power

package power

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// edit returns a source file with a fault in it, or nil if this is not the file for it.
type edit func(name string, src []byte) ([]byte, error)

// faults are flushes to be left out. Where they stand is found by what they do.
var faults = map[string]edit{
	"no file is flushed":      bodyWith("Sync", "Fdatasync("),
	"no body file is flushed": replaced("b.j.flush(b.file.Sync)", "error(nil)"),
}

// bodyWith makes the method of that name, with that text in its body, return nil.
func bodyWith(method, text string) edit {
	return func(name string, src []byte) ([]byte, error) {
		if !strings.Contains(string(src), text) {
			return nil, nil
		}
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, name, src, 0)
		if err != nil {
			return nil, err
		}
		for _, d := range file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || f.Recv == nil || f.Name.Name != method || f.Body == nil {
				continue
			}
			open, end := set.Position(f.Body.Lbrace).Offset+1, set.Position(f.Body.Rbrace).Offset
			if strings.Contains(string(src[open:end]), text) {
				return []byte(string(src[:open]) + " if true { return nil }; " + string(src[open:])), nil
			}
		}
		return nil, nil
	}
}

// replaced puts one expression in the place of another.
func replaced(old, with string) edit {
	return func(name string, src []byte) ([]byte, error) {
		switch n := strings.Count(string(src), old); n {
		case 0:
			return nil, nil
		case 1:
			return []byte(strings.Replace(string(src), old, with, 1)), nil
		default:
			return nil, fmt.Errorf("%s has %q %d times", name, old, n)
		}
	}
}

// buildFaulty builds msgw with one source file edited. It is an error if not exactly one
// can be.
func buildFaulty(t *testing.T, to string, e edit) error {
	top, err := filepath.Abs("../../internal")
	if err != nil {
		return err
	}
	overlay := struct{ Replace map[string]string }{map[string]string{}}
	err = filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
			return err
		}
		src, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		b, err := e(path, src)
		if err != nil || b == nil {
			return err
		}
		edited := filepath.Join(t.TempDir(), "edited.go")
		overlay.Replace[path] = edited
		return os.WriteFile(edited, b, 0o600)
	})
	if err != nil {
		return err
	}
	if len(overlay.Replace) != 1 {
		return fmt.Errorf("the flush to leave out is in %d files: %v; expected one", len(overlay.Replace), overlay.Replace)
	}
	for path := range overlay.Replace {
		t.Logf("left out in %s", path)
	}
	b, err := json.Marshal(overlay)
	if err != nil {
		return err
	}
	list := filepath.Join(t.TempDir(), "overlay.json")
	if err := os.WriteFile(list, b, 0o600); err != nil {
		return err
	}
	return build(to, "msgw/cmd/msgw", "-overlay", list)
}
