package dnsplugin

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Limits of TCP. One resolver needs a connection or two; the rest is room for many
// of them behind one address.
const (
	maxConns          = 256
	maxConnsPerClient = 32 // IPv4 address or IPv6 /64
	maxQueriesPerConn = 128
	tcpFirstQuery     = 3 * time.Second // from accepting the connection to its first whole query
	tcpIdle           = 8 * time.Second // from an answer to the next whole query
	tcpWrite          = 3 * time.Second // for the client to take an answer
	acceptPause       = 100 * time.Millisecond
)

// limitListener accepts at most maxConns connections at a time. One that is over
// the limit is closed at once (RFC 7766 section 6.2.2).
type limitListener struct {
	net.Listener
	log     *slog.Logger
	metrics *metrics

	mu      sync.Mutex
	open    map[*limitedConn]netip.Prefix
	clients map[netip.Prefix]int
	closing chan struct{}
	closed  bool
}

func newLimitListener(l net.Listener, log *slog.Logger, m *metrics) *limitListener {
	return &limitListener{Listener: l, log: log, metrics: m, open: make(map[*limitedConn]netip.Prefix),
		clients: make(map[netip.Prefix]int), closing: make(chan struct{})}
}

// Accept waits for the next connection within the limits. If the process is out of
// descriptors it pauses, as its caller would try again without end.
func (l *limitListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		var t interface{ Temporary() bool }
		switch {
		case errors.As(err, &t) && t.Temporary():
			l.log.Warn("dns: accept failed", "listen", l.Addr().String(), "err", err)
			select {
			case <-l.closing:
			case <-time.After(acceptPause):
			}
		case err != nil:
			return nil, err
		default:
			if lc := l.admit(c); lc != nil {
				return lc, nil
			}
			l.metrics.dropped.WithLabelValues("connections").Inc()
			c.Close()
		}
	}
}

func (l *limitListener) admit(c net.Conn) *limitedConn {
	client := clientOf(c.RemoteAddr())
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || len(l.open) >= maxConns || l.clients[client] >= maxConnsPerClient {
		return nil
	}
	lc := &limitedConn{Conn: c, from: l}
	l.open[lc] = client
	l.clients[client]++
	return lc
}

func (l *limitListener) release(c *limitedConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	client, ok := l.open[c]
	if !ok {
		return
	}
	delete(l.open, c)
	if l.clients[client]--; l.clients[client] == 0 {
		delete(l.clients, client)
	}
}

// Close stops accepting. Connections stay open.
func (l *limitListener) Close() error {
	l.mu.Lock()
	if !l.closed {
		l.closed = true
		close(l.closing)
	}
	l.mu.Unlock()
	return l.Listener.Close()
}

// closeConns closes the connections and returns how many there were.
func (l *limitListener) closeConns() int {
	l.mu.Lock()
	conns := make([]*limitedConn, 0, len(l.open))
	for c := range l.open {
		conns = append(conns, c)
	}
	l.mu.Unlock()
	for _, c := range conns {
		c.Close()
	}
	return len(conns)
}

func clientOf(a net.Addr) netip.Prefix {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Prefix{} // all strange ones count together
	}
	addr, bits := ap.Addr().Unmap().WithZone(""), 64
	if addr.Is4() {
		bits = 32
	}
	return netip.PrefixFrom(addr, bits).Masked()
}

// limitedConn counts against its listener until it is closed. The DNS library sets
// deadlines for reads only; a client that takes no answers must not hold a
// connection, so that writes get theirs here.
type limitedConn struct {
	net.Conn
	from *limitListener
}

func (c *limitedConn) Write(p []byte) (int, error) {
	if err := c.Conn.SetWriteDeadline(time.Now().Add(tcpWrite)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

func (c *limitedConn) Close() error {
	c.from.release(c)
	return c.Conn.Close()
}
