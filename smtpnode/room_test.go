package smtpnode

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"strings"
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

// Who only connects costs little: a message's buffer comes with the message. Not parallel,
// for it measures memory.
func TestMemoryOfIdleConnections(t *testing.T) {
	const connections, most = 200, 24 << 10 // octets for each, those of the test's own end included
	r := start(t, func(o *Options) { o.Limits = lineproto.Limits{Total: 1000, PerAddress: 1000, PerNetwork: 1000} })
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc + m.StackInuse)
	}
	before := heap()
	for range connections {
		r.dial().dialog("S: 220\nC: EHLO x\nS: 250-\nC: MAIL FROM:<>\nS: 250\nC: RCPT TO:<mbx-9@z>\nS: 550\nC: DATA\nS: 554")
	}
	if each := (heap() - before) / connections; each > most {
		t.Errorf("%d octets for each connection", each)
	} else {
		t.Logf("%d octets for each connection", each)
	}
}

// What came in with DATA, and what follows the message at once, passes from the buffer
// for commands to the one for messages.
func TestWiden(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	c := r.dial()
	body := strings.Repeat("0123456789abcdef\r\n", 20_000)
	before := "EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<mbx-1@z>\r\n"
	var messages []string
	all := before
	for _, n := range []int{0, 1, narrow - len(before) - 10, narrow, wide, len(body)} {
		m := body[:n] + "\r\n"
		messages = append(messages, m)
		all += "MAIL FROM:<>\r\nRCPT TO:<mbx-1@z>\r\nDATA\r\n" + m + ".\r\n" + "MAIL FROM:<>\r\nRCPT TO:<mbx-1@z>\r\n" + fmt.Sprintf("BDAT %d LAST\r\n%s", len(m), m)
		messages = append(messages, m)
	}
	all = strings.Replace(all, before+"MAIL FROM:<>\r\nRCPT TO:<mbx-1@z>\r\n", before, 1)
	c.send(all + "QUIT\r\n")
	c.expect("220")
	c.expect("250-")
	for i := range messages {
		c.expect("250")
		c.expect("250")
		if i%2 == 0 {
			c.expect("354")
		}
		c.expect("250 2.0.0 stored")
	}
	c.expect("221")
	_, got := r.plaintext("mbx-1", 0)
	if !slices.Equal(got, messages) {
		t.Errorf("%d messages, not those that were sent", len(got))
	}
	// STARTTLS behind a message in the same write as what must not become a command.
	c = r.dial()
	c.send(before + "DATA\r\nx\r\n.\r\nSTARTTLS\r\nMAIL FROM:<injected@example.net>\r\nRCPT TO:<mbx-1@z>\r\n")
	for _, want := range []string{"220", "250-", "250", "250", "354", "250 2.0.0 stored", "220 2.0.0"} {
		c.expect(want)
	}
	if b, _ := io.ReadAll(c.r); bytes.Contains(b, []byte("250")) {
		t.Errorf("answered %q", b)
	}
}
