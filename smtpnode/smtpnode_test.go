package smtpnode

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"msgw/internal/journal"
	"msgw/internal/seal"
)

const password = "a password of some length"

var keyOnce = sync.OnceValues(func() (seal.Key, []seal.Identity) {
	d := seal.NewDeriver(64 << 10)
	k, err := seal.NewKey(context.Background(), d, "mbx-1", password, seal.GeneratedKDF, time.Now())
	if err != nil {
		panic(err)
	}
	ids, err := seal.Unlock(context.Background(), d, "mbx-1", password, []seal.Key{k})
	if err != nil {
		panic(err)
	}
	return k, ids
})

var certOnce = sync.OnceValue(func() tls.Certificate {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "mx.example.org"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &k.PublicKey, k)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k}
})

type fakeMailboxes struct {
	strict bool         // all of them are
	late   *atomic.Bool // they have become so; may be nil
	offer  Offer
	// restrict holds restrictions of mailboxes by id, heard what was refused by them.
	restrict map[string]Restrictions
	heard    *atomic.Value
}

func (f fakeMailboxes) Offer() Offer { return f.offer }

func (f fakeMailboxes) Restricted(id string, peer netip.Addr, why error) {
	if f.heard != nil {
		f.heard.Store(fmt.Sprintf("%s %s %v", id, peer, why))
	}
}

func (f fakeMailboxes) Mailbox(a string) (Mailbox, error) {
	m, err := f.find(a)
	m.Restrictions = f.restrict[m.ID]
	return m, err
}

func (fakeMailboxes) find(a string) (Mailbox, error) {
	k, _ := keyOnce()
	local, _, _ := strings.Cut(strings.ToLower(a), "@")
	local, _, _ = strings.Cut(local, "+")
	switch local {
	case "mbx-1", "mbx-2":
		return Mailbox{ID: local, Key: k.ID, Recipient: k.Recipient}, nil
	case "strict":
		return Mailbox{ID: local, Key: k.ID, Recipient: k.Recipient, Strict: true}, nil
	case "suspended":
		return Mailbox{ID: local, Suspended: true}, nil
	case "new":
		return Mailbox{}, ErrUncertain
	case "reset": // to another key, once the message has come in
		return Mailbox{ID: local, Key: k.ID, Recipient: k.Recipient}, nil
	case "badkey":
		return Mailbox{ID: local, Key: k.ID, Recipient: "age1not-one"}, nil
	case "broken":
		return Mailbox{}, errors.New("secret detail")
	}
	return Mailbox{}, ErrUnknown
}

func (f fakeMailboxes) AllStrict() bool { return f.strict }

func (f fakeMailboxes) Strict(id string) bool { return f.strict || f.late != nil && f.late.Load() }

func (f fakeMailboxes) Seals(id, key string) bool {
	k, _ := keyOnce()
	return key == k.ID && id != "reset"
}

// journalStore is a Store of one site.
type journalStore struct{ *journal.Journal }

func (s journalStore) NewBody(id journal.ID) Body { return s.Journal.NewBody(id) }

func (s journalStore) Commit(_ context.Context, _ bool, ms ...Message) (copies int, err error) {
	own := make([]journal.Message, len(ms))
	for i, m := range ms {
		own[i] = journal.Message{Meta: m.Meta, Body: m.Body.(*journal.Body)}
	}
	return 1, s.Journal.Commit(own...)
}

func (journalStore) Refuse(bool) error { return nil }

// faultyStore is a journal whose answers a test can change.
type faultyStore struct {
	journalStore
	mu                sync.Mutex
	commit, room, err error
	single            error // what Refuse says of the strict policy
	strict            bool  // the policy of the last commit
}

func (s *faultyStore) set(commit, room, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.commit, s.room, s.err = commit, room, err
}

func (s *faultyStore) errs() (commit, room, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.commit, s.room, s.err
}

func (s *faultyStore) Commit(ctx context.Context, strict bool, ms ...Message) (copies int, err error) {
	if err, _, _ := s.errs(); err != nil {
		return 0, err
	}
	s.mu.Lock()
	s.strict = strict
	s.mu.Unlock()
	return s.journalStore.Commit(ctx, strict, ms...)
}

func (s *faultyStore) Refuse(strict bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if strict {
		return s.single
	}
	return nil
}

