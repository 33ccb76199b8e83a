package pop3d

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"
)

// tape is a connection whose peer has said everything and then left.
type tape struct {
	net.Conn // what is not needed
	in       io.Reader
	out      strings.Builder
	writes   int
	largest  int
	keep     bool
	onWrite  func() // nil: nothing
}

func (c *tape) Read(p []byte) (int, error) { return c.in.Read(p) }

func (c *tape) Write(p []byte) (int, error) {
	c.writes++
	if c.onWrite != nil {
		c.onWrite()
	}
	c.largest = max(c.largest, len(p))
	if c.keep {
		c.out.Write(p)
	}
	return len(p), nil
}

func (c *tape) Close() error                     { return nil }
func (c *tape) SetDeadline(time.Time) error      { return nil }
func (c *tape) SetReadDeadline(time.Time) error  { return nil }
func (c *tape) SetWriteDeadline(time.Time) error { return nil }
func (c *tape) RemoteAddr() net.Addr             { return fromAddr{}.RemoteAddr() }

// play runs a session over c, as if under TLS if secure.
func play(srv *Server, c *tape, secure bool) { playUntil(context.Background(), srv, c, secure) }

func playUntil(ctx context.Context, srv *Server, c *tape, secure bool) {
	s := newSession(srv, c)
	if secure {
		s.version = tls.VersionTLS13
	}
	s.serve(ctx, false)
}

func quietServer(m Maildrops) *Server {
	return New(Options{
		Maildrops:    m,
		TLS:          &tls.Config{Certificates: []tls.Certificate{certificate()}},
		Log:          slog.New(slog.DiscardHandler),
		FailureDelay: 1,
		Throttle:     Throttle{Address: 1 << 30, User: 1 << 30, Window: time.Second},
	})
}

func manyMessages(n int) *archive {
	drop := &maildrop{}
	for i := range n {
		drop.list = append(drop.list, Message{ID: id(i), Octets: int64(i) + 1})
	}
	return &archive{password: password, drops: map[string]*maildrop{mailbox: drop}}
}

const login = "USER " + mailbox + "\r\nPASS " + password + "\r\n"

// A hundred thousand messages are listed quickly, through one small buffer.
func TestListManyMessages(t *testing.T) {
	t.Parallel()
	const n = 100_000
	srv := quietServer(manyMessages(n))
	c := &tape{in: strings.NewReader(login + "STAT\r\nLIST\r\nUIDL\r\nQUIT\r\n"), keep: true}
	start := time.Now()
	play(srv, c, true)
	took := time.Since(start)
	t.Logf("listed in %v", took)
	if took > 3*time.Second { // 10 ms without the race detector, on a quiet machine
		t.Errorf("took %v", took)
	}
	lines := strings.Split(c.out.String(), "\r\n")
	if len(lines) != 3+1+2*(n+2)+1+1 {
		t.Fatalf("%d lines", len(lines))
	}
	for at, want := range map[int]string{
		3:         fmt.Sprintf("+OK %d %d", n, int64(n)*(n+1)/2),
		4 + n:     fmt.Sprintf("%d %d", n, n),
		5 + n:     ".",
		6 + 2*n:   fmt.Sprintf("%d %s", n, id(n-1)),
		7 + 2*n:   ".",
		8 + 2*n:   "+OK",
		4 + n/2:   fmt.Sprintf("%d %d", n/2, n/2),
		6 + n*3/2: fmt.Sprintf("%d %s", n/2, id(n/2-1)),
	} {
		if lines[at] != want {
			t.Errorf("line %d is %q, want %q", at, lines[at], want)
		}
	}
	if c.largest > 16<<10 {
		t.Errorf("a write of %d octets", c.largest)
	}
}

func BenchmarkList(b *testing.B) {
	srv := quietServer(manyMessages(100_000))
	b.ReportAllocs()
	for b.Loop() {
		play(srv, &tape{in: strings.NewReader(login + "LIST\r\nUIDL\r\nQUIT\r\n")}, true)
	}
}

// Answers to commands that came together go out together.
func TestPipelining(t *testing.T) {
	t.Parallel()
	srv := quietServer(manyMessages(3))
	c := &tape{in: strings.NewReader(login + "STAT\r\nNOOP\r\nLIST\r\nQUIT\r\n"), keep: true}
	play(srv, c, true)
	if c.writes != 2 { // the greeting, and the rest
		t.Errorf("%d writes", c.writes)
	}
	// Half a command is not waited for.
	in, peer := io.Pipe()
	c = &tape{in: in}
	go func() {
		peer.Write([]byte("CAPA\r\nCA"))
		peer.Write([]byte("PA\r\n"))
		peer.Close()
	}()
	play(srv, c, true)
	if c.writes != 3 {
		t.Errorf("%d writes", c.writes)
	}
}
