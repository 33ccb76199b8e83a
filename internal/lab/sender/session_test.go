package sender

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

func dial(t *testing.T, cfg Config) *Session {
	t.Helper()
	x, err := newSender(t, cfg).Dial(context.Background(), domain)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

var everything = []string{"PIPELINING", "SIZE 1000000000", "8BITMIME", "SMTPUTF8", "CHUNKING", "BINARYMIME"}

func TestOctetsArriveAsTheyAre(t *testing.T) {
	t.Parallel()
	messages := map[string][]byte{
		"empty":       nil,
		"dots":        []byte(".\r\n..\r\n.foo\r\n\r\n.\r\n"),
		"only a dot":  []byte(".\r\n"),
		"bare LF":     []byte("a\n.\nb\n.\r\nc\r\n"),
		"bare CR":     []byte("a\r.\rb\r\r\n.\r\r\n"),
		"smuggling":   []byte("a\n.\r\nMAIL FROM:<>\r\nb\r\n.\nc\r\r\n.\r\n"),
		"binary":      []byte("a\x00\x01\xff\x80\r\n"),
		"no end":      []byte("a\r\nb"),
		"CR at end":   []byte("a\r\nb\r"),
		"dot at end":  []byte("a\r\n."),
		"long line":   append(bytes.Repeat([]byte("x"), 300_000), crlf...),
		"large":       bytes.Repeat([]byte("0123456789abcdef.\r\n.\r\n"), 20_000),
		"just a CRLF": crlf,
	}
	ways := map[string]*Chunks{
		"DATA":      nil,
		"one chunk": {Sizes: []int{1 << 30}},
		"chunks":    {Sizes: []int{70_000, 0, 3, 5000}},
		"pipelined": {Sizes: []int{4096, 0, 1, 100_000}, Pipelined: true},
		"0 LAST":    {Sizes: []int{1, 1 << 20}, EmptyLast: true},
		"pipe 0":    {Sizes: []int{1, 1 << 20}, EmptyLast: true, Pipelined: true},
	}
	for way, chunks := range ways {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			p := (&peer{offers: everything}).start(t)
			x := dial(t, site(t, p))
			sent := 0
			for name, msg := range messages {
				_, err := x.Send(context.Background(), envelope(chunks), msg)
				if chunks == nil && len(msg) > 0 && !bytes.HasSuffix(msg, crlf) {
					if !errors.Is(err, ErrNoFinalCRLF) {
						t.Errorf("%s: %v", name, err)
					}
					continue
				}
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				if got := p.messages()[sent].msg; !bytes.Equal(got, msg) {
					t.Errorf("%s: got %d octets %.60q, want %d", name, len(got), got, len(msg))
				}
				sent++
			}
			if err := x.Close(); err != nil {
				t.Error(err)
			}
			if p.connections() != 1 {
				t.Errorf("%d connections", p.connections())
			}
		})
	}
}

func TestChunks(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		chunks Chunks
		octets int
		want   string
	}{
		{Chunks{Sizes: []int{4}}, 0, "BDAT 0 LAST"},
		{Chunks{Sizes: []int{4}}, 8, "BDAT 4,BDAT 4 LAST"},
		{Chunks{Sizes: []int{4}}, 9, "BDAT 4,BDAT 4,BDAT 1 LAST"},
		{Chunks{Sizes: []int{0, 3, 1}}, 6, "BDAT 0,BDAT 3,BDAT 1,BDAT 0,BDAT 2 LAST"},
		{Chunks{Sizes: []int{4}, EmptyLast: true}, 8, "BDAT 4,BDAT 4,BDAT 0 LAST"},
		{Chunks{Sizes: []int{4}, EmptyLast: true}, 0, "BDAT 0 LAST"},
	} {
		for _, pipelined := range []bool{false, true} {
			p := (&peer{offers: everything}).start(t)
			x := dial(t, site(t, p))
			test.chunks.Pipelined = pipelined
			if _, err := x.Send(context.Background(), envelope(&test.chunks), bytes.Repeat([]byte("x"), test.octets)); err != nil {
				t.Fatal(err)
			}
			x.Close()
			var got []string
			for _, line := range p.commands() {
				if strings.HasPrefix(line, "BDAT") {
					got = append(got, line)
				}
			}
			if s := strings.Join(got, ","); s != test.want {
				t.Errorf("%+v of %d octets: %s, want %s", test.chunks, test.octets, s, test.want)
			}
		}
	}
}

