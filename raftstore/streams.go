package raftstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// Stream is the connections between the members of one epoch. Close ends Accept.
type Stream interface {
	net.Listener
	// DialContext connects to the member with a peer address.
	DialContext(ctx context.Context, addr raft.ServerAddress) (net.Conn, error)
}

// ErrSetBack says that this node's log is shorter than it once was: its disk was set
// back, and it must not vote under its server id any more.
var ErrSetBack = errors.New("this node was set back to an earlier state")

// streams gives the connections of a Stream to one run of raft after the other. Before
// raft gets a connection both ends say how far their logs are, and each compares that
// with the furthest that it has known of the other.
type streams struct {
	inner   Stream
	addr    net.Addr // of inner, kept: raft may ask for it when inner is closed
	id      string   // guarded by mu
	log     *slog.Logger
	timeout time.Duration
	reached *reached
	epoch   func() Epoch
	setBack func(error) // this node is told that it was set back
	refused func(id string, now, was LogEnd)

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	room   chan struct{} // as many as there are connections of which nothing is known yet

	mu      sync.Mutex
	current *session // nil between two runs
}

// maxGreeting bounds the connections of which nothing is known yet.
const maxGreeting = 64

func newStreams(inner Stream, id string, r *reached, timeout time.Duration, log *slog.Logger) *streams {
	s := &streams{inner: inner, addr: inner.Addr(), id: id, log: log, timeout: timeout, reached: r, room: make(chan struct{}, maxGreeting)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// serve takes connections until close.
func (s *streams) serve() {
	s.wg.Go(func() {
		for {
			c, err := s.inner.Accept()
			if err != nil {
				return
			}
			select {
			case s.room <- struct{}{}:
				s.wg.Go(func() {
					defer func() { <-s.room }()
					s.accept(c)
				})
			default:
				c.Close()
			}
		}
	})
}

func (s *streams) close() error {
	s.cancel()
	err := s.inner.Close()
	s.wg.Wait()
	return err
}

// begin returns the connections of a run of raft. end reads how far its log is.
func (s *streams) begin(id string, end func() (LogEnd, error)) *session {
	x := &session{streams: s, end: end, conns: make(chan net.Conn), live: map[*tracked]struct{}{}}
	x.ctx, x.cancel = context.WithCancel(s.ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.id, s.current = id, x
	return x
}

func (s *streams) now() (*session, string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current, s.id
}

// accept greets the other end and gives the connection to the run that there is.
func (s *streams) accept(c net.Conn) {
	x, id := s.now()
	if x == nil {
		c.Close()
		return
	}
	t, err := x.track(c)
	if err != nil {
		c.Close()
		return
	}
	if err := s.answer(t, id, x.end); err != nil {
		s.log.Debug("raft connection refused", "peer", c.RemoteAddr().String(), "err", err)
		t.Close()
		return
	}
	select {
	case x.conns <- t:
	case <-x.ctx.Done():
		t.Close()
	}
}

// session is the connections of one run of raft.
type session struct {
	*streams
	end    func() (LogEnd, error)
	conns  chan net.Conn
	ctx    context.Context
	cancel context.CancelFunc

	liveMu sync.Mutex
	live   map[*tracked]struct{}
}

// Accept returns the next connection that another node has opened.
func (x *session) Accept() (net.Conn, error) {
	select {
	case c := <-x.conns:
		return c, nil
	case <-x.ctx.Done():
		return nil, net.ErrClosed
	}
}

// Close ends the run's connections at once: one to a silent node would hold up the end
// of raft. The next run goes on with the same listener.
func (x *session) Close() error {
	x.mu.Lock()
	if x.current == x {
		x.current = nil
	}
	x.mu.Unlock()
	x.cancel()
	x.liveMu.Lock()
	defer x.liveMu.Unlock()
	for t := range x.live {
		t.Conn.Close()
	}
	clear(x.live)
	return nil
}

// Addr is where other nodes reach this one.
func (x *session) Addr() net.Addr { return x.addr }

// Dial connects to a member and greets it.
func (x *session) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(x.ctx, timeout)
	defer cancel()
	c, err := x.inner.DialContext(ctx, addr)
	if err != nil {
		return nil, err
	}
	t, err := x.track(c)
	if err != nil {
		c.Close()
		return nil, err
	}
	_, id := x.now()
	if err := x.greet(t, id, x.end); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

func (x *session) track(c net.Conn) (*tracked, error) {
	t := &tracked{Conn: c, x: x}
	x.liveMu.Lock()
	defer x.liveMu.Unlock()
	if x.ctx.Err() != nil {
		return nil, net.ErrClosed
	}
	x.live[t] = struct{}{}
	return t, nil
}

// tracked is a connection that ends with its session.
type tracked struct {
	net.Conn
	x *session
}

func (t *tracked) Close() error {
	t.x.liveMu.Lock()
	delete(t.x.live, t)
	t.x.liveMu.Unlock()
	return t.Conn.Close()
}

// greeting is what each end says of itself before raft speaks, as a line of JSON.
type greeting struct {
	ID    string  `json:"id,omitempty"`
	Epoch string  `json:"epoch,omitempty"`
	Log   *LogEnd `json:"log,omitempty"`
	Was   *LogEnd `json:"was,omitempty"` // how far the reader's log once was, if it shows less now
}

// from reads the greeting of a server of this epoch. A connection that was made in the
// epoch before may be taken up in this one.
func (s *streams) from(c net.Conn) (greeting, error) {
	g, err := hear(c)
	if err == nil && (g.ID == "" || g.Epoch != s.epoch().String()) {
		err = fmt.Errorf("server %q of epoch %q", g.ID, g.Epoch)
	}
	return g, err
}

// maxGreetingOctets bounds a line.
const maxGreetingOctets = 512

func say(c net.Conn, g greeting) error {
	b, err := json.Marshal(g)
	if err != nil {
		return err
	}
	_, err = c.Write(append(b, '\n'))
	return err
}

// hear reads a line and not an octet more: what follows is raft's.
func hear(c net.Conn) (g greeting, err error) {
	var line []byte
	for b := make([]byte, 1); ; {
		if _, err := c.Read(b); err != nil {
			return g, err
		}
		if b[0] == '\n' {
			return g, json.Unmarshal(line, &g)
		}
		if line = append(line, b[0]); len(line) > maxGreetingOctets {
			return g, fmt.Errorf("greeting of more than %d octets", maxGreetingOctets)
		}
	}
}

// greet speaks first, on a connection that this node has opened. Each end reads what it
// remembers of the other before it lets the other read its log: what the other
// acknowledges meanwhile, on another connection, is then no contradiction.
//
//	-> id, epoch     <- id, epoch, log     -> log, was?     <- was?
func (s *streams) greet(c net.Conn, id string, end func() (LogEnd, error)) error {
	c.SetDeadline(time.Now().Add(s.timeout))
	before := s.reached.all()
	if err := say(c, greeting{ID: id, Epoch: s.epoch().String()}); err != nil {
		return err
	}
	other, err := s.from(c)
	if err != nil {
		return err
	}
	if other.Log == nil {
		return errors.New("greeting without a log")
	}
	own, err := end()
	if err != nil {
		return err
	}
	was, back := s.compare(other.ID, *other.Log, before)
	if err := say(c, greeting{Log: &own, Was: was}); err != nil {
		return err
	}
	if last, err := hear(c); err != nil {
		return err
	} else if last.Was != nil {
		return s.told(other.ID, own, *last.Was)
	}
	if back != nil {
		return back
	}
	return c.SetDeadline(time.Time{})
}

// answer speaks second, on a connection that another node has opened.
func (s *streams) answer(c net.Conn, id string, end func() (LogEnd, error)) error {
	c.SetDeadline(time.Now().Add(s.timeout))
	other, err := s.from(c)
	if err != nil {
		return err
	}
	before := s.reached.all()
	own, err := end()
	if err != nil {
		return err
	}
	if err := say(c, greeting{ID: id, Epoch: s.epoch().String(), Log: &own}); err != nil {
		return err
	}
	second, err := hear(c)
	if err != nil {
		return err
	}
	if second.Log == nil {
		return errors.New("greeting without a log")
	}
	was, back := s.compare(other.ID, *second.Log, before)
	if err := say(c, greeting{Was: was}); err != nil {
		return err
	}
	if second.Was != nil {
		return s.told(other.ID, own, *second.Was)
	}
	if back != nil {
		return back
	}
	return c.SetDeadline(time.Time{})
}

// compare holds what another server shows against what was known of it.
func (s *streams) compare(id string, now LogEnd, before map[string]LogEnd) (was *LogEnd, err error) {
	if w := before[id]; now.behind(w) {
		s.refused(id, now, w)
		return &w, fmt.Errorf("server %s was set back: it is at %s and was at %s", id, now, w)
	}
	s.reached.note(id, now)
	return nil, nil
}

// told is called when another server remembers more of this node than there is.
func (s *streams) told(by string, now, was LogEnd) error {
	err := fmt.Errorf("%w: its log is at %s, and server %s has seen it at %s", ErrSetBack, now, by, was)
	s.setBack(err)
	return err
}
