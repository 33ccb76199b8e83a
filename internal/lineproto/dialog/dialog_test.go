package dialog

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"go/ast"
	"go/parser"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// server answers each line with what says names for it, and ends the connection
// at the end of what it is told, or behind a text that ends with "END".
func server(t *testing.T, says map[string]string) net.Conn {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		serve(s, says)
		s.Close()
	}()
	t.Cleanup(func() { c.Close(); <-done })
	return c
}

func serve(raw net.Conn, says map[string]string) {
	s := raw
	line := "" // the greeting is for the empty one
	for {
		text, end := strings.CutSuffix(says[line], "END")
		text, broken := strings.CutSuffix(text, "BREAK")
		text, secure := strings.CutSuffix(text, "SECURE")
		io.WriteString(s, text)
		if broken {
			return
		}
		if end {
			break
		}
		if secure {
			s = tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{certificate()}})
		}
		line = ""
		for b := make([]byte, 1); !strings.HasSuffix(line, "\n"); line += string(b) {
			if _, err := s.Read(b); err != nil {
				io.WriteString(s, says["at the end"])
				s.Close()
				return
			}
		}
		line = strings.TrimSuffix(line, "\r\n")
	}
	s.Close()
}

var certificate = sync.OnceValue(func() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
})

func TestPlay(t *testing.T) {
	t.Parallel()
	says := map[string]string{
		"":         "hello\r\n",
		"noop":     "ok then\r\n",
		"many":     "-a\r\n-b\r\n c\r\n",
		"two":      "1\r\n2\r\n",
		"bare":     "a\nb\r\n",
		"half":     "no end",
		"lf":       "only lf\n",
		"bye":      "bye\r\nEND",
		"break":    "x\r\nBREAK",
		"tls":      "go\r\nSECURE",
		"tls late": "go\r\nand more\r\n",
		"AAAB":     "long\r\n",
		"bytes":    "\x15\x03\xffEND",
	}
	for name, tt := range map[string]struct{ script, want string }{
		"exact":                  {"S: hello\nC: noop\nS: ok then", ""},
		"exact, other":           {"S: hello\nC: noop\nS: ok", `x:3: expected S: ok, got "ok then"`},
		"prefix":                 {"S: hel...\nC: noop\nS: ok...", ""},
		"prefix, other":          {"S: helo...", `x:1: expected S: helo..., got "hello"`},
		"pattern":                {"S~ h[el]+o", ""},
		"pattern is anchored":    {"S~ hell", `x:1: expected S~ hell, got "hello"`},
		"pattern's alternative":  {"S~ x|hell", `got "hello"`},
		"octets":                 {"S: hello\nC: bare\nS- \"a\\nb\"", ""},
		"octets, other":          {"S: hello\nC: bare\nS- \"a\"", `got "a\nb"`},
		"many":                   {"S: hello\nC: many\nS* -.*\nS:  c", ""},
		"many, none":             {"S: hello\nC: many\nS* x\nS: -a\nS: -b\nS:  c", ""},
		"many, and no other":     {"S* h.*\nS: x", "x:1: expected S* h.*, or another line, got nothing"},
		"many, unread":           {"S* x\nC: bye\nS: hello\nS: bye\nS.", ""},
		"left over":              {"S: hello\nC: two\nS: 1", `at the end: expected the end of the connection, got "2\r\n" and then the end`},
		"left over, looked at":   {"S: hello\nC: two\nS* 1", `at the end: expected the end of the connection, got "2\r\n" and then the end`},
		"nothing read":           {"C: noop", `at the end: expected the end of the connection, got "hello\r\nok then\r\n" and then the end`},
		"not said":               {"S: hello\nS: more", "x:2: expected S: more, got nothing"},
		"no CRLF":                {"S: hello\nC: lf\nS: only lf", `"only lf\n", which has no CRLF, and then nothing`},
		"half a line":            {"S: hello\nC: half\nS: no end", `"no end", which has no CRLF`},
		"half a line left":       {"S: hello\nC: half", `at the end: expected the end of the connection, got "no end"`},
		"ends":                   {"S: hello\nC: bye\nS: bye\nS.", ""},
		"ends too early":         {"S: hello\nC: bye\nS: bye\nS: more", "x:4: expected S: more, got the end"},
		"does not end":           {"S: hello\nS.", "x:2: expected the end of the connection, got no end"},
		"not at the end":         {"S: hello\nC: bye\nS.", `got "bye\r\n" and then the end`},
		"nothing after the end":  {"S: hello\nC: bye\nS: bye\nS.\nC: x", "x:5: the server has ended the connection, C: cannot follow"},
		"rest":                   {"S: hello\nC: bytes\nS. \\x15\\x03.", ""},
		"rest, other":            {"S: hello\nC: bytes\nS. \\x15", `expected \x15 and then the end of the connection, got "\x15\x03\xff"`},
		"raw":                    {"S: hello\nC- \"no\"\nC- \"op\\r\\nnoop\\r\\n\"\nS: ok then\nS: ok then", ""},
		"repeated":               {"S: hello\nC- 3*\"A\" \"B\\r\\n\"\nS: long", ""},
		"half-close":             {"S: hello\nC.\nS.", ""},
		"tls":                    {"S: hello\nC: tls\nS: go\nTLS\nC: noop\nS: ok then", ""},
		"tls, left over":         {"S: hello\nC: tls\nS: go\nTLS\nC: two\nS: 1", `got "2\r\n" and then the end`},
		"tls, ends":              {"S: hello\nC: tls\nS: go\nTLS\nC: bye\nS: bye\nS.", ""},
		"tls, broken off":        {"S: hello\nC: tls\nS: go\nTLS\nC: break\nS: x\nS!", ""},
		"tls, broken off within": {"S: hello\nC: tls\nS: go\nTLS\nC: break\nS! x..", ""},
		"tls, broken off, other": {"S: hello\nC: tls\nS: go\nTLS\nC: break\nS! y..", `x:6: expected y.. and then a connection broken off, got "x\r\n"`},
		"tls, not ended":         {"S: hello\nC: tls\nS: go\nTLS\nC: break\nS: x\nS.", "an end without close_notify"},
		"tls, not broken":        {"S: hello\nC: tls\nS: go\nTLS\nC: bye\nS: bye\nS!", "expected a connection broken off, got close_notify"},
		"tls, half-close":        {"S: hello\nC: tls\nS: go\nTLS\nC.\nS.", ""},
		"tls, cut":               {"S: hello\nC: tls\nS: go\nTLS\nC!\nS.", ""},
		"before tls":             {"S: hello\nC: tls late\nS: go\nTLS", "before the handshake"},
		"no tls":                 {"S: hello\nC: noop\nS: ok then\nTLS", "x:4: handshake: "},
		"test":                   {"S: hello\nCOUNT 1", ""},
		"test fails":             {"S: hello\nFAIL", "x:2: failed"},
		"unknown":                {"DANCE", "x:1: nobody knows what DANCE means"},
		"comments":               {"# one\n\nS: hello\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, err := Parse("x", tt.script)
			if err != nil {
				t.Fatal(err)
			}
			p := New(server(t, says))
			p.Timeout = 20 * time.Second
			if strings.Contains(tt.want, "nothing") || strings.Contains(tt.want, "no end") || strings.Contains(tt.want, "handshake:") {
				p.Timeout = 100 * time.Millisecond
			}
			p.TLS = &tls.Config{InsecureSkipVerify: true}
			p.Do = map[string]func(string) error{
				"FAIL": func(string) error { return errors.New("failed") },
				"COUNT": func(arg string) error {
					if arg != "1" {
						return errors.New(arg)
					}
					return nil
				},
			}
			if err = p.Play(s); err == nil {
				err = p.End()
			}
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// What is said when the client ends, where silence is expected, is noticed.
func TestSaidAtTheEnd(t *testing.T) {
	t.Parallel()
	p := New(server(t, map[string]string{"at the end": "late\r\n"}))
	if err := p.End(); err == nil || !strings.Contains(err.Error(), "late") {
		t.Errorf("got %v", err)
	}
}

// What cannot be sent is noticed, unless the server had ended the connection.
func TestSendingFails(t *testing.T) {
	t.Parallel()
	for end, good := range map[string]bool{"": false, "\nS.": true} {
		p := New(server(t, map[string]string{"": "bye\r\nEND"}))
		s, err := Parse("x", "S: bye\nC- 30000000*\"A\""+end)
		if err != nil {
			t.Fatal(err)
		}
		if err = p.Play(s); err == nil {
			err = p.End()
		}
		if (err == nil) != good {
			t.Errorf("%q: %v", end, err)
		}
	}
}

func TestParseErrors(t *testing.T) {
	t.Parallel()
	for script, want := range map[string]string{
		"\nC; x":           `x:2: "C; x" is no line of a script`,
		"c: x":             "is no line",
		"C- x":             "expected octets in quotes",
		`C- "x`:            "expected octets in quotes",
		`C- "\xzz"`:        "expected octets in quotes",
		`C- many*"x"`:      "is no count",
		"S~ (":             "missing closing",
		"S. (":             "missing closing",
		"TLS now":          "stands alone",
		"C. x":             "stands alone",
		"S: x\nOPTION a b": "x:2: an option stands before",
		"INCLUDE no-such":  "no such file",
	} {
		if _, err := Parse("x", script); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", script, err, want)
		}
	}
}

func TestFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"a.dialog": "OPTION only tls\nOPTION flag\nINCLUDE b\nC: two\nS: 1\nS: x\n",
		"b":        "S: hello\nC: noop\nS: ok\n",
		"c.dialog": "INCLUDE c.dialog\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := LoadAll(dir); err == nil || !strings.Contains(err.Error(), "too deeply") {
		t.Errorf("a file that includes itself: %v", err)
	}
	os.Remove(filepath.Join(dir, "c.dialog"))
	all, err := LoadAll(dir)
	if err != nil || len(all) != 1 || all[0].Name != "a" {
		t.Fatalf("%v, %v", all, err)
	}
	if v, ok := all[0].Option("only"); v != "tls" || !ok {
		t.Errorf("option %q, %v", v, ok)
	}
	if _, ok := all[0].Option("other"); ok || len(all[0].Options()) != 2 {
		t.Errorf("options %q", all[0].Options())
	}
	// An error of an included file names that file.
	p := New(server(t, map[string]string{"": "hello\r\n", "noop": "no\r\n"}))
	if err := p.Play(all...); err == nil || !strings.HasPrefix(err.Error(), filepath.Join(dir, "b")+":3: ") {
		t.Errorf("got %v", err)
	}
	if _, err := LoadAll(t.TempDir()); err == nil {
		t.Error("a directory without scripts is fine")
	}
}