// The replies to these chunks are more than both sockets buffer, and so are the
// chunks: who writes all before reading hangs.
func TestPipelinedChunksDoNotBlock(t *testing.T) {
	t.Parallel()
	p := (&peer{offers: everything, say: map[string]string{"BDAT": "250 2.0.0 " + strings.Repeat("x", 500)}}).start(t)
	x := dial(t, site(t, p))
	msg := bytes.Repeat([]byte("x"), 40_000)
	if _, err := x.Send(context.Background(), envelope(&Chunks{Sizes: []int{1}, Pipelined: true}), msg); err != nil {
		t.Fatal(err)
	}
	x.Close()
}

func TestParameters(t *testing.T) {
	t.Parallel()
	utf8Header := []byte("Subject: gr\xc3\xbc\xc3\x9fe\r\n\r\nx\r\n")
	long := append(append([]byte("Subject: x\r\n\r\n"), bytes.Repeat([]byte("y"), 999)...), crlf...)
	bdat := &Chunks{Sizes: []int{100}}
	for _, test := range []struct {
		name   string
		offers []string
		env    Envelope
		msg    []byte
		want   string
	}{
		{"nothing offered", nil, envelope(nil), utf8Header, ""},
		{"plain", everything, envelope(nil), letter, " SIZE=32"},
		{"8 bit in the body", everything, envelope(nil), []byte("A: b\r\n\r\n\xe4\r\n"), " SIZE=11 BODY=8BITMIME"},
		{"Latin-1 in the header", everything, envelope(nil), []byte("A: \xe4\r\n\r\nb\r\n"), " SIZE=11 BODY=8BITMIME"},
		{"UTF-8 in the header", everything, envelope(nil), utf8Header, " SIZE=23 BODY=8BITMIME SMTPUTF8"},
		{"UTF-8 address", everything, Envelope{From: "j\u00fcrgen@example.org", To: []string{"mbx@" + domain}}, letter, " SIZE=32 SMTPUTF8"},
		{"NUL", everything, envelope(bdat), []byte("a\x00\r\n"), " SIZE=4 BODY=BINARYMIME"},
		{"bare LF", everything, envelope(bdat), []byte("a\nb\r\n"), " SIZE=5 BODY=BINARYMIME"},
		{"LF first", everything, envelope(bdat), []byte("\n"), " SIZE=1 BODY=BINARYMIME"},
		{"bare CR", everything, envelope(bdat), []byte("a\rb\r\n"), " SIZE=5 BODY=BINARYMIME"},
		{"CR last", everything, envelope(bdat), []byte("a\r"), " SIZE=2 BODY=BINARYMIME"},
		{"long line", everything, envelope(bdat), long, " SIZE=1015 BODY=BINARYMIME"},
		{"no end", everything, envelope(bdat), []byte("a"), " SIZE=1"},
		{"NUL by DATA", everything, envelope(nil), []byte("a\x00\xff\r\n"), " SIZE=5 BODY=8BITMIME"},
		{"no BINARYMIME", []string{"CHUNKING", "8BITMIME"}, envelope(bdat), []byte("a\x00\xff\r\n"), " BODY=8BITMIME"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := (&peer{offers: test.offers}).start(t)
			if _, err := newSender(t, site(t, p)).Send(context.Background(), test.env, test.msg); err != nil {
				t.Fatal(err)
			}
			m := p.messages()[0]
			if want := "MAIL FROM:<" + test.env.From + ">" + test.want; m.from[0] != want {
				t.Errorf("said %q, want %q", m.from[0], want)
			}
			if !bytes.Equal(m.msg, test.msg) {
				t.Errorf("got %q", m.msg)
			}
		})
	}
	p := (&peer{}).start(t)
	_, err := newSender(t, site(t, p, p)).Send(context.Background(), Envelope{To: []string{"j\u00fcrgen@" + domain}}, letter)
	if e := failure(t, err); e.Temporary || !errors.Is(err, ErrNotOffered) || p.connections() != 1 {
		t.Errorf("no SMTPUTF8: %+v, %d connections", e, p.connections())
	}
}