func (s *faultyStore) Room(n int64) error {
	if _, err, _ := s.errs(); err != nil {
		return err
	}
	return s.Journal.Room(n)
}
func (s *faultyStore) Err() error {
	if _, _, err := s.errs(); err != nil {
		return err
	}
	return s.Journal.Err()
}

type rig struct {
	t     *testing.T
	store *faultyStore
	addr  string
	stop  func() error
}

func start(t *testing.T, change func(*Options)) *rig {
	t.Helper()
	j, err := journal.Open(t.TempDir(), journal.Options{InlineMax: 10_000, Reserve: 1})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, store: &faultyStore{journalStore: journalStore{j}}}
	opt := Options{Host: "mx.example.org", TLS: &tls.Config{Certificates: []tls.Certificate{certOnce()}},
		Mailboxes: fakeMailboxes{}, Store: r.store, MaxErrors: 20}
	if change != nil {
		change(&opt)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.addr = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- New(opt).Serve(ctx, l) }()
	r.stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Error(err)
		}
		j.Close()
	})
	return r
}

// plaintext opens the messages of a mailbox, those before skip excepted, and
// returns trace and octets.
func (r *rig) plaintext(mailbox string, skip int) (traces, messages []string) {
	r.t.Helper()
	_, ids := keyOnce()
	for _, m := range r.store.List(mailbox)[skip:] {
		rd, err := r.store.Open(m.ID)
		if err != nil {
			r.t.Fatal(err)
		}
		p, n, err := seal.Open(rd, m.Sealed, ids)
		if err != nil {
			r.t.Fatal(err)
		}
		b := make([]byte, n)
		if _, err := p.ReadAt(b, 0); err != nil && err != io.EOF {
			r.t.Fatal(err)
		}
		rd.Close()
		if n != m.Trace+m.Octets {
			r.t.Errorf("%s: plaintext of %d octets, trace %d, message %d", m.ID, n, m.Trace, m.Octets)
		}
		traces, messages = append(traces, string(b[:m.Trace])), append(messages, string(b[m.Trace:]))
	}
	return traces, messages
}

type client struct {
	t *testing.T
	net.Conn
	r *bufio.Reader
}

func (r *rig) dial() *client {
	r.t.Helper()
	c, err := net.Dial("tcp", r.addr)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return &client{r.t, c, bufio.NewReader(c)}
}

// expect reads one reply and checks that it starts with want.
func (c *client) expect(want string) string {
	c.t.Helper()
	var all strings.Builder
	for {
		line, err := c.r.ReadString('\n')
		if err != nil {
			c.t.Fatalf("waiting for %q: %v after %q", want, err, all.String())
		}
		all.WriteString(line)
		if len(line) < 4 || line[3] != '-' {
			break
		}
	}
	if !strings.HasPrefix(all.String(), want) {
		c.t.Fatalf("got %q, want %q", all.String(), want)
	}
	return all.String()
}

func (c *client) send(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		c.t.Fatal(err)
	}
}

// closed checks that the server has closed the connection.
func (c *client) closed() {
	c.t.Helper()
	if b, err := c.r.ReadByte(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		c.t.Fatalf("connection still open, got %q", b)
	}
}

// dialog plays "C: line" and "S: prefix of the reply" lines.
func (c *client) dialog(script string) {
	c.t.Helper()
	for l := range strings.Lines(script) {
		l = strings.TrimRight(strings.TrimLeft(l, "\t"), "\n")
		switch {
		case strings.HasPrefix(l, "C: "):
			c.send(l[3:] + "\r\n")
		case strings.HasPrefix(l, "S: "):
			c.expect(l[3:])
		case l != "":
			c.t.Fatalf("script line %q", l)
		}
	}
}

const envelope = `S: 220
	C: EHLO client.example.org
	S: 250-mx.example.org
	C: MAIL FROM:<journal@example.org>
	S: 250 2.1.0
	C: RCPT TO:<mbx-1@msgw.example.com>
	S: 250 2.1.5
`

