package dnsplugin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"
)

// portTries is how often a free port is looked for that both protocols can have.
const portTries = 32

// maxUDPWrites bounds the UDP answers being written on one socket. A write that
// finds the socket buffer full waits, and the Go runtime gives up the whole process
// at 2^20 waiters on one socket. It is above DefaultMaxInFlight since the rejections
// that CoreDNS writes by itself pass here too.
const maxUDPWrites = 2 * DefaultMaxInFlight

// Server runs a Handler on CoreDNS, for UDP and TCP. It uses CoreDNS as a library:
// no Corefile, and nothing that is global to the process is set or relied on.
// CoreDNS itself writes to Go's global log only when it catches a panic, and the
// Handler catches those that could reach it.
type Server struct {
	handler   *Handler
	addresses []string

	mu      sync.Mutex
	bound   []*endpoint
	serving bool
}

// endpoint is one address with both its sockets.
type endpoint struct {
	core *dnsserver.Server
	tcp  *limitListener
	udp  net.PacketConn
}

// NewServer makes a server for addresses of the form "host:port". Port 0 is any port
// that is free for both protocols.
func NewServer(h *Handler, addresses ...string) *Server {
	return &Server{handler: h, addresses: addresses}
}

// Listen binds all addresses, or none and returns an error, which wraps
// syscall.EADDRINUSE if another socket has one of them. Queries wait in the sockets
// until Serve.
func (s *Server) Listen(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bound != nil {
		return errors.New("dns: listening already")
	}
	if len(s.addresses) == 0 {
		return errors.New("dns: no address to listen on")
	}
	var bound []*endpoint
	for _, a := range s.addresses {
		e, err := s.bind(ctx, a)
		if err != nil {
			for _, e := range bound {
				err = errors.Join(err, e.close())
			}
			return fmt.Errorf("dns: listen on %s: %w", a, err)
		}
		bound = append(bound, e)
	}
	s.bound = bound
	return nil
}

func (s *Server) bind(ctx context.Context, address string) (*endpoint, error) {
	tcp, udp, err := bindBoth(ctx, address)
	if err != nil {
		return nil, err
	}
	maxQueries := maxQueriesPerConn
	writes := newGate(maxUDPWrites)
	cfg := &dnsserver.Config{
		// Every name comes to the handler: it knows the zone, which may not be
		// there yet, and refuses the others itself.
		Zone:          ".",
		Transport:     "dns",
		ReadTimeout:   tcpFirstQuery,
		IdleTimeout:   tcpIdle,
		MaxTCPQueries: &maxQueries,
		UDPDecorateWriterFunc: func(*dnsserver.Server) dns.DecorateWriter {
			return func(w dns.Writer) dns.Writer { return gatedWriter{w, writes, s.handler.metrics} }
		},
	}
	cfg.AddPlugin(func(plugin.Handler) plugin.Handler { return s.handler })
	core, err := dnsserver.NewServer("dns://"+tcp.Addr().String(), []*dnsserver.Config{cfg})
	if err != nil {
		return nil, errors.Join(err, tcp.Close(), udp.Close())
	}
	return &endpoint{core: core, tcp: newLimitListener(tcp, s.handler.log, s.handler.metrics), udp: udp}, nil
}

// bindBoth binds one port for both protocols. The sockets are our own, since those
// that CoreDNS would open have SO_REUSEPORT: another server on the port would not be
// noticed, and each would get part of the queries. Without that option the kernel
// refuses a second socket on the port, here and later, whichever comes second; there
// is no moment between checking and binding.
func bindBoth(ctx context.Context, address string) (net.Listener, net.PacketConn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, nil, err
	}
	var lc net.ListenConfig
	for try := 1; ; try++ {
		tcp, err := lc.Listen(ctx, "tcp", address)
		if err != nil {
			return nil, nil, err
		}
		given := strconv.Itoa(tcp.Addr().(*net.TCPAddr).Port)
		udp, err := lc.ListenPacket(ctx, "udp", net.JoinHostPort(host, given))
		if err == nil {
			return tcp, udp, nil
		}
		err = errors.Join(err, tcp.Close())
		if given == port || try == portTries || !errors.Is(err, syscall.EADDRINUSE) {
			return nil, nil, err
		}
	}
}

// Addr tells the bound addresses in the order given; nil before Listen.
func (s *Server) Addr() []netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	var addrs []netip.AddrPort
	for _, e := range s.bound {
		addrs = append(addrs, e.tcp.Addr().(*net.TCPAddr).AddrPort())
	}
	return addrs
}

// Serve answers until ctx ends, then finishes what is under way, for at most a few
// seconds, closes the sockets and returns nil. The sockets are closed in any case,
// also if ctx has ended before. The error is that of a socket that failed by itself.
func (s *Server) Serve(ctx context.Context) error {
	s.mu.Lock()
	bound, again := s.bound, s.serving
	s.serving = len(bound) > 0
	s.mu.Unlock()
	if len(bound) == 0 || again {
		return errors.New("dns: Serve needs one Listen before")
	}

	running, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var wg sync.WaitGroup
	for _, e := range bound {
		run := func(protocol string, serve func() error) {
			wg.Go(func() {
				fail(fmt.Errorf("dns: %s on %s ended: %w", protocol, e.tcp.Addr(), errOr(serve(), net.ErrClosed)))
			})
		}
		run("tcp", func() error { return e.core.Serve(e.tcp) })
		run("udp", func() error { return e.core.ServePacket(e.udp) })
	}
	<-running.Done()

	var stopping sync.WaitGroup
	for _, e := range bound {
		stopping.Go(func() { s.stop(e) })
	}
	stopping.Wait()
	wg.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return context.Cause(running)
}

// stop ends one endpoint. CoreDNS does not stop what it has not quite started yet,
// and waits for its clients; closing the sockets and connections ends both.
func (s *Server) stop(e *endpoint) {
	if err := e.core.Stop(); err != nil {
		s.handler.log.Warn("dns: clients did not finish in time", "listen", e.tcp.Addr().String(), "err", err)
	}
	if err := e.close(); err != nil {
		s.handler.log.Debug("dns: closing", "listen", e.tcp.Addr().String(), "err", err)
	}
	if n := e.tcp.closeConns(); n > 0 {
		s.handler.log.Debug("dns: connections closed", "listen", e.tcp.Addr().String(), "count", n)
	}
}

// close closes the sockets. That CoreDNS has done so already is no error.
func (e *endpoint) close() error {
	var errs []error
	for _, err := range []error{e.tcp.Close(), e.udp.Close()} {
		if !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func errOr(err, otherwise error) error {
	if err != nil {
		return err
	}
	return otherwise
}

// gatedWriter drops an answer rather than to wait behind too many others.
type gatedWriter struct {
	dns.Writer
	writes  gate
	metrics *metrics
}

func (w gatedWriter) Write(p []byte) (int, error) {
	if !w.writes.enter() {
		w.metrics.dropped.WithLabelValues("writes").Inc()
		return 0, errWritesFull
	}
	defer w.writes.leave()
	return w.Writer.Write(p)
}

var errWritesFull = errors.New("too many answers are being written")