func TestManyMessagesOnOneConnection(t *testing.T) {
	t.Parallel()
	p := (&peer{offers: everything, say: map[string]string{"bad": "550 5.1.1 unknown"}}).start(t)
	x := dial(t, site(t, nil, p))
	for i := range 20 {
		msg := fmt.Appendf(nil, "Subject: %d\r\n\r\n", i)
		env := envelope(nil)
		if i%2 == 1 {
			env.Chunks = &Chunks{Sizes: []int{7}}
		}
		bad := env
		bad.To = []string{"bad@" + domain}
		if _, err := x.Send(context.Background(), bad, msg); err == nil || failure(t, err).Temporary {
			t.Fatalf("refused recipient: %v", err)
		}
		res, err := x.Send(context.Background(), env, msg)
		if err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("id-%d-0", i); !slices.Equal(res.IDs, []string{want}) || res.Host != x.Host() || res.Preference != 20 {
			t.Errorf("message %d: %+v", i, res)
		}
		if n := len(res.Attempts); n != 0 {
			t.Errorf("message %d: %d failed attempts", i, n)
		}
		if got := p.messages()[i].msg; !bytes.Equal(got, msg) {
			t.Errorf("message %d: %q", i, got)
		}
	}
	if err := x.Close(); err != nil {
		t.Error(err)
	}
	if p.connections() != 1 {
		t.Errorf("%d connections", p.connections())
	}
}

func TestSessionAfterALostConnection(t *testing.T) {
	t.Parallel()
	p := (&peer{drop: "dot"}).start(t)
	x := dial(t, site(t, p))
	_, err := x.Send(context.Background(), envelope(nil), letter)
	if e := failure(t, err); !e.MaybeAccepted || !e.Temporary {
		t.Errorf("lost after the dot: %+v", e)
	}
	_, err = x.Send(context.Background(), envelope(nil), letter)
	if e := failure(t, err); e.MaybeAccepted || !e.Temporary || e.Stage != "MAIL" {
		t.Errorf("session over: %+v", e)
	}
	if err := x.Close(); err != nil {
		t.Error(err)
	}
	x = dial(t, site(t, (&peer{drop: "QUIT"}).start(t)))
	if err := x.Close(); err == nil {
		t.Error("lost at QUIT: no error")
	}
	if _, err := newSender(t, site(t, nil, nil)).Dial(context.Background(), domain); !failure(t, err).Temporary {
		t.Errorf("nobody there: %v", err)
	}
}