// exact are messages and what DATA carries for them on the wire.
var exact = []struct{ name, message, wire string }{
	{"plain", "a: b\r\n\r\nbody\r\n", "a: b\r\n\r\nbody\r\n.\r\n"},
	{"empty", "", ".\r\n"},
	{"dots", ".\r\n..\r\n.x\r\n", "..\r\n...\r\n..x\r\n.\r\n"},
	{"unstuffed dot", "x\r\n", ".x\r\n.\r\n"},
	{"dot CR", "\rX\r\n", ".\rX\r\n.\r\n"},
	{"CR CR LF", "a\r\r\n", "a\r\r\n.\r\n"},
	{"bare LF", "a\nb\r\n", "a\nb\r\n.\r\n"},
	{"bare CR", "a\rb\r\n", "a\rb\r\n.\r\n"},
	{"LF dot LF", "a\n.\nb\r\n", "a\n.\nb\r\n.\r\n"},
	{"LF dot CRLF", "a\n.\r\nMAIL FROM:<x@y>\r\n", "a\n.\r\nMAIL FROM:<x@y>\r\n.\r\n"},
	{"CRLF dot LF", "a\r\n\nb\r\n", "a\r\n.\nb\r\n.\r\n"},
	{"CRLF dot CR", "a\r\n\r.\r\r\n", "a\r\n.\r.\r\r\n.\r\n"},
	{"CR dot CR", "a\r.\rb\r\n", "a\r.\rb\r\n.\r\n"},
	{"NUL and 8-bit", "\x00\xff\r\n", "\x00\xff\r\n.\r\n"},
	{"long line", strings.Repeat("x", 200_000) + "\r\n", strings.Repeat("x", 200_000) + "\r\n.\r\n"},
	{"long line of CR", strings.Repeat("\r", 70_000) + "\r\n", strings.Repeat("\r", 70_000) + "\r\n.\r\n"},
}

func TestDataIsExact(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	for _, piece := range []int{1 << 20, 1, 3} { // octets per write
		c := r.dial()
		c.dialog("S: 220\nC: EHLO x\nS: 250-")
		for _, m := range exact {
			if piece < 10 && len(m.wire) > 1000 {
				continue
			}
			before := len(r.store.List("mbx-1"))
			c.dialog("C: MAIL FROM:<>\nS: 250\nC: RCPT TO:<mbx-1@z>\nS: 250\nC: DATA\nS: 354")
			for w := m.wire; w != ""; {
				n := min(piece, len(w))
				c.send(w[:n])
				w = w[n:]
			}
			id := strings.Fields(c.expect("250 2.0.0 stored "))[3]
			if _, got := r.plaintext("mbx-1", before); len(got) != 1 || got[0] != m.message {
				t.Errorf("%s in pieces of %d: stored %.60q, want %.60q", m.name, piece, got, m.message)
			}
			if l := r.store.List("mbx-1"); l[before].ID.String() != id {
				t.Errorf("250 named %s, stored as %s", id, l[before].ID)
			}
		}
	}
}

func TestBDATIsExact(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	for _, chunk := range []int{1, 7, 4096, 1 << 20} {
		for _, pipelined := range []bool{false, true} {
			c := r.dial()
			c.dialog("S: 220\nC: EHLO x\nS: 250-")
			for _, m := range append(exact, struct{ name, message, wire string }{"no end", "a\r\nb", ""}) {
				if chunk < 10 && len(m.message) > 1000 {
					continue
				}
				before := len(r.store.List("mbx-1"))
				c.dialog("C: MAIL FROM:<> BODY=BINARYMIME\nS: 250\nC: RCPT TO:<mbx-1@z>\nS: 250")
				replies := 0
				for p := m.message; p != ""; replies++ {
					n := min(chunk, len(p))
					c.send(fmt.Sprintf("BDAT %d\r\n%s", n, p[:n]))
					p = p[n:]
					if !pipelined {
						c.expect("250 2.0.0 chunk")
					}
				}
				c.send("BDAT 0 LAST\r\n")
				for range replies {
					if pipelined {
						c.expect("250 2.0.0 chunk")
					}
				}
				c.expect("250 2.0.0 stored ")
				if _, got := r.plaintext("mbx-1", before); len(got) != 1 || got[0] != m.message {
					t.Errorf("%s in chunks of %d: stored %.60q, want %.60q", m.name, chunk, got, m.message)
				}
			}
		}
	}
}

