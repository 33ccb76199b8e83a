package dnsplugin

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coredns/coredns/plugin/pkg/reuseport"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

func TestPortTaken(t *testing.T) {
	t.Parallel()
	var lc net.ListenConfig
	for name, take := range map[string]func(addr string) (io.Closer, string, error){
		"tcp": func(addr string) (io.Closer, string, error) {
			l, err := lc.Listen(t.Context(), "tcp", addr)
			return l, l.Addr().String(), err
		},
		"udp": func(addr string) (io.Closer, string, error) {
			p, err := lc.ListenPacket(t.Context(), "udp", addr)
			return p, p.LocalAddr().String(), err
		},
		// What CoreDNS itself would open.
		"tcp shared": func(addr string) (io.Closer, string, error) {
			l, err := reuseport.Listen("tcp", addr)
			return l, l.Addr().String(), err
		},
		"udp shared": func(addr string) (io.Closer, string, error) {
			p, err := reuseport.ListenPacket("udp", addr)
			return p, p.LocalAddr().String(), err
		},
	} {
		t.Run(name, func(t *testing.T) {
			taken, addr, err := take("127.0.0.77:0")
			if err != nil {
				t.Fatal(err)
			}
			// An address no other test binds on.
			tcp, udp, err := bindBoth(t.Context(), "127.0.0.77:0")
			if err != nil {
				t.Fatal(err)
			}
			free := tcp.Addr().String()
			tcp.Close()
			udp.Close()
			s := NewServer(handler(t, Options{Source: sourceOf(nil)}), free, addr)
			if err := s.Listen(t.Context()); !errors.Is(err, syscall.EADDRINUSE) {
				t.Fatalf("got %v", err)
			}
			if s.Addr() != nil {
				t.Errorf("bound in part: %v", s.Addr())
			}
			// Nothing is left bound.
			taken.Close()
			for _, a := range []string{free, addr} {
				tcp, udp, err := bindBoth(t.Context(), a)
				if err != nil {
					t.Fatal(err)
				}
				tcp.Close()
				udp.Close()
			}
		})
	}
	// And nobody joins this server's port later.
	addr := serve(t, handler(t, Options{Source: sourceOf(nil)}))
	if l, err := reuseport.Listen("tcp", addr); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("second listener: %v %v", l, err)
	}
	if p, err := reuseport.ListenPacket("udp", addr); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("second socket: %v %v", p, err)
	}
}

func TestListenErrors(t *testing.T) {
	t.Parallel()
	h := handler(t, Options{Source: sourceOf(nil)})
	for _, addresses := range [][]string{nil, {"127.0.0.1"}, {"127.0.0.1:99999"}, {"127.0.0.1:0", "192.0.2.1:0"}} {
		s := NewServer(h, addresses...)
		if err := s.Listen(t.Context()); err == nil {
			t.Errorf("%q: no error", addresses)
		}
		if err := s.Serve(t.Context()); err == nil {
			t.Errorf("%q: served unbound", addresses)
		}
	}
}

