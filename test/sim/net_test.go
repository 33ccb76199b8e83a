package sim

import (
	"cmp"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// network joins hosts by connections that keep the order of what is sent, as TCP does,
// and nothing else: what is sent arrives late, or never, or the connection breaks after
// any octet. Each direction can be cut by itself.
type network struct {
	mu        sync.Mutex
	rng       *rand.Rand
	cuts      map[[2]string]cut // from one host to another
	slow      time.Duration     // greatest delay
	listeners map[string]*listener
	conns     map[*wire]bool
}

// cut is what happens to what one host sends to another.
type cut int

const (
	whole   cut = iota
	dropped     // it vanishes
	refused     // it is answered: connections break and are refused
)

func newNetwork(rng *rand.Rand) *network {
	return &network{rng: rng, cuts: map[[2]string]cut{}, slow: 2 * time.Millisecond, listeners: map[string]*listener{}, conns: map[*wire]bool{}}
}

func (n *network) delay() time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	return time.Duration(n.rng.Int64N(int64(n.slow))) + time.Microsecond
}

func (n *network) how(from, to string) cut {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cuts[[2]string{from, to}]
}

// set cuts a direction, or mends it. What a refusal breaks is broken for good.
func (n *network) set(from, to string, c cut) {
	n.mu.Lock()
	n.cuts[[2]string{from, to}] = c
	n.mu.Unlock()
	if c == refused {
		n.breakAll(func(w *wire) bool { return w.from == from && w.to == to || w.from == to && w.to == from })
	}
}

func (n *network) breakAll(which func(*wire) bool) {
	n.mu.Lock()
	var broken []*wire
	for w := range n.conns {
		if which(w) {
			broken = append(broken, w)
		}
	}
	n.mu.Unlock()
	for _, w := range broken {
		w.fail(syscall.ECONNRESET)
	}
}

