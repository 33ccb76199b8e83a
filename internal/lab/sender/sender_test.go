package sender

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

var letter = []byte("From: ada@example.org\r\n\r\nhello\r\n")

func envelope(chunks *Chunks) Envelope {
	return Envelope{From: "ada@example.org", To: []string{"mbx@" + domain}, Chunks: chunks}
}

func newSender(t *testing.T, cfg Config) *Sender {
	t.Helper()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// failure returns err as the *Error it must be.
func failure(t *testing.T, err error) *Error {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v, want an *Error", err)
	}
	return e
}

func TestFallsThroughToTheNextHost(t *testing.T) {
	t.Parallel()
	chunked := []string{"PIPELINING", "CHUNKING"}
	for _, test := range []struct {
		name  string
		first *peer
		env   Envelope
		stage string
		code  int
		maybe bool
	}{
		{name: "nobody listens", stage: "connect"},
		{name: "greeting 421", first: &peer{say: map[string]string{"greeting": "421 4.3.2 later"}}, stage: "greeting", code: 421},
		{name: "greeting 451", first: &peer{say: map[string]string{"greeting": "451 4.3.0 later"}}, stage: "greeting", code: 451},
		{name: "greeting 554", first: &peer{say: map[string]string{"greeting": "554 no mail here"}}, stage: "greeting", code: 554},
		{name: "not SMTP", first: &peer{say: map[string]string{"greeting": "HTTP/1.1 400 Bad Request"}}, stage: "greeting"},
		{name: "lost at the greeting", first: &peer{drop: "greeting"}, stage: "greeting"},
		{name: "EHLO 451", first: &peer{say: map[string]string{"EHLO": "451 4.3.0 later"}}, stage: "EHLO", code: 451},
		{name: "lost at EHLO", first: &peer{drop: "EHLO"}, stage: "EHLO"},
		{name: "MAIL 451", first: &peer{say: map[string]string{"MAIL": "451 4.3.0 later"}}, stage: "MAIL", code: 451},
		{name: "MAIL 451 pipelined", first: &peer{offers: chunked, say: map[string]string{"MAIL": "451 4.3.0 later"}}, stage: "MAIL", code: 451},
		{name: "MAIL 421 pipelined", first: &peer{offers: chunked, say: map[string]string{"MAIL": "421 4.3.0 later"}}, stage: "MAIL", code: 421},
		{name: "lost at MAIL", first: &peer{drop: "MAIL"}, stage: "MAIL"},
		{name: "RCPT 450", first: &peer{say: map[string]string{"RCPT": "450 4.2.1 later"}}, stage: "RCPT", code: 450},
		{name: "DATA 451", first: &peer{say: map[string]string{"DATA": "451 4.3.1 later"}}, stage: "DATA", code: 451},
		{name: "DATA 250", first: &peer{say: map[string]string{"DATA": "250 fine"}}, stage: "DATA", code: 250},
		{name: "lost in the body", first: &peer{drop: "body"}, stage: "end of message", maybe: true},
		{name: "dot 452", first: &peer{say: map[string]string{"dot": "452 4.3.1 disk full"}}, stage: "end of message", code: 452},
		{name: "dot 421", first: &peer{say: map[string]string{"dot": "421 4.3.2 stopping"}}, stage: "end of message", code: 421},
		{name: "lost after the dot", first: &peer{drop: "dot"}, stage: "end of message", maybe: true},
		{name: "babble after the dot", first: &peer{say: map[string]string{"dot": "okay"}}, stage: "end of message", maybe: true},
		{name: "no CHUNKING", first: &peer{}, env: envelope(&Chunks{Sizes: []int{7}}), stage: "EHLO"},
		{name: "chunk 452", first: &peer{offers: chunked, say: map[string]string{"BDAT": "452 4.3.1 later"}}, env: envelope(&Chunks{Sizes: []int{7}}), stage: "BDAT", code: 452},
		{name: "chunk 452 pipelined", first: &peer{offers: chunked, say: map[string]string{"BDAT": "452 4.3.1 later", "LAST": "503 5.5.1 what"}},
			env: envelope(&Chunks{Sizes: []int{7}, Pipelined: true}), stage: "BDAT", code: 452},
		{name: "chunk 452, yet stored", first: &peer{offers: chunked, say: map[string]string{"BDAT": "452 4.3.1 later"}},
			env: envelope(&Chunks{Sizes: []int{7}, Pipelined: true}), stage: "BDAT", code: 452, maybe: true},
		{name: "no PIPELINING", first: &peer{offers: []string{"CHUNKING"}}, env: envelope(&Chunks{Sizes: []int{7}, Pipelined: true}), stage: "EHLO"},
		{name: "421 to the second RCPT", first: &peer{say: map[string]string{"other": "421 4.3.2 stopping"}},
			env: Envelope{To: []string{"mbx@" + domain, "other@" + domain}}, stage: "RCPT", code: 421},
		{name: "lost between chunks", first: &peer{offers: chunked, drop: "BDAT"}, env: envelope(&Chunks{Sizes: []int{7}}), stage: "BDAT"},
		{name: "last chunk 452", first: &peer{offers: chunked, say: map[string]string{"LAST": "452 4.3.1 later"}}, env: envelope(&Chunks{Sizes: []int{7}}), stage: "end of message", code: 452},
		{name: "lost after the last chunk", first: &peer{offers: chunked, drop: "LAST"}, env: envelope(&Chunks{Sizes: []int{7}}), stage: "end of message", maybe: true},
		{name: "lost after the last chunk, pipelined", first: &peer{offers: chunked, drop: "LAST"},
			env: envelope(&Chunks{Sizes: []int{7}, Pipelined: true}), stage: "end of message", maybe: true},
		{name: "silent at the greeting", first: &peer{stall: "greeting"}, stage: "greeting"},
		{name: "silent after the dot", first: &peer{stall: "dot"}, stage: "end of message", maybe: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			second := (&peer{offers: chunked}).start(t)
			if test.first != nil {
				test.first.start(t)
			}
			cfg := site(t, test.first, second)
			if test.first != nil && test.first.stall != "" {
				cfg.Timeouts.Reply, cfg.Timeouts.Final = 200*time.Millisecond, 200*time.Millisecond
			}
			env := test.env
			if env.To == nil {
				env = envelope(nil)
			}
			res, err := newSender(t, cfg).Send(context.Background(), env, letter)
			if err != nil {
				t.Fatal(err)
			}
			if res.Host != "mx2.example.org" || res.Preference != 20 || len(res.IDs) != len(env.To) || res.IDs[0] != "id-0-0" {
				t.Errorf("went to %s (%d) as %v", res.Host, res.Preference, res.IDs)
			}
			if got := second.messages(); len(got) != 1 || !bytes.Equal(got[0].msg, letter) {
				t.Errorf("second host has %v", got)
			}
			if said := second.commands(); said[len(said)-1] != "QUIT" {
				t.Errorf("left without QUIT: %q", said)
			}
			if len(res.Attempts) != 1 {
				t.Fatalf("%d failed attempts, want 1: %v", len(res.Attempts), res.Attempts)
			}
			a := res.Attempts[0]
			if a.Host != "mx1.example.org" || a.Stage != test.stage || a.Code != test.code || a.MaybeAccepted != test.maybe || a.Temporary != (test.code != 554) {
				t.Errorf("first attempt: %+v", a)
			}
		})
	}
}

