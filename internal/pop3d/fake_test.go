package pop3d

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"msgw/internal/lineproto/dialog"
)

// archive is a Maildrops of a few mailboxes with one password.
type archive struct {
	password string
	err      error // what Login returns to whoever knows the password

	mu     sync.Mutex
	drops  map[string]*maildrop
	logins []string // user, space, password
}

func (a *archive) Login(ctx context.Context, user, password string) (Maildrop, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.logins = append(a.logins, user+" "+password)
	d := a.drops[user]
	if d == nil || password != a.password {
		return nil, fmt.Errorf("login: %w", ErrCredentials)
	}
	if a.err != nil {
		return nil, a.err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.locked {
		return nil, fmt.Errorf("login: %w", ErrInUse)
	}
	d.locked = true
	return d, nil
}

func (a *archive) tried() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.logins)
}

// maildrop is a Maildrop in memory. Its fields are set before it is used.
type maildrop struct {
	list   []Message
	bodies [][]byte
	open   func(ctx context.Context, i int) (io.ReadCloser, error) // nil: bodies
	delete func(ctx context.Context) error                         // nil: works

	mu      sync.Mutex
	locked  bool
	deletes [][]int
	closed  int
}

func newMaildrop(bodies ...string) *maildrop {
	d := &maildrop{}
	for i, b := range bodies {
		raw := []byte(b)
		size, bareLF, endsCRLF, lfDot := measure(raw)
		d.bodies = append(d.bodies, raw)
		d.list = append(d.list, Message{ID: id(i), Octets: Octets(size, bareLF, endsCRLF, lfDot), LFDot: lfDot})
	}
	return d
}

func id(i int) string { return fmt.Sprintf("f558587b-b6d6-490d-b21e-%012x", i+1) }

func (d *maildrop) Messages() []Message { return d.list }

func (d *maildrop) Open(ctx context.Context, i int) (io.ReadCloser, error) {
	if d.open != nil {
		return d.open(ctx, i)
	}
	return io.NopCloser(bytes.NewReader(d.bodies[i])), nil
}

func (d *maildrop) Delete(ctx context.Context, which []int) error {
	d.mu.Lock()
	d.deletes = append(d.deletes, which)
	d.mu.Unlock()
	if d.delete != nil {
		return d.delete(ctx)
	}
	return nil
}

func (d *maildrop) Close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.locked = false
	d.closed++
}

// state returns what was deleted and whether the maildrop is locked.
func (d *maildrop) state() (deletes [][]int, locked bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.deletes), d.locked
}

// measure is what a receiver notes of a message, written to be plain.
func measure(raw []byte) (size, bareLF int64, endsCRLF, lfDot bool) {
	for i, c := range raw {
		if c == '\n' && (i == 0 || raw[i-1] != '\r') {
			bareLF++
			if i+1 < len(raw) && raw[i+1] == '.' {
				lfDot = true
			}
		}
	}
	return int64(len(raw)), bareLF, bytes.HasSuffix(raw, []byte("\r\n")), lfDot
}

// asSent is what a client must get for a message, written to be plain.
func asSent(raw []byte, lfDot bool) []byte {
	out := make([]byte, 0, len(raw)+len(raw)/64)
	for i, c := range raw {
		if lfDot && c == '\n' && (i == 0 || raw[i-1] != '\r') {
			out = append(out, '\r')
		}
		out = append(out, c)
	}
	if len(raw) > 0 && !bytes.HasSuffix(raw, []byte("\r\n")) {
		out = append(out, "\r\n"...)
	}
	return out
}

// certificate is one self-signed certificate for all tests.
var certificate = sync.OnceValue(func() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		DNSNames:     []string{"msgw.example"},
		NotBefore:    time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC), // synctest starts in 2000
		NotAfter:     time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
})

func clientTLS() *tls.Config {
	pool := x509.NewCertPool()
	leaf, err := x509.ParseCertificate(certificate().Certificate[0])
	if err != nil {
		panic(err)
	}
	pool.AddCert(leaf)
	return &tls.Config{RootCAs: pool, ServerName: "msgw.example"}
}

// logbook is a log that may be read while it is written.
type logbook struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logbook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logbook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

const (
	mailbox  = "mbx-2a20342e96294505a35eb5c8364eb67c"
	password = "qn5x(/.B9M~PsZA92f]VYbIG`q{!1^[8"
)

// site is a running server.
type site struct {
	*archive
	drop     *maildrop // of mailbox
	log      *logbook
	registry *prometheus.Registry
	dial     func(implicit bool) net.Conn
	stop     context.CancelFunc
	done     <-chan struct{}
}

