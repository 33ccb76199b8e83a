package lineproto

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// guests is a Handler that serves strangers: "known" makes one known, "begin" and "end"
// are around a transfer, "pause" waits a minute and "work" works one. It tells who ended
// for whose sake.
type guests struct {
	mu    sync.Mutex
	ended map[string]error
}

func (g *guests) Handle(ctx context.Context, nc net.Conn) {
	c := NewConn(nc, Deadlines{Idle: time.Hour})
	c.Stranger(ctx)
	r := bufio.NewReader(c)
	name, err := ReadLine(r, 100)
	for line := ""; err == nil; {
		if line, err = ReadLine(r, 100); err != nil {
			break
		}
		switch line {
		case "known":
			c.Known()
		case "begin":
			c.BeginTransfer()
		case "end":
			c.EndTransfer()
		case "pause":
			err = c.Pause(ctx, time.Minute)
		case "work":
			time.Sleep(time.Minute)
		}
	}
	if errors.Is(err, ErrPlaceGiven) {
		c.CloseBy(time.Now().Add(time.Second))
		io.WriteString(c, "goodbye\n")
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ended[name] = err
}

func (g *guests) Refuse(c net.Conn) { io.WriteString(c, "refused\n") }

// pipes is a listener of net.Pipe.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { close(p.closed); return nil }
func (p *pipes) Addr() net.Addr { return addr("pipe") }

// house is a server of guests in virtual time.
type house struct {
	t     *testing.T
	l     *pipes
	g     *guests
	conns map[string]net.Conn
	heard map[string]*strings.Builder
	mu    sync.Mutex
	wg    sync.WaitGroup
}

func visit(t *testing.T, total int, f func(h *house)) {
	synctest.Test(t, func(t *testing.T) {
		h := &house{t: t, l: &pipes{make(chan net.Conn), make(chan struct{})}, g: &guests{ended: map[string]error{}},
			conns: map[string]net.Conn{}, heard: map[string]*strings.Builder{}}
		s := &Server{Handler: h.g, Limits: Limits{Total: total}, Log: slog.New(slog.DiscardHandler)}
		ctx, cancel := context.WithCancel(t.Context())
		h.wg.Go(func() {
			if err := s.Serve(ctx, h.l); err != nil {
				t.Error(err)
			}
		})
		f(h)
		cancel()
		for _, c := range h.conns {
			c.Close()
		}
		h.wg.Wait()
	})
}

// comes connects a guest.
func (h *house) comes(name string) {
	ours, theirs := net.Pipe()
	h.conns[name], h.heard[name] = theirs, &strings.Builder{}
	h.wg.Go(func() {
		for b := make([]byte, 100); ; {
			n, err := theirs.Read(b)
			h.mu.Lock()
			h.heard[name].Write(b[:n])
			h.mu.Unlock()
			if err != nil {
				return
			}
		}
	})
	h.l.conns <- ours
	synctest.Wait()
	h.says(name, name)
}

// says lets a guest say a line, and a second pass.
func (h *house) says(name, line string) {
	fmt.Fprintf(h.conns[name], "%s\n", line)
	time.Sleep(time.Second)
	synctest.Wait()
}

// gone fails the test unless these guests, and no others, had to make room, and were told.
func (h *house) gone(names ...string) {
	h.t.Helper()
	h.g.mu.Lock()
	defer h.g.mu.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, name := range names {
		if !errors.Is(h.g.ended[name], ErrPlaceGiven) || h.heard[name].String() != "goodbye\n" {
			h.t.Errorf("%s: %v, %q", name, h.g.ended[name], h.heard[name])
		}
	}
	if len(h.g.ended) != len(names) {
		h.t.Errorf("ended: %v, want %v", h.g.ended, names)
	}
}

func (h *house) refused(name string) {
	h.t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	if got := h.heard[name].String(); got != "refused\n" {
		h.t.Errorf("%s heard %q", name, got)
	}
}

// Whoever has been silent for longest goes first; who speaks stays.
func TestTheSilentMakeRoom(t *testing.T) {
	t.Parallel()
	visit(t, 3, func(h *house) {
		h.comes("a")
		h.comes("b")
		h.comes("c")
		h.gone()
		h.says("a", "hello")
		h.comes("d")
		h.gone("b")
		h.comes("e")
		h.gone("b", "c")
		h.says("a", "hello")
		h.comes("f")
		h.gone("b", "c", "d")
	})
}

// Who is known, or waits for the server, keeps the place.
func TestTheKnownStay(t *testing.T) {
	t.Parallel()
	visit(t, 2, func(h *house) {
		h.comes("a")
		h.says("a", "known")
		h.comes("b")
		h.says("b", "work")
		time.Sleep(10 * time.Second)
		h.comes("c")
		h.refused("c")
		time.Sleep(time.Minute) // b's work is done
		h.comes("d")
		h.gone("b")
		h.says("d", "known")
		time.Sleep(time.Hour / 2)
		h.comes("e")
		h.refused("e")
		h.gone("b")
	})
}

// A transfer that goes on is not broken off, one that stands still is.
func TestATransferStays(t *testing.T) {
	t.Parallel()
	visit(t, 2, func(h *house) {
		h.comes("a")
		h.says("a", "begin")
		h.comes("b")
		h.says("b", "begin")
		for range 10 {
			time.Sleep(stalled - 4*time.Second)
			h.says("a", "more")
			h.says("b", "more")
			h.comes("c")
			h.refused("c")
		}
		time.Sleep(stalled - 4*time.Second)
		h.says("b", "more")
		time.Sleep(4 * time.Second)
		h.comes("d")
		h.gone("a")
		h.says("b", "end")
		h.says("d", "hello")
		h.comes("e")
		h.gone("a", "b")
	})
}

// Who is kept waiting for the sake of it makes room, and at once.
func TestAPauseEnds(t *testing.T) {
	t.Parallel()
	visit(t, 1, func(h *house) {
		h.comes("a")
		h.says("a", "pause")
		h.comes("b")
		h.gone("a")
	})
	visit(t, 1, func(h *house) {
		h.comes("a")
		h.says("a", "pause")
		time.Sleep(time.Hour / 2)
		h.gone()
	})
}

// Who exceeds a limit of its own drives nobody out, and places are counted right.
func TestPlacesAreCounted(t *testing.T) {
	t.Parallel()
	visit(t, 2, func(h *house) {
		for i := range 100 {
			h.comes(fmt.Sprint(i))
		}
		var all []string
		for i := range 98 {
			all = append(all, fmt.Sprint(i))
		}
		h.gone(all...)
		h.says("98", "known")
		h.says("99", "known")
		h.comes("more")
		h.refused("more")
		h.conns["98"].Close()
		h.conns["99"].Close()
		synctest.Wait()
		delete(h.g.ended, "98")
		delete(h.g.ended, "99")
		h.comes("x")
		h.comes("y")
		h.gone(all...)
	})
	synctest.Test(t, func(t *testing.T) {
		n := newCounter(Limits{Total: 2, PerAddress: 1})
		remotes := []string{"192.0.2.1", "192.0.2.2"}
		var conns []*Conn
		for _, a := range remotes {
			s, refused := n.acquire(remote(fakeConn{addr: a + ":1"}))
			if refused != "" {
				t.Fatal(refused)
			}
			ours, theirs := net.Pipe()
			c := NewConn(ours, Deadlines{})
			c.Stranger(context.WithValue(t.Context(), seatKey{}, s))
			conns = append(conns, c)
			go c.Read(make([]byte, 1))
			defer theirs.Close()
		}
		synctest.Wait()
		if _, refused := n.acquire(remote(fakeConn{addr: "192.0.2.1:2"})); refused != "connections from one address" {
			t.Errorf("got %q", refused)
		}
		for i, c := range conns {
			if c.waits.Load() == gone {
				t.Errorf("%s was closed for the sake of a connection that was refused", remotes[i])
			}
		}
		// Those that were told to go and have not gone are no more than the places.
		for i := range 4 {
			s, refused := n.acquire(remote(fakeConn{addr: fmt.Sprintf("192.0.2.%d:1", 3+i)}))
			if (refused == "") != (i < 2) {
				t.Errorf("%d: got %q", i, refused)
			}
			if s != nil {
				ours, theirs := net.Pipe()
				defer theirs.Close()
				c := NewConn(ours, Deadlines{})
				c.Stranger(context.WithValue(t.Context(), seatKey{}, s))
				go c.Read(make([]byte, 1))
			}
			synctest.Wait()
			time.Sleep(time.Second)
		}
	})
}