func TestRefusalsThatEndIt(t *testing.T) {
	t.Parallel()
	offers := []string{"PIPELINING", "CHUNKING"}
	for at, stage := range map[string]string{"MAIL": "MAIL", "RCPT": "RCPT", "DATA": "DATA", "dot": "end of message", "BDAT": "BDAT", "LAST": "end of message"} {
		for _, keywords := range [][]string{offers, {"CHUNKING"}} {
			t.Run(fmt.Sprint(at, keywords), func(t *testing.T) {
				t.Parallel()
				first := (&peer{offers: keywords, say: map[string]string{at: "550 5.7.1 never"}}).start(t)
				second := (&peer{offers: offers}).start(t)
				env := envelope(nil)
				if at == "BDAT" || at == "LAST" {
					env.Chunks = &Chunks{Sizes: []int{5}}
				}
				res, err := newSender(t, site(t, first, second)).Send(context.Background(), env, letter)
				e := failure(t, err)
				if e.Temporary || e.MaybeAccepted || e.Code != 550 || e.Text != "5.7.1 never" || e.Host != "mx1.example.org" || e.Stage != stage {
					t.Errorf("got %+v", e)
				}
				if second.connections() != 0 || len(res.Attempts) != 1 {
					t.Errorf("tried on after a 550: %v", res.Attempts)
				}
			})
		}
	}
}

func TestEveryHostFails(t *testing.T) {
	t.Parallel()
	full := &peer{say: map[string]string{"dot": "452 4.3.1 full"}}
	closed := &peer{say: map[string]string{"greeting": "554 closed"}}
	broken := &peer{drop: "dot"}
	for _, p := range []*peer{full, closed, broken} {
		p.start(t)
	}
	for _, test := range []struct {
		peers            []*peer
		code             int
		temporary, maybe bool
	}{
		{[]*peer{full, nil}, 0, true, false},
		{[]*peer{broken, full}, 452, true, true},
		{[]*peer{full, closed}, 554, true, false},
		{[]*peer{closed, closed}, 554, false, false},
	} {
		res, err := newSender(t, site(t, test.peers...)).Send(context.Background(), envelope(nil), letter)
		e := failure(t, err)
		if e.Code != test.code || e.Temporary != test.temporary || e.MaybeAccepted != test.maybe || len(res.Attempts) != 2 || len(res.IDs) != 0 {
			t.Errorf("got %+v after %v", e, res.Attempts)
		}
	}
}

