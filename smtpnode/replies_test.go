package smtpnode

import (
	"flag"
	"go/ast"
	"go/token"
	"regexp"
	"strings"
	"sync"
	"testing"

	"msgw/internal/lineproto/dialog"
)

// unsaid are replies that nobody can provoke from outside, and why.
var unsaid = map[string]string{
	`250[ -]2\.0\.0 stored`: "session.Data names the message ids in its own 250",
}

// lines collects what the server said in all scripts.
type lines struct {
	mu  sync.Mutex
	all []string
}

func (l *lines) add(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, line)
}

// everyReply checks that each reply which stands in this package was said.
func (l *lines) everyReply(t *testing.T) {
	if f := flag.Lookup("test.run"); f != nil && strings.Contains(f.Value.String(), "/") {
		return // not all scripts were played
	}
	text := strings.Join(l.all, "\n")
	replies := 0
	err := dialog.Source(".", func(at string, e ast.Expr) {
		p := replyPattern(e)
		if p == "" {
			return
		}
		replies++
		said := regexp.MustCompile(`(?m)^` + p + `$`).MatchString(text)
		if why, ok := unsaid[p]; ok {
			if said {
				t.Errorf("%s: %s was said, but is listed as unsaid: %s", at, p, why)
			}
		} else if !said {
			t.Errorf("%s: no script makes the server say %s", at, p)
		}
	})
	if err != nil {
		t.Error(err)
	}
	if replies < 60 {
		t.Errorf("only %d replies found in the source", replies)
	}
}

// replyPattern returns what the reply that e makes looks like, or "".
func replyPattern(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.CallExpr:
		name := ""
		switch f := e.Fun.(type) {
		case *ast.SelectorExpr:
			name = f.Sel.Name
		case *ast.Ident:
			name = f.Name
		}
		switch name {
		case "reply", "refuse":
			return replyOf(e.Args[0], dialog.Pattern(e.Args[1]), e.Args[2])
		case "farewell":
			return `421[ -]` + dialog.Pattern(e.Args[0]) + ` .* ` + dialog.Pattern(e.Args[1])
		case "outOfOrder":
			return `503[ -]5\.5\.1 ` + dialog.Pattern(e.Args[0])
		case "bad":
			return `501[ -]5\.5\.4 ` + dialog.Pattern(e.Args[0])
		case "temporary":
			return replyOf(e.Args[0], `4\.`+digit(e.Args[1])+`\.`+digit(e.Args[2]), e.Args[3])
		case "Write", "WriteString":
			for _, a := range e.Args {
				if c, ok := a.(*ast.CallExpr); ok && len(c.Args) == 1 {
					a = c.Args[0]
				}
				if p := strings.TrimSuffix(dialog.Pattern(a), "\r\n"); regexp.MustCompile(`^[2345][0-9]{2} `).MatchString(p) {
					return p
				}
			}
		}
	case *ast.CompositeLit:
		if s, ok := e.Type.(*ast.SelectorExpr); ok && s.Sel.Name == "SMTPError" {
			return errorPattern(e)
		}
	}
	return ""
}

func replyOf(code ast.Expr, enhanced string, text ast.Expr) string {
	if l, ok := code.(*ast.BasicLit); ok {
		if enhanced != "" {
			enhanced += " "
		}
		return l.Value + `[ -]` + enhanced + dialog.Pattern(text)
	}
	return "" // what others decided
}

// errorPattern is for an smtp.SMTPError in braces.
func errorPattern(e *ast.CompositeLit) string {
	var code, text ast.Expr
	enhanced := ""
	for _, f := range e.Elts {
		kv, ok := f.(*ast.KeyValueExpr)
		if !ok {
			return "" // of temporary, whose callers decide
		}
		switch kv.Key.(*ast.Ident).Name {
		case "Code":
			code = kv.Value
		case "EnhancedCode":
			var digits []string
			for _, d := range kv.Value.(*ast.CompositeLit).Elts {
				digits = append(digits, digit(d))
			}
			enhanced = strings.Join(digits, `\.`)
		case "Message":
			text = kv.Value
		}
	}
	return replyOf(code, enhanced, text)
}

func digit(e ast.Expr) string {
	if l, ok := e.(*ast.BasicLit); ok && l.Kind == token.INT {
		return l.Value
	}
	return `[0-9]+`
}