// Two servers with two addresses each run in one process, each with its own zone;
// stopping one leaves the other alone and frees its ports.
func TestSeveralServers(t *testing.T) {
	t.Parallel()
	type running struct {
		s    *Server
		stop context.CancelFunc
		done chan error
	}
	var nodes []running
	for i := range 2 {
		z := twoHosts()
		z.Serial = uint32(100 + i)
		s := NewServer(handler(t, Options{Source: sourceOf(z)}), "127.0.0.1:0", "127.0.0.1:0")
		if err := s.Listen(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := s.Listen(t.Context()); err == nil {
			t.Error("listened twice")
		}
		ctx, cancel := context.WithCancel(context.Background())
		n := running{s, cancel, make(chan error, 1)}
		go func() { n.done <- s.Serve(ctx) }()
		nodes = append(nodes, n)
	}
	check := func(i int) {
		t.Helper()
		for _, a := range nodes[i].s.Addr() {
			for _, network := range []string{"udp", "tcp"} {
				m := ask(t, network, a.String(), question("gw.example.org.", "SOA"))
				if m.Answer[0].(*dns.SOA).Serial != uint32(100+i) {
					t.Errorf("node %d: %s", i, text(m))
				}
			}
		}
	}
	check(0)
	check(1)
	if err := nodes[0].s.Serve(t.Context()); err == nil {
		t.Error("served twice")
	}
	nodes[0].stop()
	if err := <-nodes[0].done; err != nil {
		t.Error(err)
	}
	check(1)
	again := NewServer(handler(t, Options{Source: sourceOf(nil)}), nodes[0].s.Addr()[0].String())
	if err := again.Listen(t.Context()); err != nil {
		t.Errorf("port is not free after Serve: %v", err)
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if err := again.Serve(ended); err != nil {
		t.Error(err)
	}
	nodes[1].stop()
	if err := <-nodes[1].done; err != nil {
		t.Error(err)
	}
}

// Stopping at any moment, right after the start above all, neither hangs nor leaves
// a socket behind.
func TestStopAtOnce(t *testing.T) {
	t.Parallel()
	h := handler(t, Options{Source: sourceOf(twoHosts())})
	for i := range 60 {
		s := NewServer(h, "127.0.0.1:0")
		if err := s.Listen(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- s.Serve(ctx) }()
		time.Sleep(time.Duration(i*10) * time.Microsecond)
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(8 * time.Second):
			t.Fatal("Serve hangs")
		}
		if c, err := net.Dial("tcp", s.Addr()[0].String()); err == nil {
			c.Close()
			t.Fatal("still accepts connections")
		}
	}
}

// An idle connection does not delay the stop.
func TestStopWithIdleClient(t *testing.T) {
	t.Parallel()
	s := NewServer(handler(t, Options{Source: sourceOf(twoHosts())}), "127.0.0.1:0")
	if err := s.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	c, err := new(dns.Client).Dial(s.Addr()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	tcp, err := (&dns.Client{Net: "tcp"}).Dial(s.Addr()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	if err := tcp.WriteMsg(question("gw.example.org.", "MX")); err != nil {
		t.Fatal(err)
	}
	if _, err := tcp.ReadMsg(); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	cancel()
	if err := <-done; err != nil || time.Since(start) > 2*time.Second {
		t.Errorf("stopped after %v: %v", time.Since(start), err)
	}
	if _, err := tcp.ReadMsg(); !errors.Is(err, io.EOF) {
		t.Errorf("connection after the stop: %v", err)
	}
}

// Serve does not return before the last query it let in, however long that takes.
func TestStopWaits(t *testing.T) {
	t.Parallel()
	entered, release := make(chan struct{}), make(chan struct{})
	s := NewServer(handler(t, Options{Source: sourceFunc(func() *Zone {
		close(entered)
		<-release
		return nil
	})}), "127.0.0.1:0")
	if err := s.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	c, err := new(dns.Client).Dial(s.Addr()[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.WriteMsg(question("gw.example.org.", "MX")); err != nil {
		t.Fatal(err)
	}
	<-entered
	cancel()
	select {
	case <-done:
		t.Error("returned while a query was being answered")
	case <-time.After(5500 * time.Millisecond): // CoreDNS waits for 5 s itself
	}
	close(release)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A socket that fails by itself ends Serve with an error, and the others with it.
func TestSocketFails(t *testing.T) {
	t.Parallel()
	s := NewServer(handler(t, Options{Source: sourceOf(twoHosts())}), "127.0.0.1:0", "127.0.0.1:0")
	if err := s.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(context.Background()) }()
	ask(t, "udp", s.Addr()[0].String(), question("gw.example.org.", "MX"))
	s.bound[0].udp.Close()
	select {
	case err := <-done:
		if !errors.Is(err, net.ErrClosed) || !strings.Contains(err.Error(), "udp on "+s.Addr()[0].String()) {
			t.Errorf("got %v", err)
		}
	case <-time.After(8 * time.Second):
		t.Fatal("Serve goes on")
	}
}

func TestConnectionLimits(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	addr := serve(t, handler(t, Options{Source: sourceOf(twoHosts()), Registerer: reg}))
	var conns []*dns.Conn
	open := func() (*dns.Conn, error) {
		c, err := (&dns.Client{Net: "tcp", Timeout: 5 * time.Second}).Dial(addr)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(5 * time.Second))
		if err := c.WriteMsg(question("gw.example.org.", "MX")); err != nil {
			return nil, err
		}
		if _, err = c.ReadMsg(); err != nil {
			c.Close()
			return nil, err
		}
		return c, nil
	}
	for i := range maxConnsPerClient {
		c, err := open()
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		conns = append(conns, c)
	}
	if _, err := open(); err == nil || isTimeout(err) {
		t.Errorf("connection above the limit: %v", err)
	}
	if got := gathered(t, reg); !strings.Contains(got, "coredns_dnsplugin_dropped_total limit=connections 1\n") {
		t.Error(got)
	}
	// A connection ends after so many queries, and its place is free again.
	c := conns[0]
	for range maxQueriesPerConn - 1 {
		if err := c.WriteMsg(question("gw.example.org.", "MX")); err != nil {
			t.Fatal(err)
		}
		if _, err := c.ReadMsg(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.ReadMsg(); !errors.Is(err, io.EOF) {
		t.Errorf("after %d queries: %v", maxQueriesPerConn, err)
	}
	c, err := open()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range append(conns, c) {
		c.Close()
	}
}

// fakeListener hands out what a test puts in.
type fakeListener struct{ results chan any }

func (f *fakeListener) Accept() (net.Conn, error) {
	switch r := (<-f.results).(type) {
	case net.Conn:
		return r, nil
	case error:
		return nil, r
	}
	return nil, net.ErrClosed
}
func (f *fakeListener) Close() error   { close(f.results); return nil }
func (f *fakeListener) Addr() net.Addr { return &net.TCPAddr{} }

// fromAddr is a connection from an address.
type fromAddr struct {
	net.Conn
	addr   string
	closed atomic.Bool
}

func (c *fromAddr) RemoteAddr() net.Addr {
	a, _ := net.ResolveTCPAddr("tcp", c.addr)
	return a
}
func (c *fromAddr) Close() error { c.closed.Store(true); return nil }

func TestLimitListener(t *testing.T) {
	t.Parallel()
	m, err := newMetrics(nil)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		f := &fakeListener{make(chan any, 10)}
		l := newLimitListener(f, slog.New(slog.DiscardHandler), m)
		accept := func(addr string) net.Conn {
			c := &fromAddr{addr: addr}
			lc := l.admit(c)
			if lc == nil {
				return nil
			}
			return lc
		}
		var first net.Conn
		for range maxConnsPerClient {
			first = accept("[2001:db8::1]:1000")
		}
		if c := accept("[2001:db8::ffff]:1000"); c != nil {
			t.Error("a client of the same /64 was let in")
		}
		if c := accept("[2001:db8:0:1::1]:1000"); c == nil {
			t.Error("a client of another /64 was not let in")
		}
		first.Close()
		first.Close() // counts once
		if c := accept("[2001:db8::2]:1000"); c == nil {
			t.Error("a closed connection still counts")
		}
		if c := accept("[2001:db8::2]:1000"); c != nil {
			t.Error("one closed twice counts twice")
		}
		for i := len(l.open); i < maxConns; i++ {
			if c := accept(net.IPv4(10, 0, byte(i>>8), byte(i)).String() + ":1"); c == nil {
				t.Fatalf("connection %d was not let in", i)
			}
		}
		if c := accept("10.9.9.9:1"); c != nil {
			t.Error("one above all was let in")
		}

		// Out of descriptors: a pause, no end and no spinning.
		if n := l.closeConns(); n != maxConns || len(l.open) != 0 || len(l.clients) != 0 {
			t.Errorf("%d closed, %d left of %d clients", n, len(l.open), len(l.clients))
		}
		f.results <- &net.OpError{Op: "accept", Err: os.NewSyscallError("accept", syscall.EMFILE)}
		f.results <- &fromAddr{addr: "10.0.0.1:1"}
		start := time.Now()
		if c, err := l.Accept(); err != nil || c == nil || time.Since(start) != acceptPause {
			t.Errorf("%v, %v after %v", c, err, time.Since(start))
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		if c := accept("10.0.0.2:1"); c != nil {
			t.Error("let in after closing")
		}
	})
}

// A client that does not take its answers is let go.
func TestWriteDeadline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		m, err := newMetrics(nil)
		if err != nil {
			t.Fatal(err)
		}
		c := newLimitListener(&fakeListener{make(chan any)}, slog.New(slog.DiscardHandler), m).admit(ours)
		start := time.Now()
		_, err = c.Write([]byte("answer"))
		if !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != tcpWrite {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		c.Close()
	})
}

type blockedWriter chan struct{}

func (b blockedWriter) Write(p []byte) (int, error) {
	<-b
	return len(p), nil
}

func TestUDPWritesAreBounded(t *testing.T) {
	t.Parallel()
	m, err := newMetrics(nil)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		blocked := make(blockedWriter)
		w := gatedWriter{blocked, newGate(2), m}
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				if _, err := w.Write([]byte("x")); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		if _, err := w.Write([]byte("x")); !errors.Is(err, errWritesFull) {
			t.Errorf("third write: %v", err)
		}
		close(blocked)
		wg.Wait()
		if _, err := w.Write([]byte("x")); err != nil {
			t.Errorf("after the others: %v", err)
		}
	})
}
