package pop3d

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"msgw/internal/lineproto/dialog"
)

// dialogOptions are what the scripts of testdata/dialogs may set with OPTION.
var dialogOptions = map[string]func(o *Options, value string) error{
	"per-address": func(o *Options, v string) (err error) { o.Limits.PerAddress, err = strconv.Atoi(v); return err },
	"failures":    func(o *Options, v string) (err error) { o.Throttle.Address, err = strconv.Atoi(v); return err },
	"login-idle":  func(o *Options, v string) (err error) { o.LoginIdle, err = time.ParseDuration(v); return err },

	// What the test itself does.
	"bare":   nil, // plays from the first octet
	"only":   nil, // "clear", or "secure" for all others
	"others": nil, // that many connections are open already
}

// exchange is one script played against one server.
type exchange struct {
	*site
	deleted []int // what the script says is deleted
}

// words are what scripts may ask of the test. HOLDS "octets" puts a message into the
// maildrop, which else holds the three of function three; DELETED 1 2 says that these
// messages, and no others, are deleted in the end; DROP sets what is the matter with
// the maildrop.
func (x *exchange) words() map[string]func(string) error {
	own := false
	return map[string]func(string) error{
		"HOLDS": func(arg string) error {
			raw, err := dialog.Octets(arg)
			if !own {
				x.drop.list, x.drop.bodies, own = nil, nil, true
			}
			one := newMaildrop(string(raw))
			one.list[0].ID = id(len(x.drop.list))
			x.drop.list, x.drop.bodies = append(x.drop.list, one.list...), append(x.drop.bodies, one.bodies...)
			return err
		},
		"DELETED": func(arg string) error {
			for _, n := range strings.Fields(arg) {
				i, err := strconv.Atoi(n)
				if err != nil {
					return err
				}
				x.deleted = append(x.deleted, i-1)
			}
			return nil
		},
		"DROP": func(arg string) error {
			x.archive.mu.Lock()
			defer x.archive.mu.Unlock()
			switch arg {
			case "is in use":
				x.archive.err = ErrInUse
			case "cannot be opened":
				x.archive.err = errors.New("/var/lib/secret")
			case "works":
				x.archive.err = nil
			case "deletes nothing":
				x.drop.delete = func(context.Context) error { return errors.New("/var/lib/secret") }
			case "is unreadable":
				x.drop.open = failing("A: b\r\n", errSeal)
			case "is unreadable behind a chunk":
				x.drop.open = failing(strings.Repeat("x", 2*chunkSize), errSeal)
			default:
				return fmt.Errorf("the maildrop cannot be told %q", arg)
			}
			return nil
		},
		"STOP": func(string) error { x.stop(); return nil },
	}
}

// Every script is played over TLS that begins with STLS and over TLS that begins at
// once, or in the clear, and all together they make the server say all that it can
// say.
func TestDialogs(t *testing.T) {
	t.Parallel()
	scripts, err := dialog.LoadAll("testdata/dialogs")
	if err != nil {
		t.Fatal(err)
	}
	opening := map[string]*dialog.Script{}
	for transport, text := range map[string]string{"clear": inClear, "stls": withTLS, "tls": "TLS\n" + inClear} {
		if opening[transport], err = dialog.Parse(transport, text); err != nil {
			t.Fatal(err)
		}
	}
	heard := &lines{}
	t.Cleanup(func() { heard.everyReply(t) }) // when all have been played
	for _, s := range scripts {
		only, ok := s.Option("only")
		if !ok {
			only = "secure"
		}
		for transport, before := range opening {
			if (transport == "clear") != (only == "clear") {
				continue
			}
			if _, bare := s.Option("bare"); bare {
				before = &dialog.Script{}
			}
			t.Run(s.Name+"/"+transport, func(t *testing.T) {
				t.Parallel()
				playDialog(t, heard.add, transport == "tls", s, before)
			})
		}
	}
}

// playDialog plays a script against a server of its own, behind before.
func playDialog(t *testing.T, heard func(string), implicit bool, s, before *dialog.Script) {
	t.Helper()
	x := &exchange{}
	x.site = start(t, three(), false, func(o *Options) {
		for _, name := range s.Options() {
			set, ok := dialogOptions[name]
			if !ok {
				t.Fatalf("%s: no option %s", s.Name, name)
			}
			value, _ := s.Option(name)
			if set == nil {
				continue
			}
			if err := set(o, value); err != nil {
				t.Fatalf("%s: option %s: %v", s.Name, name, err)
			}
		}
	})
	if n, ok := s.Option("others"); ok {
		others, err := strconv.Atoi(n)
		if err != nil {
			t.Fatal(err)
		}
		for range others {
			x.client(t, false).script(inClear)
		}
	}
	p := dialog.New(x.dial(implicit))
	defer p.Conn.Close()
	p.TLS, p.Do, p.Heard = clientTLS(), x.words(), heard
	err := p.Play(before, s)
	if err == nil {
		err = p.End()
	}
	if err != nil {
		t.Error(err)
	}
	x.stop()
	<-x.done
	var want [][]int
	if x.deleted != nil {
		want = [][]int{x.deleted}
	}
	if got, _ := x.drop.state(); !reflect.DeepEqual(got, want) {
		t.Errorf("deleted %v, want %v", got, want)
	}
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
		if !regexp.MustCompile(`(?m)^` + p).MatchString(text) {
			t.Errorf("%s: no script makes the server say %s", at, p)
		}
	})
	if err != nil {
		t.Error(err)
	}
	if replies < 30 {
		t.Errorf("only %d replies found in the source", replies)
	}
}

// replyPattern returns what the line that e is, or is the text of, begins with, or "".
func replyPattern(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit: // a reply, or how one begins
		if p := strings.TrimSuffix(dialog.Pattern(e), "\r\n"); strings.HasPrefix(p, `\+`) || strings.HasPrefix(p, "-ERR ") && p != "-ERR " {
			return p
		}
	case *ast.CallExpr:
		if s, ok := e.Fun.(*ast.SelectorExpr); ok && s.Sel.Name == "refuse" {
			return "-ERR " + dialog.Pattern(e.Args[0])
		}
	}
	return ""
}