// What a server says before it closes the connection is heard although the message
// could not be written to its end.
func TestRefusalWhileSending(t *testing.T) {
	t.Parallel()
	msg := append(make([]byte, 16<<20), crlf...) // more than the sockets buffer
	for way, chunks := range map[string]*Chunks{"DATA": nil, "BDAT": {Sizes: []int{64 << 20}}, "pipelined": {Sizes: []int{1 << 20}, Pipelined: true}} {
		for name, p := range map[string]*peer{"refused": {slam: "552 5.3.4 too large"}, "lost": {drop: "body"}, "stalled": {stall: "body"}, "babble": {slam: "babble", stall: "body"}} {
			t.Run(way+" "+name, func(t *testing.T) {
				t.Parallel()
				p.offers = everything
				cfg := site(t, p.start(t))
				if name == "stalled" || way != "pipelined" {
					cfg.Timeouts.Block = 100 * time.Millisecond
				}
				start := time.Now()
				_, err := newSender(t, cfg).Send(context.Background(), envelope(chunks), msg)
				e := failure(t, err)
				refused := name == "refused"
				if (e.Code == 552) != refused || e.Temporary == refused || e.MaybeAccepted {
					t.Errorf("%+v", e)
				}
				if name == "stalled" && !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Error(err)
				}
				// Who reads meanwhile need not wait for the deadline.
				if took := time.Since(start); name == "babble" && way == "pipelined" && (!errors.Is(err, ErrProtocol) || took > 5*time.Second) {
					t.Errorf("after %v: %v", took, err)
				}
			})
		}
	}
}

func TestSTARTTLS(t *testing.T) {
	t.Parallel()
	roots := x509.NewCertPool()
	server := certificate(t, roots, "mx1.example.org")
	good := certificate(t, roots, "mx2.example.org")
	other := certificate(t, x509.NewCertPool(), "mx1.example.org")
	elsewhere := certificate(t, roots, "mx9.example.org")
	offers := []string{"STARTTLS", "PIPELINING"}
	refuses := map[string]string{"STARTTLS": "454 4.7.0 not now"}
	for _, test := range []struct {
		name    string
		peer    *peer
		require bool
		want    string // "tls", "clear", "next" host
	}{
		{"offered", &peer{offers: offers, tls: server}, false, "tls"},
		{"offered and required", &peer{offers: offers, tls: server}, true, "tls"},
		{"not offered", &peer{}, false, "clear"},
		{"not offered but required", &peer{}, true, "next"},
		{"refused", &peer{offers: offers, say: refuses}, false, "clear"},
		{"refused but required", &peer{offers: offers, say: refuses}, true, "next"},
		{"another certificate", &peer{offers: offers, tls: other}, false, "clear"},
		{"another certificate, required", &peer{offers: offers, tls: other}, true, "next"},
		{"certificate for another host", &peer{offers: offers, tls: elsewhere}, true, "next"},
		{"text behind the reply", &peer{offers: offers, tls: server, sloppy: true}, true, "next"},
		{"lost at STARTTLS", &peer{offers: offers, drop: "STARTTLS"}, false, "next"},
		{"silent in the handshake", &peer{offers: offers, say: map[string]string{"STARTTLS": "220 go ahead"}}, true, "next"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.peer.start(t)
			second := (&peer{offers: offers, tls: good}).start(t)
			cfg := site(t, test.peer, second)
			cfg.TLS, cfg.RequireTLS = &tls.Config{RootCAs: roots}, test.require
			if strings.HasPrefix(test.name, "silent") {
				cfg.Timeouts.Reply = 300 * time.Millisecond
			}
			res, err := newSender(t, cfg).Send(context.Background(), envelope(nil), letter)
			if err != nil {
				t.Fatal(err)
			}
			if next := res.Host == "mx2.example.org"; next != (test.want == "next") || res.TLS != (test.want != "clear") {
				t.Errorf("went to %s, TLS %v, after %v", res.Host, res.TLS, res.Attempts)
			}
			if test.want == "next" {
				handshake := test.peer.tls != nil || test.peer.say["STARTTLS"] == "220 go ahead"
				if a := res.Attempts[0]; !a.Temporary || a.MaybeAccepted || (a.Stage == "TLS handshake") != handshake {
					t.Errorf("first attempt: %+v", a)
				}
				return
			}
			m := test.peer.messages()
			if len(m) != 1 || m[0].tls != res.TLS || !bytes.Equal(m[0].msg, letter) {
				t.Errorf("received %+v", m)
			}
			hellos := 0
			for _, line := range test.peer.commands() {
				if strings.HasPrefix(line, "EHLO") {
					hellos++
				}
			}
			if res.TLS && hellos != 2 {
				t.Errorf("%d EHLO with TLS", hellos)
			}
		})
	}
}