func TestPartOfTheRecipients(t *testing.T) {
	t.Parallel()
	for _, offers := range [][]string{nil, {"PIPELINING"}} {
		first := (&peer{offers: offers, say: map[string]string{"later": "450 4.2.1 later", "never": "550 5.1.1 never"}}).start(t)
		second := (&peer{}).start(t)
		s := newSender(t, site(t, first, second))
		send := func(locals ...string) (Result, error) {
			env := Envelope{}
			for _, l := range locals {
				env.To = append(env.To, l+"@"+domain)
			}
			return s.Send(context.Background(), env, letter)
		}
		res, err := send("a", "never", "later", "b")
		e := failure(t, err)
		if e.Recipient != "later@"+domain || !e.Temporary || e.Stage != "RCPT" {
			t.Errorf("got %+v", e)
		}
		if want := []string{"a@" + domain, "b@" + domain}; !slices.Equal(res.Accepted, want) || !slices.Equal(res.IDs, []string{"id-0-0", "id-0-1"}) {
			t.Errorf("accepted %v as %v", res.Accepted, res.IDs)
		}
		if second.connections() != 0 || len(first.messages()) != 1 {
			t.Errorf("%d messages at the first host, %d connections to the second", len(first.messages()), second.connections())
		}
		if got := first.messages()[0].from[0]; got != "MAIL FROM:<>" {
			t.Errorf("null sender: %q", got)
		}
		if _, err := send("never", "later"); err != nil {
			t.Errorf("one for later among the refused: %v, want the second host", err)
		}
		if _, err := send("never"); err == nil || failure(t, err).Temporary {
			t.Errorf("none accepted: %v", err)
		}
	}
}

