package lineproto

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"time"
)

// Limits bounds the connections held at one time. Zero fields mean no such bound.
type Limits struct {
	Total      int
	PerAddress int
	PerNetwork int // per IPv4 /24 and IPv6 /48
	// Large says that an address belongs to a sender that is known to be large: it and its
	// network may hold four times as many connections. Nil: none does.
	Large func(netip.Addr) bool
}

// largeFactor is how much more a large sender may hold.
const largeFactor = 4

// counter counts open connections against Limits.
type counter struct {
	limits Limits

	mu    sync.Mutex
	total int
	open  map[netip.Prefix]int
	// strangers are the connections whose place may be given to another, leaving is how
	// many did so and have not ended yet.
	strangers map[*seat]*Conn
	leaving   int
}

func newCounter(limits Limits) *counter {
	return &counter{limits: limits, open: make(map[netip.Prefix]int), strangers: make(map[*seat]*Conn)}
}

func remote(c net.Conn) netip.Addr {
	ap, _ := netip.ParseAddrPort(c.RemoteAddr().String())
	return ap.Addr().Unmap()
}

// prefixes gives what a connection from a is counted under besides the total.
func prefixes(a netip.Addr) (address, network netip.Prefix) {
	bits := 48
	if a.Is4() {
		bits = 24
	}
	network, _ = a.Prefix(bits)
	return netip.PrefixFrom(a, a.BitLen()), network
}

// acquire counts a connection in, or names the limit that forbids it. If that would be
// the total, a stranger that waits has to make room for it.
func (n *counter) acquire(a netip.Addr) (s *seat, refused string) {
	address, network := prefixes(a)
	n.mu.Lock()
	defer n.mu.Unlock()
	over := func(have, limit int) bool { return limit > 0 && have >= limit }
	factor := 1
	if n.limits.Large != nil && n.limits.Large(a) {
		factor = largeFactor
	}
	switch {
	case over(n.open[address], factor*n.limits.PerAddress):
		return nil, "connections from one address"
	case over(n.open[network], factor*n.limits.PerNetwork):
		return nil, "connections from one network"
	case over(n.total, n.limits.Total) && !n.makeRoom():
		return nil, "connections in total"
	}
	n.total++
	n.open[address]++
	if network != address {
		n.open[network]++
	}
	return &seat{counter: n, address: address, network: network}, ""
}

// release counts a connection out.
func (s *seat) release() {
	n := s.counter
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.strangers, s)
	if s.given {
		n.leaving--
	} else {
		n.total--
	}
	for _, p := range []netip.Prefix{s.address, s.network} {
		if n.open[p]--; n.open[p] <= 0 {
			delete(n.open, p)
		}
		if s.network == s.address {
			break
		}
	}
}

// Handler serves connections. Both methods must return once the connection fails;
// the loop closes it after they do.
type Handler interface {
	// Handle serves one connection. ctx ends when the server begins to stop.
	Handle(ctx context.Context, c net.Conn)
	// Refuse tells a peer over a limit to come back later. It must not wait for
	// the peer; the loop gives its writes a second.
	Refuse(c net.Conn)
}

// Server runs a Handler on listeners.
type Server struct {
	Handler Handler
	Limits  Limits
	Log     *slog.Logger
}

// Serve accepts connections on ls, which count against the limits together, until
// ctx ends; then it closes ls and returns when every connection has ended. The
// error is that of a listener that failed by itself.
func (s *Server) Serve(ctx context.Context, ls ...net.Listener) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	count := newCounter(s.Limits)
	var wg sync.WaitGroup
	for _, l := range ls {
		wg.Go(func() {
			if err := s.accept(ctx, l, count, &wg); err != nil {
				cancel(err)
			}
		})
	}
	<-ctx.Done()
	for _, l := range ls {
		l.Close()
	}
	wg.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

func (s *Server) accept(ctx context.Context, l net.Listener, count *counter, wg *sync.WaitGroup) error {
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			var t interface{ Temporary() bool } // out of descriptors: wait for some
			if errors.As(err, &t) && t.Temporary() {
				s.Log.Warn("accept failed", "listen", l.Addr(), "err", err)
				select {
				case <-ctx.Done():
					return nil
				case <-time.After(100 * time.Millisecond):
				}
				continue
			}
			return err
		}
		seat, refused := count.acquire(remote(c))
		if refused != "" {
			s.Log.Warn("connection refused", "peer", c.RemoteAddr().String(), "limit", refused)
			c.SetDeadline(time.Now().Add(time.Second))
			// The greeting fits the empty send buffer, so this does not wait.
			s.Handler.Refuse(c)
			c.Close()
			continue
		}
		wg.Go(func() {
			defer seat.release()
			defer c.Close()
			s.handle(context.WithValue(ctx, seatKey{}, seat), c)
		})
	}
}

// handle serves one connection. A defect that a stranger can reach must not end
// the connections of all others with the process.
func (s *Server) handle(ctx context.Context, c net.Conn) {
	defer func() {
		if p := recover(); p != nil {
			s.Log.Error("connection ended by a defect of this program", "peer", c.RemoteAddr().String(), "panic", p, "stack", string(debug.Stack()))
		}
	}()
	s.Handler.Handle(ctx, c)
}