// passes waits as long as a packet and its answer take, and says whether both arrived.
func (n *network) passes(ctx context.Context, from, to string) error {
	a, b := n.how(from, to), n.how(to, from)
	if a == refused || b == refused {
		return syscall.ECONNREFUSED
	}
	if a == dropped || b == dropped {
		<-ctx.Done()
		return ctx.Err()
	}
	select {
	case <-time.After(n.delay() + n.delay()):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// listener takes the connections to one host.
type listener struct {
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func (n *network) listen(host string) *listener {
	l := &listener{conns: make(chan net.Conn), closed: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.listeners[host] = l
	return l
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}
func (l *listener) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *listener) Addr() net.Addr { return &net.TCPAddr{} }

// dial connects one host to another. Nobody listening is a refusal; so the machine runs,
// or its router answers.
func (n *network) dial(ctx context.Context, from, to string) (net.Conn, error) {
	if err := n.passes(ctx, from, to); err != nil {
		return nil, err
	}
	n.mu.Lock()
	l := n.listeners[to]
	n.mu.Unlock()
	if l == nil {
		return nil, syscall.ECONNREFUSED
	}
	there, back := newWire(n, from, to), newWire(n, to, from)
	ours, theirs := &conn{in: back, out: there}, &conn{in: there, out: back}
	select {
	case l.conns <- theirs:
		return ours, nil
	case <-l.closed:
		there.fail(syscall.ECONNREFUSED)
		back.fail(syscall.ECONNREFUSED)
		return nil, syscall.ECONNREFUSED
	case <-ctx.Done():
		there.fail(ctx.Err())
		back.fail(ctx.Err())
		return nil, ctx.Err()
	}
}

// window is how much may be under way in one direction.
const window = 1 << 20

// wire is one direction of a connection.
type wire struct {
	n        *network
	from, to string

	mu     sync.Mutex
	queue  []packet
	size   int
	last   time.Time // when the last packet arrives
	closed bool      // by the sender
	gone   bool      // an end died without a word: nothing arrives any more
	err    error     // broken
	// readErr is for the reader only: it has closed its end, and the other does not know.
	readErr error
	change  chan struct{}
}

// packet is octets under way, or the end of what is sent.
type packet struct {
	at     time.Time // when it arrives; zero: it was lost on the way
	octets []byte
	end    bool
}

func newWire(n *network, from, to string) *wire {
	w := &wire{n: n, from: from, to: to, change: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.conns[w] = true
	return w
}

// wake tells who waits that something changed; w.mu is held.
func (w *wire) wake() {
	close(w.change)
	w.change = make(chan struct{})
}

func (w *wire) fail(err error) {
	w.mu.Lock()
	if w.err == nil {
		w.err = err
		w.wake()
	}
	w.mu.Unlock()
	w.n.mu.Lock()
	defer w.n.mu.Unlock()
	delete(w.n.conns, w)
}

// send puts octets under way. What is cut vanishes, and with it everything behind it.
func (w *wire) send(p []byte, end bool) (int, error) {
	d := w.n.delay()
	lost := w.n.how(w.from, w.to) != whole
	w.mu.Lock()
	defer w.mu.Unlock()
	lost = lost || w.gone
	if w.err != nil {
		return 0, w.err
	}
	at := time.Now().Add(d)
	if at.Before(w.last) {
		at = w.last // in order
	}
	w.last = at
	w.size += len(p)
	if lost {
		at = time.Time{} // never; it holds up what follows, as a missing segment does
	}
	w.queue = append(w.queue, packet{at, append([]byte(nil), p...), end})
	w.wake()
	return len(p), nil
}

// conn is one end of a connection.
type conn struct {
	in, out *wire

	mu          sync.Mutex
	read, write time.Time
}

func (c *conn) deadline(of *time.Time) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return *of
}

// wait waits for a change until the earlier of two times, where zero means never.
func wait(change <-chan struct{}, until, deadline time.Time) error {
	next := until
	if next.IsZero() || !deadline.IsZero() && deadline.Before(next) {
		next = deadline
	}
	if next.IsZero() {
		<-change
		return nil
	}
	t := time.NewTimer(time.Until(next))
	defer t.Stop()
	select {
	case <-change:
	case <-t.C:
		if next.Equal(deadline) {
			return os.ErrDeadlineExceeded
		}
	}
	return nil
}

func (c *conn) Read(p []byte) (int, error) {
	w := c.in
	for {
		w.mu.Lock()
		if err := cmp.Or(w.err, w.readErr); err != nil {
			w.mu.Unlock()
			return 0, err
		}
		// A lost packet is sent again by the sender's machine once the network is whole.
		if len(w.queue) > 0 && w.queue[0].at.IsZero() && !w.gone && w.n.how(w.from, w.to) == whole {
			w.queue[0].at = time.Now().Add(200 * time.Millisecond)
		}
		var until time.Time
		if len(w.queue) > 0 && !w.queue[0].at.IsZero() {
			if until = w.queue[0].at; w.gone {
				until = time.Time{}
			} else if !until.After(time.Now()) {
				if w.queue[0].end {
					w.mu.Unlock()
					return 0, io.EOF
				}
				n := copy(p, w.queue[0].octets)
				if w.queue[0].octets = w.queue[0].octets[n:]; len(w.queue[0].octets) == 0 {
					w.queue = w.queue[1:]
				}
				w.size -= n
				w.wake()
				w.mu.Unlock()
				return n, nil
			}
		} else if len(w.queue) > 0 && !w.gone {
			until = time.Now().Add(time.Second) // look again
		}
		change := w.change
		w.mu.Unlock()
		if err := wait(change, until, c.deadline(&c.read)); err != nil {
			return 0, err
		}
	}
}

func (c *conn) Write(p []byte) (int, error) {
	for {
		c.out.mu.Lock()
		full, change, err := c.out.size >= window, c.out.change, c.out.err
		c.out.mu.Unlock()
		switch {
		case err != nil:
			return 0, err
		case !full:
			return c.out.send(p, false)
		}
		if err := wait(change, time.Time{}, c.deadline(&c.write)); err != nil {
			return 0, err
		}
	}
}

// Close ends the connection: the other end reads what is under way, then its end.
func (c *conn) Close() error {
	c.out.mu.Lock()
	closed := c.out.closed
	c.out.closed = true
	c.out.mu.Unlock()
	if !closed {
		_, _ = c.out.send(nil, true) // fails if it is broken, which is an end as well
	}
	c.in.mu.Lock()
	gone := c.in.gone
	c.in.mu.Unlock()
	if gone {
		c.in.end(net.ErrClosed)
	} else {
		c.in.fail(net.ErrClosed)
	}
	return nil
}

// end lets the reader of w end; its sender goes on sending to nobody.
func (w *wire) end(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.readErr = err
	w.wake()
}

// vanish lets a host die without a word: what it sends and what is sent to it is lost,
// until forget.
func (n *network) vanish(host string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for w := range n.conns {
		if w.from == host || w.to == host {
			w.mu.Lock()
			w.gone = true
			w.mu.Unlock()
		}
	}
}

// forget lets a host that is back refuse the connections of before.
func (n *network) forget(host string) {
	n.breakAll(func(w *wire) bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.gone && (w.from == host || w.to == host)
	})
}

func (c *conn) SetDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.read, c.write = t, t
	return nil
}

func (c *conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.read = t
	return nil
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.write = t
	return nil
}

func (c *conn) LocalAddr() net.Addr  { return &net.TCPAddr{} }
func (c *conn) RemoteAddr() net.Addr { return &net.TCPAddr{} }