func TestOrderOfHosts(t *testing.T) {
	t.Parallel()
	peers := []*peer{{}, {}, {}}
	for _, p := range peers {
		p.start(t)
	}
	cfg := site(t, peers...)
	z := zone{domain + ". MX": {"20 mx1.example.org.", "10 mx2.example.org.", "10 mx3.example.org."}}
	for i := 1; i <= 3; i++ {
		z[fmt.Sprintf("mx%d.example.org. A", i)] = []string{fmt.Sprintf("192.0.2.%d", i)}
	}
	cfg.Servers = []string{(&nameServer{z: z}).start(t)}
	count := map[string]int{}
	s := newSender(t, cfg)
	for range 60 {
		res, err := s.Send(context.Background(), envelope(nil), letter)
		if err != nil {
			t.Fatal(err)
		}
		count[res.Host]++
	}
	// One of the two is not met once in 2^59 runs.
	if count["mx1.example.org"] != 0 || count["mx2.example.org"] == 0 || count["mx3.example.org"] == 0 {
		t.Errorf("went to %v", count)
	}
	for _, want := range []string{"mx2.example.org", "mx3.example.org"} {
		cfg.Shuffle = func(n int, swap func(i, j int)) {
			if n == 3 && want == "mx3.example.org" {
				swap(1, 2)
			}
		}
		if res, err := newSender(t, cfg).Send(context.Background(), envelope(nil), letter); err != nil || res.Host != want {
			t.Errorf("went to %s, %v, want %s", res.Host, err, want)
		}
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	p := (&peer{}).start(t)
	cfg := site(t, p)
	cfg.Timeouts.Query = 300 * time.Millisecond
	cfg.Address = func(a netip.Addr) netip.AddrPort {
		if a == netip.MustParseAddr("192.0.2.1") || a == netip.MustParseAddr("2001:db8::1") {
			return p.addr
		}
		return netip.MustParseAddrPort("127.0.0.1:1")
	}
	good := cfg.Servers[0]
	mute := (&nameServer{mute: true}).start(t)
	sick := (&nameServer{rcode: 2}).start(t)
	truncating := &nameServer{cut: true, z: zone{domain + ". MX": {"10 mx1.example.org."}, "mx1.example.org. A": {"192.0.2.1"}}}
	for _, test := range []struct {
		name      string
		servers   []string
		z         zone
		err       error
		temporary bool
	}{
		{name: "one server", servers: []string{good}},
		{name: "first is silent", servers: []string{mute, good}},
		{name: "first says SERVFAIL", servers: []string{sick, good}},
		{name: "nobody there", servers: []string{"127.0.0.1:1", good}},
		{name: "truncated", servers: []string{truncating.start(t)}},
		{name: "all fail", servers: []string{sick, mute}, temporary: true},
		{name: "no such domain", z: zone{"example.org. MX": {"10 mx1.example.org."}}, err: ErrNoSuchName},
		{name: "no MX but an address", z: zone{domain + ". A": {"192.0.2.1"}}, err: ErrNoMX},
		{name: "null MX", z: zone{domain + ". MX": {"0 ."}}, err: ErrNoMX},
		{name: "host unknown", z: zone{domain + ". MX": {"10 mx1.example.org."}}, err: ErrNoAddress},
		{name: "first host unknown", z: zone{domain + ". MX": {"10 mx9.example.org.", "20 mx1.example.org."}, "mx1.example.org. A": {"192.0.2.1"}}},
		{name: "IPv6", z: zone{domain + ". MX": {"10 mx1.example.org."}, "mx1.example.org. AAAA": {"2001:db8::1"}}},
		{name: "second address", z: zone{domain + ". MX": {"10 mx1.example.org."}, "mx1.example.org. A": {"192.0.2.9", "192.0.2.1"}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			cfg := cfg
			if cfg.Servers = test.servers; test.z != nil {
				cfg.Servers = []string{(&nameServer{z: test.z}).start(t)}
			}
			_, err := newSender(t, cfg).Send(context.Background(), envelope(nil), letter)
			if test.err == nil && !test.temporary {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if e := failure(t, err); e.Temporary != test.temporary || test.err != nil && !errors.Is(err, test.err) {
				t.Errorf("got %+v", e)
			}
		})
	}
	t.Cleanup(func() {
		if truncating.mu.Lock(); truncating.tcp == 0 {
			t.Error("a truncated answer was not asked for by TCP")
		}
		truncating.mu.Unlock()
	})
}

func TestInvalidEnvelope(t *testing.T) {
	t.Parallel()
	s := newSender(t, Config{Servers: []string{"127.0.0.1:1"}})
	for _, test := range []struct {
		env  Envelope
		msg  []byte
		want error
	}{
		{Envelope{}, letter, ErrEnvelope},
		{Envelope{To: []string{"nobody"}}, letter, ErrEnvelope},
		{Envelope{To: []string{"a@example.org", "b@example.com"}}, letter, ErrEnvelope},
		{Envelope{To: []string{"a>\r\nRCPT TO:<b@example.org"}}, letter, ErrEnvelope},
		{Envelope{From: "a\r\nb", To: []string{"a@example.org"}}, letter, ErrEnvelope},
		{Envelope{To: []string{"a@example.org"}, Chunks: &Chunks{Sizes: []int{0, 0}}}, letter, ErrEnvelope},
		{Envelope{To: []string{"a@example.org"}, Chunks: &Chunks{Sizes: []int{5, -1}}}, letter, ErrEnvelope},
		{envelope(nil), []byte("no end"), ErrNoFinalCRLF},
		{envelope(nil), []byte("bare LF\n"), ErrNoFinalCRLF},
	} {
		_, err := s.Send(context.Background(), test.env, test.msg)
		if e := failure(t, err); !errors.Is(err, test.want) || e.Temporary {
			t.Errorf("%+v: %v", test.env, err)
		}
	}
	for _, cfg := range []Config{{}, {Servers: []string{"127.0.0.1:1"}, RequireTLS: true}} {
		if _, err := New(cfg); err == nil {
			t.Errorf("New(%+v) says nothing", cfg)
		}
	}
}

func TestCancel(t *testing.T) {
	t.Parallel()
	for _, at := range []string{"greeting", "MAIL", "dot", "QUIT"} {
		ctx, cancel := context.WithCancel(context.Background())
		p := (&peer{stall: at, hung: cancel}).start(t)
		start := time.Now()
		res, err := newSender(t, site(t, p, p)).Send(ctx, envelope(nil), letter)
		cancel()
		if at == "QUIT" {
			if err != nil {
				t.Errorf("accepted, then: %v", err)
			}
		} else if e := failure(t, err); !errors.Is(err, context.Canceled) || e.MaybeAccepted != (at == "dot") || !e.Temporary {
			t.Errorf("%s: %+v", at, e)
		}
		if took := time.Since(start); took > 3*time.Second || p.connections() != 1 || len(res.Attempts) > 1 {
			t.Errorf("%s: took %v, %d connections", at, took, p.connections())
		}
	}
}

func TestErrorText(t *testing.T) {
	t.Parallel()
	e := &Error{Host: "mx1.example.org", Stage: "RCPT", Recipient: "a@example.org", Code: 550, Text: "5.1.1 unknown"}
	if got, want := e.Error(), "mx1.example.org: RCPT <a@example.org>: 550 5.1.1 unknown"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	e = &Error{Stage: "end of message", Err: ErrProtocol, MaybeAccepted: true}
	if got := e.Error(); !strings.Contains(got, "may have been accepted") || !strings.Contains(got, ErrProtocol.Error()) {
		t.Errorf("got %q", got)
	}
}
