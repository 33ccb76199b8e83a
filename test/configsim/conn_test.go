package configsim

import (
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// wire is one direction of a connection.
type wire struct {
	n        *network
	from, to *endpoint
	wake     chan struct{} // room for one
	timer    *time.Timer   // the reader's

	mu       sync.Mutex
	queue    []packet
	last     time.Time // when the last packet arrives
	gone     bool      // its sender died without a word: nothing arrives any more
	deaf     bool      // its reader did: what is sent is lost
	err      error     // broken
	deadline time.Time // of the reader
}

// packet is octets under way, or the end of what is sent.
type packet struct {
	at     time.Time // when it arrives
	lost   bool      // on the way: it is sent again once the network is whole
	octets []byte
	end    bool
}

func (n *network) newWire(from, to *endpoint) *wire {
	w := &wire{n: n, from: from, to: to, wake: make(chan struct{}, 1)}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.wires[w] = true
	if from.ended || to.ended {
		w.err = net.ErrClosed
	}
	return w
}

// poke lets the reader look again.
func (w *wire) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *wire) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
	w.poke()
}

// deafen ends what is read, because the reader has died without a word.
func (w *wire) deafen() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.deaf = true
	w.poke()
}

// finish ends what is sent, because its sender has died.
func (w *wire) finish(silent, arrives bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.queue {
		if !arrives || w.queue[i].lost {
			w.queue = w.queue[:i]
			break
		}
	}
	if w.gone = silent; !silent {
		w.queue = append(w.queue, packet{at: w.last, end: true})
	}
	w.poke()
}

// send puts octets under way.
func (w *wire) send(p []byte, end bool) (int, error) {
	w.n.mu.Lock()
	d, lost, ended := w.n.delay(), w.n.cuts[[2]string{w.from.machine, w.to.machine}] != whole, w.from.ended
	if !ended {
		w.n.sent(w.from.machine, len(p))
	}
	w.n.mu.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return 0, w.err
	}
	if ended || w.gone {
		return 0, net.ErrClosed
	}
	if w.deaf {
		return len(p), nil
	}
	at := time.Now().Add(d)
	if at.Before(w.last) {
		at = w.last // in order
	}
	w.last = at
	w.queue = append(w.queue, packet{at, lost, append([]byte(nil), p...), end})
	w.poke()
	return len(p), nil
}

// receive takes octets that have arrived, or says how long to wait for them.
func (w *wire) receive(p []byte) (int, time.Time, error) {
	whole := w.n.how(w.from.machine, w.to.machine) == whole
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return 0, time.Time{}, w.err
	}
	if w.deaf {
		return 0, time.Time{}, net.ErrClosed
	}
	now := time.Now()
	if !w.deadline.IsZero() && !w.deadline.After(now) {
		return 0, time.Time{}, os.ErrDeadlineExceeded
	}
	until := w.deadline
	if len(w.queue) > 0 {
		first := &w.queue[0]
		if first.lost && whole {
			first.at, first.lost = now.Add(again), false
		}
		switch {
		case first.lost:
		case first.at.After(now):
			if until.IsZero() || first.at.Before(until) {
				until = first.at
			}
		case first.end:
			return 0, time.Time{}, io.EOF
		default:
			n := copy(p, first.octets)
			if first.octets = first.octets[n:]; len(first.octets) == 0 {
				w.queue = w.queue[1:]
			}
			return n, time.Time{}, nil
		}
	}
	return 0, until, nil
}

func (w *wire) setDeadline(t time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.deadline = t
	w.poke()
}

// conn is one end of a connection.
type conn struct{ in, out *wire }

func (c *conn) Read(p []byte) (int, error) {
	w := c.in
	for {
		n, until, err := w.receive(p)
		if n > 0 || err != nil {
			w.n.mu.Lock()
			w.n.arrived(w.to.machine, n)
			w.n.mu.Unlock()
			return n, err
		}
		if until.IsZero() {
			<-w.wake
			continue
		}
		if w.timer == nil {
			w.timer = time.NewTimer(time.Until(until))
		} else {
			w.timer.Reset(time.Until(until))
		}
		select {
		case <-w.wake:
		case <-w.timer.C:
		}
	}
}

func (c *conn) Write(p []byte) (int, error) { return c.out.send(p, false) }

// Close ends the connection: the other end reads what is under way, then its end.
func (c *conn) Close() error {
	_, _ = c.out.send(nil, true) // fails if it is broken, which is an end as well
	c.in.fail(net.ErrClosed)
	c.in.n.mu.Lock()
	defer c.in.n.mu.Unlock()
	delete(c.in.n.wires, c.in)
	return nil
}

func (c *conn) SetDeadline(t time.Time) error     { return c.SetReadDeadline(t) }
func (c *conn) SetReadDeadline(t time.Time) error { c.in.setDeadline(t); return nil }

// SetWriteDeadline does nothing: a write does not wait.
func (c *conn) SetWriteDeadline(time.Time) error { return nil }

func (c *conn) LocalAddr() net.Addr  { return address(c.out.from.machine) }
func (c *conn) RemoteAddr() net.Addr { return address(c.out.to.machine) }
