package lineproto

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func TestLimitsAreCounted(t *testing.T) {
	t.Parallel()
	n := newCounter(Limits{Total: 5, PerAddress: 2, PerNetwork: 3})
	var seats []*seat
	for _, tc := range []struct{ addr, refused string }{
		{"192.0.2.1", ""}, {"192.0.2.1", ""}, {"192.0.2.1", "connections from one address"},
		{"192.0.2.2", ""}, {"192.0.2.3", "connections from one network"},
		{"2001:db8:1:1::1", ""}, {"2001:db8:1:2::1", ""}, {"2001:db8:2::1", "connections in total"},
	} {
		seat, refused := n.acquire(netip.MustParseAddr(tc.addr))
		if refused != tc.refused || (seat == nil) != (refused != "") {
			t.Errorf("%s: %q, want %q", tc.addr, refused, tc.refused)
		}
		if seat != nil {
			seats = append(seats, seat)
		}
	}
	for _, s := range seats {
		s.release()
	}
	if n.total != 0 || len(n.open) != 0 {
		t.Errorf("left over: %d, %v", n.total, n.open)
	}
	n.limits.Total, n.limits.Large = 0, func(a netip.Addr) bool { return a == netip.MustParseAddr("198.51.100.1") }
	for i := range 9 {
		if _, refused := n.acquire(netip.MustParseAddr("198.51.100.1")); (refused == "connections from one address") != (i == 8) {
			t.Errorf("connection %d of a large sender: %q", i, refused)
		}
	}
	for range 2 {
		n.acquire(netip.MustParseAddr("2001:db8:1:1::1"))
	}
	n.acquire(netip.MustParseAddr("2001:db8:1:ffff::1"))
	if _, refused := n.acquire(netip.MustParseAddr("2001:db8:1:5::1")); refused != "connections from one network" {
		t.Errorf("an IPv6 /48: %q", refused)
	}
	if a := remote(fakeConn{addr: "[::ffff:192.0.2.1]:25"}); a != netip.MustParseAddr("192.0.2.1") {
		t.Errorf("a mapped address counts as %s", a)
	}
}

type fakeConn struct {
	net.Conn
	addr string
}

func (f fakeConn) RemoteAddr() net.Addr { return addr(f.addr) }

type addr string

func (addr) Network() string  { return "tcp" }
func (a addr) String() string { return string(a) }

// echo answers each line; "panic" is its defect.
type echo struct{ live *atomic.Int64 }

func (e echo) Handle(ctx context.Context, c net.Conn) {
	e.live.Add(1)
	defer e.live.Add(-1)
	defer time.Sleep(20 * time.Millisecond) // it ends in its own time
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Now()) })
	defer stop()
	r := bufio.NewReaderSize(c, 64)
	for {
		line, err := ReadLine(r, 40)
		switch {
		case errors.Is(err, ErrLineTooLong):
			line = "too long"
		case err != nil:
			return
		case line == "panic":
			panic("a defect")
		}
		io.WriteString(c, line+"\n")
	}
}

func (echo) Refuse(c net.Conn) { io.WriteString(c, "refused\n") }

// flaky fails the first accepts as a process out of descriptors does.
type flaky struct {
	net.Listener
	failures int
}

func (f *flaky) Accept() (net.Conn, error) {
	if f.failures--; f.failures >= 0 {
		return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
	}
	return f.Listener.Accept()
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestServe(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var log lockedBuffer
	var live atomic.Int64
	s := &Server{Handler: echo{&live}, Limits: Limits{Total: 2}, Log: slog.New(slog.NewTextHandler(&log, nil))}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, &flaky{l, 2}) }()
	dial := func() (net.Conn, *bufio.Reader) {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(10 * time.Second))
		return c, bufio.NewReader(c)
	}
	ask := func(c net.Conn, r *bufio.Reader, line, want string) {
		t.Helper()
		io.WriteString(c, line)
		if got, err := r.ReadString('\n'); got != want+"\n" {
			t.Errorf("%.50q: %q, %v", line, got, err)
		}
	}
	a, ar := dial()
	ask(a, ar, "hello\r\n", "hello")
	ask(a, ar, "bare\n", "bare")
	ask(a, ar, strings.Repeat("x", 1000)+"\n", "too long")
	ask(a, ar, strings.Repeat("x", 40)+"\n", "too long") // fits the buffer
	ask(a, ar, strings.Repeat("x", 38)+"\r\n", strings.Repeat("x", 38))
	b, br := dial()
	ask(b, br, "x\n", "x")
	c, cr := dial()
	ask(c, cr, "", "refused")
	io.WriteString(b, "panic\n")
	if _, err := br.ReadByte(); err != io.EOF {
		t.Errorf("after a defect: %v", err)
	}
	ask(a, ar, "alive\n", "alive")
	for range 100 { // its place is free
		c, cr = dial()
		io.WriteString(c, "x\n")
		if got, _ := cr.ReadString('\n'); got == "x\n" {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	ask(c, cr, "again\n", "again")
	io.WriteString(c, "cut off") // no line
	c.(*net.TCPConn).CloseWrite()
	if got, _ := io.ReadAll(cr); len(got) != 0 {
		t.Errorf("an unfinished line was answered: %q", got)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n := live.Load(); n != 0 {
		t.Errorf("Serve returned while %d connections were served", n)
	}
	for _, want := range []string{"a defect", "serve_test.go", "accept failed", "connections in total"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("log lacks %q:\n%s", want, log.String())
		}
	}
}

// A listener that fails for good ends Serve with its error.
func TestServeFailedListener(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Handler: echo{new(atomic.Int64)}, Log: slog.New(slog.DiscardHandler)}
	l.Close()
	if err := s.Serve(context.Background(), l); !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v", err)
	}
}