func TestOctets(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"": "", `"a"`: "a", `"a" "b"`: "ab", `3*"ab" "\x00\xff\r\n"`: "ababab\x00\xff\r\n", "`\\`": `\`, `0*"a""b"`: "b", `"2*"`: "2*",
	} {
		if got, err := Octets(in); err != nil || !bytes.Equal(got, []byte(want)) {
			t.Errorf("%s: %q, %v", in, got, err)
		}
	}
}

func TestHeard(t *testing.T) {
	t.Parallel()
	p := New(server(t, map[string]string{"": "a\r\nb\r\nEND"}))
	var heard []string
	p.Heard = func(line string) { heard = append(heard, line) }
	s, err := Parse("x", "S* a\nS: b\nS.")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Play(s); err != nil || strings.Join(heard, " ") != "a b" {
		t.Errorf("%q, %v", heard, err)
	}
}

func TestPattern(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		`"a.b"`: `a\.b`, `"a" + x + "b"`: `a.*b`, `fmt.Sprintf("a %.20q b%d", x, y)`: `a .* b.*`, `f("a")`: `.*`, `12`: `.*`, "`a`": `a`,
	} {
		e, err := parser.ParseExpr(in)
		if err != nil {
			t.Fatal(err)
		}
		if got := Pattern(e); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
	found := false
	if err := Source(".", func(at string, e ast.Expr) {
		if strings.HasPrefix(at, "dialog_test.go") {
			t.Errorf("looked into %s", at)
		}
		found = found || strings.HasPrefix(at, "source.go:") && Pattern(e) == "Sprintf"
	}); err != nil || !found {
		t.Errorf("the literal was not found: %v", err)
	}
}