// A message that did not arrive whole is never stored and never acknowledged.
func TestIncompleteIsNotStored(t *testing.T) {
	t.Parallel()
	for _, tail := range []string{
		"DATA\r\nhello\r\n", "DATA\r\nhello\r\n.", "DATA\r\nhello\r\n.\r",
		"BDAT 10 LAST\r\nhello", "BDAT 5\r\nhello", "BDAT 5\r\nhelloBDAT 5 LAST\r\n",
		"BDAT 5\r\nhelloRSET\r\n", "BDAT 5\r\nhelloQUIT\r\n", "BDAT 5\r\nhelloEHLO x\r\nBDAT 0 LAST\r\n",
		"BDAT 5\r\nhelloBDAT x LAST\r\n", "BDAT 5\r\nhelloBDAT -1 LAST\r\n", "BDAT 5 FOO\r\nhello",
		"BDAT 99999999999999999999 LAST\r\nhello", "BDAT 5\r\nhelloDATA\r\n",
	} {
		for _, withTLS := range []bool{false, true} {
			r := start(t, nil)
			c := r.dial()
			if withTLS {
				c.dialog("S: 220\nC: EHLO x\nS: 250-\nC: STARTTLS\nS: 220")
				tc := tls.Client(c.Conn, &tls.Config{InsecureSkipVerify: true})
				c.Conn, c.r = tc, bufio.NewReader(tc)
				c.dialog("C: EHLO x\nS: 250-\nC: MAIL FROM:<>\nS: 250\nC: RCPT TO:<mbx-1@z>\nS: 250")
			} else {
				c.dialog(envelope)
			}
			c.send(tail)
			c.Conn.(interface{ CloseWrite() error }).CloseWrite()
			rest, _ := io.ReadAll(c.r)
			if strings.Contains(string(rest), "stored") {
				t.Errorf("%q (TLS %v): acknowledged: %q", tail, withTLS, rest)
			}
			if err := r.stop(); err != nil {
				t.Error(err)
			}
			if n := len(r.store.List("mbx-1")); n != 0 {
				t.Errorf("%q (TLS %v): %d messages stored", tail, withTLS, n)
			}
		}
	}
}

// One transaction has one result, for all recipients; each gets its own copy.
func TestSeveralRecipients(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	c := r.dial()
	c.dialog(envelope + "C: RCPT TO:<mbx-2@z>\nS: 250\nC: RCPT TO:<mbx-1+user=example.org@z>\nS: 250\nC: RCPT TO:<nobody@z>\nS: 550\nC: DATA\nS: 354\nC: hello\nC: .")
	reply := c.expect("250-2.0.0 stored ")
	for _, mailbox := range []string{"mbx-1", "mbx-2"} {
		traces, msgs := r.plaintext(mailbox, 0)
		if len(msgs) != 1 || msgs[0] != "hello\r\n" {
			t.Fatalf("%s: %q", mailbox, msgs)
		}
		m := r.store.List(mailbox)[0]
		if !strings.Contains(reply, m.ID.String()) || !strings.HasPrefix(traces[0], journal.TraceBinding(m.ID, mailbox)) {
			t.Errorf("%s: reply %q, trace %q", mailbox, reply, traces[0])
		}
		if strings.Contains(traces[0], "X-Envelope-To: <user@example.org>\r\n") != (mailbox == "mbx-1") ||
			!strings.Contains(traces[0], "Return-Path: <journal@example.org>\r\n") || !strings.HasSuffix(traces[0], "\r\n\r\n") {
			t.Errorf("%s: trace %q", mailbox, traces[0])
		}
	}
}

