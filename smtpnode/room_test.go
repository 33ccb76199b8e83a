package smtpnode

import (
	"bufio"
	"context"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/emersion/go-smtp"

	"msgw/internal/lineproto"
)

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
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// When all places are taken, who got a 250 for a message keeps the place, as does who is
// sending one, and who only connected is told to come back.
func TestStrangersMakeRoom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := &pipes{make(chan net.Conn), make(chan struct{})}
		s := New(Options{Host: "mx.example.org", Store: noStore{}, Limits: lineproto.Limits{Total: 3}})
		s.newSession = func(*conn) smtp.Session { return &sink{} }
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Serve(ctx, l) }()
		dial := func() *client {
			ours, theirs := net.Pipe()
			t.Cleanup(func() { theirs.Close() })
			l.conns <- ours
			return &client{t, theirs, bufio.NewReader(theirs)}
		}
		known, sending := dial(), dial()
		known.dialog(envelope + "C: DATA\nS: 354\nC: .\nS: 250")
		sending.dialog(envelope + "C: BDAT 3\nC: a\nS: 250 2.0.0 chunk")
		last := dial()
		last.expect("220")
		for range 3 {
			time.Sleep(time.Second)
			next := dial()
			last.expect("421 4.7.0 mx.example.org too many connections")
			last.closed()
			next.expect("220")
			last = next
		}
		known.dialog("C: MAIL FROM:<>\nS: 250\nC: RCPT TO:<mbx-1@z>\nS: 250\nC: BDAT 0 LAST\nS: 250 2.0.0 stored")
		sending.dialog("C: BDAT 3 LAST\nC: b\nS: 250 2.0.0 stored")
		cancel()
		for _, c := range []*client{known, sending, last} {
			c.expect("421")
			c.closed()
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
