// Package peer carries everything that nodes say to each other: mutual TLS on one
// port, one ALPN name per protocol.
//
// It promises: but for joining, a connection is given to a protocol only when both
// ends are members of the same cluster and, where the protocol's name carries the
// epoch, of the same epoch. A node of another lineage gets no connection at all.
package peer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"msgw/internal/ca"
	"msgw/internal/lineproto"
)

// Protocol is a conversation between nodes.
type Protocol struct {
	name  string
	epoch bool // both ends must be of one epoch
}

var (
	Raft   = Protocol{"msgw-raft/1", true}
	RPC    = Protocol{"msgw-rpc/1", true}
	Copies = Protocol{"msgw-copies/1", true}
	// Status is open to former members too: a node that was away learns here what
	// became of it. Who asks is in the connection.
	Status = Protocol{"msgw-status/1", false}
	Join   = Protocol{"msgw-join/1", false} // no client certificate: an invitation is shown instead
)

func (p Protocol) alpn(epoch string) string {
	if p.epoch {
		return p.name + "/" + epoch
	}
	return p.name
}

// Membership is what a node knows of its cluster. It may change at any time.
type Membership interface {
	Root() *x509.Certificate       // of the cluster's CA
	Epoch() string                 // of this node
	Certificate() *tls.Certificate // this node's peer certificate
	Member(id string) bool         // whether a server id belongs to the cluster
	// Resolve returns the name and the peer address of a member.
	Resolve(id string) (name, addr string, err error)
}

const (
	handshakeTime = 10 * time.Second
	// What anyone can take without a certificate: so many connections at a time, each
	// for so long.
	maxJoining = 16
	joinTime   = time.Minute
)

// Server accepts peer connections on one port.
type Server struct {
	m   Membership
	log *slog.Logger
	now func() time.Time
	// joinTime is how long a connection of a node that joins may last.
	joinTime time.Duration
	joining  chan struct{} // as many as there are such connections
	live     live

	mu     sync.Mutex
	queues map[string]*queue // by protocol name
	addr   net.Addr
}

// NewServer returns a server that serves no protocol yet. addr is what Listeners
// report as their address: where other nodes reach this one.
func NewServer(m Membership, addr string, log *slog.Logger) *Server {
	return &Server{m: m, log: log, now: time.Now, joinTime: joinTime, joining: make(chan struct{}, maxJoining),
		queues: map[string]*queue{}, addr: address(addr)}
}

type address string

func (address) Network() string  { return "tcp" }
func (a address) String() string { return string(a) }

// Listener returns the connections of a protocol. Call it once for each, before
// Serve.
func (s *Server) Listener(p Protocol) net.Listener {
	q := &queue{conns: make(chan net.Conn), closed: make(chan struct{}), addr: s.addr}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queues[p.name] = q
	return q
}

// Serve accepts on l until ctx ends.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ls := lineproto.Server{Handler: s, Limits: lineproto.Limits{Total: 512, PerAddress: 128}, Log: s.log}
	return ls.Serve(ctx, l)
}

// Refuse drops a connection beyond the limits.
func (s *Server) Refuse(net.Conn) {}

