//go:build faults

package faults

import (
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// proxy stands before the peer port of a site. What comes to it is passed on after a
// delay, each way, or is held up, or breaks off.
type proxy struct {
	addr  string
	to    string
	delay time.Duration
	wg    sync.WaitGroup
	cuts  atomic.Int64

	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	closed bool
	held   chan struct{} // closed when octets flow; nil while they do
	rate   int           // octets a second; 0: not bounded
	least  int           // octets after which a connection is broken; 0: never
}

func newProxy(t *testing.T, host, to string, delay time.Duration) *proxy {
	t.Helper()
	ln, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{addr: ln.Addr().String(), to: to, delay: delay, conns: map[net.Conn]struct{}{}}
	p.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			p.wg.Go(func() { p.serve(c) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		p.mu.Lock()
		p.closed = true
		p.mu.Unlock()
		p.flow()
		p.sever()
		p.wg.Wait()
	})
	return p
}

// keep notes a connection, to be closed with the others.
func (p *proxy) keep(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		c.Close()
		return false
	}
	p.conns[c] = struct{}{}
	return true
}

func (p *proxy) forget(c net.Conn) {
	c.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

func (p *proxy) serve(in net.Conn) {
	defer p.forget(in)
	if !p.keep(in) || !p.pass(nil) {
		return
	}
	out, err := net.DialTimeout("tcp", p.to, 5*time.Second)
	if err != nil {
		in.(*net.TCPConn).SetLinger(0) // refused, for who asked
		return
	}
	defer p.forget(out)
	if !p.keep(out) {
		return
	}
	var wg sync.WaitGroup
	left := &atomic.Int64{}
	for _, x := range [][2]net.Conn{{in, out}, {out, in}} {
		wg.Go(func() {
			p.copy(x[0], x[1], left)
			in.Close()
			out.Close()
		})
	}
	wg.Wait()
}

type chunk struct {
	b   []byte
	due time.Time
}

// copy passes on what one end says. What was read waits for its time in a queue, so that
// a long line is not a narrow one.
func (p *proxy) copy(from, to net.Conn, passed *atomic.Int64) {
	queue := make(chan chunk, 1024)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for c := range queue {
			time.Sleep(time.Until(c.due))
			p.mu.Lock()
			rate, least := p.rate, p.least
			p.mu.Unlock()
			if rate > 0 {
				time.Sleep(time.Duration(len(c.b)) * time.Second / time.Duration(rate))
			}
			if !p.pass(to) {
				return
			}
			if n := passed.Add(int64(len(c.b))); least > 0 && n > int64(least) {
				p.cuts.Add(1)
				to.Write(c.b[:len(c.b)/2])
				from.Close()
				to.Close()
				return
			}
			if _, err := to.Write(c.b); err != nil {
				from.Close()
				return
			}
		}
	}()
	for {
		size := 32 << 10
		p.mu.Lock()
		if p.rate > 0 {
			size = 100
		}
		p.mu.Unlock()
		b := make([]byte, size)
		n, err := from.Read(b)
		if n > 0 {
			select {
			case queue <- chunk{b[:n], time.Now().Add(p.delay)}:
			case <-done:
				return
			}
		}
		if err != nil {
			break
		}
	}
	close(queue)
	<-done
}

// pass waits while the line stalls. false means that the connection is of no more use.
func (p *proxy) pass(c net.Conn) bool {
	p.mu.Lock()
	held := p.held
	p.mu.Unlock()
	if held != nil {
		<-held
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if c == nil {
		return !p.closed
	}
	_, known := p.conns[c]
	return known && !p.closed
}

// stall keeps all octets where they are; connections stay, and new ones are accepted.
func (p *proxy) stall() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held == nil {
		p.held = make(chan struct{})
	}
}

// trickle lets so many octets a second through, each way of each connection.
func (p *proxy) trickle(rate int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rate = rate
}

// breakAfter breaks every connection in the middle of something, once it has passed so
// many octets.
func (p *proxy) breakAfter(octets int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.least = octets
}

// flow ends what hinders.
func (p *proxy) flow() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rate, p.least = 0, 0
	if p.held != nil {
		close(p.held)
		p.held = nil
	}
}

// sever closes all connections that there are.
func (p *proxy) sever() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
		p.cuts.Add(1)
	}
}

func (p *proxy) broken() int { return int(p.cuts.Load()) }