// Trouble of ours is always temporary, tells nothing, and stores nothing.
func TestStoreTrouble(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	for _, tc := range []struct {
		commit error
		want   string
	}{
		{fmt.Errorf("commit: %w", journal.ErrDiskFull), "452 4.3.1"},
		{errors.New("/var/lib/secret"), "451 4.3.0 temporary trouble"},
		{nil, "250 2.0.0 stored"},
	} {
		r.store.set(tc.commit, nil, nil)
		for _, body := range []string{"DATA\r\nhello\r\n.\r\n", "BDAT 3\r\nabcBDAT 3 LAST\r\ndef"} {
			c := r.dial()
			c.dialog(envelope)
			c.send(body)
			if body[0] == 'D' {
				c.expect("354")
			} else {
				c.expect("250 2.0.0 chunk")
			}
			if got := c.expect(tc.want); strings.Contains(got, "secret") {
				t.Errorf("told the peer %q", got)
			}
			c.dialog("C: NOOP\nS: 250") // still in step
		}
	}
	if n := len(r.store.List("mbx-1")); n != 2 {
		t.Errorf("%d messages stored, want 2", n)
	}
	c := r.dial()
	r.store.set(nil, fmt.Errorf("low: %w", journal.ErrDiskFull), nil)
	c.dialog("S: 220\nC: EHLO x\nS: 250-\nC: MAIL FROM:<>\nS: 452 4.3.1")
	r.store.set(nil, nil, journal.ErrFailed)
	c.dialog("C: MAIL FROM:<>\nS: 451 4.3.0")
	c = r.dial()
	c.expect("421 4.3.2")
	c.closed()
}

func TestStartTLS(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	c := r.dial()
	c.dialog("S: 220\nC: STARTTLS\nS: 503\nC: EHLO x\nS: 250-\nC: STARTTLS now\nS: 501\nC: MAIL FROM:<a@b>\nS: 250\nC: STARTTLS\nS: 220")
	tc := tls.Client(c.Conn, &tls.Config{InsecureSkipVerify: true, ClientSessionCache: tls.NewLRUClientSessionCache(1)})
	c.Conn, c.r = tc, bufio.NewReader(tc)
	c.dialog("C: RCPT TO:<mbx-1@z>\nS: 503\nC: RSET\nS: 250\nC: MAIL FROM:<a@b>\nS: 503") // it starts anew
	c.send("EHLO x\r\n")
	if got := c.expect("250-"); strings.Contains(got, "STARTTLS") {
		t.Errorf("offers inside TLS: %q", got)
	}
	c.dialog("C: STARTTLS\nS: 503\nC: MAIL FROM:<a@b>\nS: 250\nC: RCPT TO:<mbx-1@z>\nS: 250\nC: DATA\nS: 354\nC: hello\nC: .\nS: 250 2.0.0 stored")
	if traces, _ := r.plaintext("mbx-1", 0); !strings.Contains(traces[0], "with ESMTPS\r\n\t(TLS 1.3 ") {
		t.Errorf("trace %q", traces[0])
	}
	if tc.ConnectionState().DidResume {
		t.Error("session resumed")
	}

	// Plaintext behind STARTTLS never becomes a command.
	c = r.dial()
	c.dialog("S: 220\nC: EHLO x\nS: 250-")
	c.send("STARTTLS\r\nMAIL FROM:<a@b>\r\nRCPT TO:<mbx-1@z>\r\n")
	c.expect("220")
	rest, err := io.ReadAll(c.r)
	if err != nil || bytes.Contains(rest, []byte("250")) {
		t.Errorf("injected command was answered: %q, %v", rest, err)
	}
}

// Over TLS the end of a session is said, not only done: Exim logs an error otherwise.
func TestCloseNotify(t *testing.T) {
	t.Parallel()
	r := start(t, func(o *Options) { o.MaxErrors = 2 })
	for _, last := range []string{"C: QUIT\nS: 221", "C: A\nS: 500\nC: B\nS: 500\nS: 421"} {
		c := r.dial()
		c.dialog("S: 220\nC: EHLO x\nS: 250-\nC: STARTTLS\nS: 220")
		tap := &tapConn{Conn: c.Conn}
		tc := tls.Client(tap, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}) // alerts show on the wire
		c.Conn, c.r = tc, bufio.NewReader(tc)
		c.dialog("C: EHLO x\nS: 250-\n" + last)
		if rest, err := io.ReadAll(tc); err != nil || len(rest) > 0 {
			t.Errorf("at the end: %q, %v", rest, err)
		}
		var kind byte
		for b := tap.got; len(b) >= 5; { // RFC 5246 section 6.2.1
			kind = b[0]
			b = b[5+int(b[3])<<8+int(b[4]):]
		}
		if kind != 21 {
			t.Errorf("%q: the last record is of type %d, expected an alert", last, kind)
		}
	}
}

// tapConn keeps what was read.
type tapConn struct {
	net.Conn
	got []byte
}