func TestHELO(t *testing.T) {
	t.Parallel()
	p := (&peer{say: map[string]string{"EHLO": "502 5.5.1 no"}}).start(t)
	if _, err := newSender(t, site(t, p)).Send(context.Background(), envelope(nil), letter); err != nil {
		t.Fatal(err)
	}
	if got := p.commands()[:2]; !slices.Equal(got, []string{"EHLO localhost", "HELO localhost"}) {
		t.Errorf("said %q", got)
	}
}

func TestReplies(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		in   string
		code int // 0: an error
		ids  []string
	}{
		{"250 ok\r\n", 250, nil},
		{"250\r\n", 250, nil},
		{"250-a\r\n250-b\r\n250 c\r\n", 250, nil},
		{"250 2.0.0 stored 4f6c\r\n", 250, []string{"4f6c"}},
		{"250-2.0.0 stored 1\r\n250 2.0.0 stored 2\r\n", 250, []string{"1", "2"}},
		{"250 stored 3\r\n", 250, []string{"3"}},
		{"250 2.0.0 stored\r\n", 250, nil},
		{"250 2.0.0 queued as stored 3\r\n", 250, nil},
		{"250 ok\n", 0, nil},
		{"250-a\r\n251 b\r\n", 0, nil},
		{"250_a\r\n", 0, nil},
		{"150 a\r\n", 0, nil},
		{"25\r\n", 0, nil},
		{"25x a\r\n", 0, nil},
		{"250 a\rb\r\n", 0, nil},
		{"250 ok", 0, nil},
		{"250-ok\r\n", 0, nil},
		{"250 " + strings.Repeat("x", maxReplyLine) + "\r\n", 0, nil},
		{strings.Repeat("250-x\r\n", maxReplyLines) + "250 x\r\n", 0, nil},
	} {
		rep, err := parseReply(bufio.NewReader(strings.NewReader(test.in)))
		if rep.code != test.code || (err != nil) != (test.code == 0) || !slices.Equal(rep.ids(), test.ids) {
			t.Errorf("%.40q: %+v, %v", test.in, rep, err)
		}
	}
}

// FuzzDotStuffing checks that what writeStuffed writes ends where it should and is
// what was to be sent.
func FuzzDotStuffing(f *testing.F) {
	for _, s := range []string{"", "\r\n", ".\r\n", "a\r\n.b\r\n..\r\n", "a\n.\nb\r\n", "\r.\r\n", "a\r\r\n.\r\n", "\n.\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, msg []byte) {
		if len(msg) > 0 {
			msg = append(bytes.TrimSuffix(msg, crlf), crlf...)
		}
		var wire bytes.Buffer
		writeStuffed(&wire, msg)
		wire.WriteString(".\r\nQUIT\r\n")
		got, err := unstuff(&wire)
		if err != nil || !bytes.Equal(got, msg) {
			t.Fatalf("got %q, %v, want %q", got, err, msg)
		}
		if rest := wire.String(); rest != "QUIT\r\n" {
			t.Fatalf("left %q", rest)
		}
	})
}

// FuzzReply feeds what a server may say.
func FuzzReply(f *testing.F) {
	f.Add([]byte("250-a\r\n250 2.0.0 stored x\r\n"))
	f.Add([]byte("220 a\n"))
	f.Add([]byte("250"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bufio.NewReaderSize(bytes.NewReader(in), 4096)
		for {
			rep, err := parseReply(r)
			if err != nil {
				return
			}
			if rep.code < 200 || rep.code > 599 || len(rep.lines) == 0 || len(rep.lines) > maxReplyLines {
				t.Fatalf("%+v", rep)
			}
			rep.ids()
		}
	})
}