// Handle does the handshake and hands the connection to its protocol; it returns
// when the protocol has closed it.
func (s *Server) Handle(ctx context.Context, c net.Conn) {
	tc := tls.Server(c, &tls.Config{GetConfigForClient: s.config, MinVersion: tls.VersionTLS13})
	hctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	if err := tc.HandshakeContext(hctx); err != nil {
		s.log.Debug("peer handshake failed", "peer", c.RemoteAddr().String(), "err", err)
		return
	}
	alpn := tc.ConnectionState().NegotiatedProtocol
	done := make(chan struct{})
	x := &conn{Conn: tc, alpn: alpn, done: done, live: &s.live}
	if chain := tc.ConnectionState().PeerCertificates; len(chain) > 0 {
		id, err := ca.IdentityOf(chain[0])
		if err != nil {
			return
		}
		x.id = id.ID
		s.live.add(x)
		defer s.live.drop(x)
	}
	q := s.queue(alpn) // it may be of an epoch that has just ended
	if q == nil {
		return
	}
	if alpn == Join.alpn("") {
		select {
		case s.joining <- struct{}{}:
			defer func() { <-s.joining }()
		default:
			s.log.Warn("connection refused", "peer", c.RemoteAddr().String(), "limit", "nodes that join")
			return
		}
		var cancel func()
		ctx, cancel = context.WithTimeout(ctx, s.joinTime)
		defer cancel()
	}
	select {
	case q.conns <- x:
	case <-q.closed:
		return
	case <-ctx.Done():
		return
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// queue returns the queue of the protocol that is named so in this epoch, or nil.
func (s *Server) queue(alpn string) *queue {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range []Protocol{Raft, RPC, Copies, Status, Join} {
		if p.alpn(s.m.Epoch()) == alpn {
			return s.queues[p.name]
		}
	}
	return nil
}

// Prune ends the connections of an epoch that is over and of who is no member any more.
// It is called when the membership has changed.
func (s *Server) Prune() { s.live.prune(s.m) }

// live are the connections of members.
type live struct {
	mu    sync.Mutex
	conns map[*conn]struct{}
}

func (l *live) add(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conns == nil {
		l.conns = map[*conn]struct{}{}
	}
	l.conns[c] = struct{}{}
}

func (l *live) drop(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, c)
}

func (l *live) prune(m Membership) {
	epoch := m.Epoch()
	var over []*conn
	l.mu.Lock()
	for c := range l.conns {
		for _, p := range []Protocol{Raft, RPC, Copies} {
			if strings.HasPrefix(c.alpn, p.name+"/") && (c.alpn != p.alpn(epoch) || !m.Member(c.id)) {
				over = append(over, c)
			}
		}
	}
	l.mu.Unlock()
	for _, c := range over {
		c.Close()
	}
}

// config answers a ClientHello: which protocols there are, and whether the client
// must show who it is.
func (s *Server) config(h *tls.ClientHelloInfo) (*tls.Config, error) {
	joining := len(h.SupportedProtos) == 1 && h.SupportedProtos[0] == Join.alpn("")
	c := &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return s.m.Certificate(), nil
		},
		SessionTicketsDisabled: true,
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range []Protocol{Raft, RPC, Copies, Status, Join} {
		if s.queues[p.name] != nil && (p == Join) == joining {
			c.NextProtos = append(c.NextProtos, p.alpn(s.m.Epoch()))
		}
	}
	if !joining {
		c.ClientAuth = tls.RequireAnyClientCert
		c.VerifyConnection = func(st tls.ConnectionState) error {
			if st.NegotiatedProtocol == "" {
				return errors.New("no protocol agreed")
			}
			if st.NegotiatedProtocol == Status.alpn("") {
				_, err := ca.VerifyPeer(s.m.Root(), st.PeerCertificates, s.now())
				return err
			}
			_, err := verify(s.m, st.PeerCertificates, s.now())
			return err
		}
	}
	return c, nil
}

// verify returns who the other end is, if it is a member.
func verify(m Membership, chain []*x509.Certificate, now time.Time) (ca.Identity, error) {
	id, err := ca.VerifyPeer(m.Root(), chain, now)
	if err != nil {
		return id, err
	}
	if !m.Member(id.ID) {
		return id, fmt.Errorf("%s (%s) is not a member of this cluster", id.Node, id.ID)
	}
	return id, nil
}

// conn tells Handle when the protocol is done with it.
type conn struct {
	*tls.Conn
	alpn string
	id   string // server id of the other end
	live *live
	once sync.Once
	done chan struct{}
	lost *atomic.Pointer[func(id string)] // see Dialer.SetLost; nil: accepted, not made
	gone sync.Once
}

// Read reads, and tells of an end that came from the other side.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err == nil || c.lost == nil || c.lost.Load() == nil {
		return n, err
	}
	select {
	case <-c.done:
	default:
		if ne := net.Error(nil); !errors.Is(err, net.ErrClosed) && (!errors.As(err, &ne) || !ne.Timeout()) {
			c.gone.Do(func() { (*c.lost.Load())(c.id) })
		}
	}
	return n, err
}

func (c *conn) Close() error {
	defer c.once.Do(func() {
		c.live.drop(c)
		close(c.done)
	})
	return c.Conn.Close()
}

// queue is the net.Listener of one protocol.
type queue struct {
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
	addr   net.Addr
}

func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.closed:
		return nil, net.ErrClosed
	}
}

func (q *queue) Close() error   { q.once.Do(func() { close(q.closed) }); return nil }
func (q *queue) Addr() net.Addr { return q.addr }