func (t *tapConn) Read(p []byte) (int, error) {
	n, err := t.Conn.Read(p)
	t.got = append(t.got, p[:n]...)
	return n, err
}

func TestLimits(t *testing.T) {
	t.Parallel()
	r := start(t, func(o *Options) { o.MaxErrors, o.MaxIdle, o.MaxRecipients, o.Limits.PerAddress = 4, 20, 10, 2 })
	c := r.dial()
	c.dialog("S: 220\nC: A\nS: 500\nC: B\nS: 500\nC: C\nS: 500\nC: D\nS: 500\nS: 421 4.7.0")
	c.closed()
	c = r.dial()
	c.expect("220")
	for range 20 {
		c.dialog("C: NOOP\nS: 250")
	}
	c.dialog("C: NOOP\nS: 421 4.7.0")
	c.closed()
	c = r.dial()
	c.expect("220")
	c.send("GET / HTTP/1.1\r\n")
	c.closed()

	a, _ := r.admitted(), r.admitted()
	x := r.dial()
	x.expect("421 4.7.0")
	x.closed()
	a.dialog("C: QUIT\nS: 221")
	a.closed()
	r.admitted()
}

// admitted dials until the server has a place: that of a closed connection is free once
// the server has seen the end.
func (r *rig) admitted() *client {
	r.t.Helper()
	for range 100 {
		c := r.dial()
		if line, _ := c.r.ReadString('\n'); strings.HasPrefix(line, "220") {
			return c
		}
		time.Sleep(10 * time.Millisecond)
	}
	r.t.Fatal("the place of a closed connection stays taken")
	return nil
}

// A stop tells idle sessions, lets a transfer finish, and acknowledges nothing late.
func TestStop(t *testing.T) {
	t.Parallel()
	r := start(t, func(o *Options) { o.Grace = 5 * time.Second })
	idle, busy := r.dial(), r.dial()
	idle.expect("220")
	busy.dialog(envelope + "C: DATA\nS: 354\nC: first line")
	time.Sleep(100 * time.Millisecond) // it is inside the message
	done := make(chan error, 1)
	go func() { done <- r.stop() }()
	idle.expect("421 4.3.2")
	idle.closed()
	busy.send("second line\r\n.\r\n")
	busy.expect("250 2.0.0 stored")
	busy.expect("421 4.3.2")
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := net.DialTimeout("tcp", r.addr, time.Second); err == nil {
		t.Error("still listening")
	}
}

func TestFlags(t *testing.T) {
	t.Parallel()
	for msg, want := range map[string]journal.Flags{
		"":                                     0,
		"a\r\n":                                0,
		"a":                                    journal.NoFinalCRLF,
		"a\n":                                  journal.NoFinalCRLF | journal.BareLF,
		"a\r":                                  journal.NoFinalCRLF | journal.BareCR,
		"a\rb\r\n":                             journal.BareCR,
		"\n\r\n":                               journal.BareLF,
		"a\n.\r\n":                             journal.BareLF | journal.LFDot,
		"a\r\n.\r\n":                           0,
		"\xff\r\n":                             journal.EightBit,
		"X-MS-Journal-Report: \r\n\r\nx\r\n":   journal.JournalReport,
		"A: b\r\nx-ms-journal-report:\r\n\r\n": journal.JournalReport,
		"X-WM-Journal-Report: journal\r\n\r\n": journal.JournalReport,
		"Content-Identifier: exjournalreport\r\n":    journal.JournalReport,
		"Content-Identifer: ExJournalReport\r\n\r\n": journal.JournalReport,
		"Content-Identifier: something\r\n":          0,
		"A: b\r\n\r\nX-MS-Journal-Report:\r\n":       0,
		"Subject: X-MS-Journal-Report:\r\n\r\n":      0,
		strings.Repeat("A: b\r\n", 20_000) + "\r\n":  0,
	} {
		for _, n := range []int{1, 2, 1 << 20} {
			o := &octets{}
			for p := msg; p != ""; {
				k := min(n, len(p))
				o.Write([]byte(p[:k]))
				p = p[k:]
			}
			if got := o.result(); got != want || o.total != int64(len(msg)) {
				t.Errorf("%.40q in pieces of %d: flags %b, want %b", msg, n, got, want)
			}
		}
	}
}