// start runs a server whose one mailbox holds drop, on loopback or, within
// synctest, on pipes.
func start(t *testing.T, drop *maildrop, pipes bool, change ...func(*Options)) *site {
	t.Helper()
	s := &site{
		archive:  &archive{password: password, drops: map[string]*maildrop{mailbox: drop}},
		drop:     drop,
		log:      &logbook{},
		registry: prometheus.NewRegistry(),
	}
	o := Options{
		Maildrops: s.archive,
		TLS:       &tls.Config{Certificates: []tls.Certificate{certificate()}, SessionTicketsDisabled: pipes},
		Log:       slog.New(slog.NewTextHandler(s.log, nil)),
		Metrics:   s.registry,
	}
	if !pipes {
		o.FailureDelay = time.Millisecond
	}
	for _, f := range change {
		f(&o)
	}
	var plain, implicit net.Listener
	if pipes {
		p, i := newPipeListener(), newPipeListener()
		plain, implicit = p, i
		s.dial = func(implicit bool) net.Conn {
			if implicit {
				return i.dial()
			}
			return p.dial()
		}
	} else {
		for _, l := range []*net.Listener{&plain, &implicit} {
			var err error
			if *l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
				t.Fatal(err)
			}
		}
		s.dial = func(tls bool) net.Conn {
			l := plain
			if tls {
				l = implicit
			}
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			c.SetDeadline(time.Now().Add(30 * time.Second))
			return c
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	s.stop, s.done = cancel, done
	go func() {
		defer close(done)
		if err := New(o).Serve(ctx, plain, implicit); err != nil {
			t.Errorf("Serve: %v", err)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		if strings.Contains(s.log.String(), s.archive.password) {
			t.Errorf("the log holds the password:\n%s", s.log)
		}
		if _, locked := drop.state(); locked {
			t.Error("the maildrop is still locked")
		}
	})
	return s
}

// pipeListener hands out one end of a net.Pipe, as if from 192.0.2.1.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error { l.once.Do(func() { close(l.closed) }); return nil }

func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 2), Port: 110} }

func (l *pipeListener) dial() net.Conn {
	ours, theirs := net.Pipe()
	l.conns <- fromAddr{ours}
	return theirs
}

type fromAddr struct{ net.Conn }

func (fromAddr) RemoteAddr() net.Addr {
	return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 40000}
}

// client is a strict POP3 client: a line ends with CRLF and nothing else.
type client struct {
	t *testing.T
	*dialog.Player
}

func (s *site) client(t *testing.T, implicit bool) *client {
	t.Helper()
	c := &client{t, dialog.New(s.dial(implicit))}
	c.TLS = clientTLS()
	t.Cleanup(func() { c.Conn.Close() })
	if implicit {
		c.script("TLS")
	}
	return c
}

// loggedIn returns a client after login over TLS.
func (s *site) loggedIn(t *testing.T) *client {
	t.Helper()
	c := s.client(t, true)
	c.script("S: +OK msgw...", "C: USER "+mailbox, "S: +OK...", "C: PASS "+password, "S: +OK...")
	return c
}

func (c *client) send(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c.Conn, s); err != nil {
		c.t.Fatalf("send: %v", err)
	}
}

// line appends the next line to b, and says where in it that line begins.
func (c *client) line(b []byte) (line []byte, begin int, err error) {
	begin = len(b)
	for {
		part, err := c.In.ReadSlice('\n')
		if b = append(b, part...); err != nil && err != bufio.ErrBufferFull {
			return b, begin, err
		}
		if bytes.HasSuffix(b[begin:], []byte("\r\n")) {
			return b, begin, nil
		}
	}
}

// read returns the next line without its CRLF.
func (c *client) read() (string, error) {
	line, _, err := c.line(nil)
	return strings.TrimSuffix(string(line), "\r\n"), err
}

// body returns the lines of a multi-line response, as they were before stuffing.
func (c *client) body() (body []byte, err error) {
	for begin := 0; ; {
		if body, begin, err = c.line(body); err != nil {
			return body, err
		}
		switch line := body[begin:]; {
		case string(line) == ".\r\n":
			return body[:begin], nil
		case line[0] == '.':
			body = append(body[:begin], line[1:]...)
		}
	}
}

// script plays lines of a dialogue.
func (c *client) script(lines ...string) {
	c.t.Helper()
	if c.t.Failed() {
		c.t.FailNow()
	}
	s, err := dialog.Parse("script", strings.Join(lines, "\n"))
	if err == nil {
		err = c.Play(s)
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// octets is the line of a dialogue that sends octets as they are.
func octets(s string) string { return "C- " + strconv.Quote(s) }
