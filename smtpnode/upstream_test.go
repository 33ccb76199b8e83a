package smtpnode

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/emersion/go-smtp"
)

type upstreamSession struct{ complete chan bool }

func (s upstreamSession) Reset()                               {}
func (s upstreamSession) Logout() error                        { return nil }
func (s upstreamSession) Mail(string, *smtp.MailOptions) error { return nil }
func (s upstreamSession) Rcpt(string, *smtp.RcptOptions) error { return nil }
func (s upstreamSession) Data(r io.Reader) error {
	_, err := io.ReadAll(r)
	s.complete <- err == nil
	return err
}

// TestUpstreamTakesTruncatedBDAT shows why the receive loop is our own: go-smtp's
// server hands a BDAT LAST that was cut off to the session as a complete message.
// When this test fails, upstream has changed: look at it again.
func TestUpstreamTakesTruncatedBDAT(t *testing.T) {
	t.Parallel()
	complete := make(chan bool, 1)
	srv := smtp.NewServer(smtp.BackendFunc(func(*smtp.Conn) (smtp.Session, error) { return upstreamSession{complete}, nil }))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go srv.Serve(l)
	defer srv.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<a@b>\r\nBDAT 100 LAST\r\nonly this")
	c.(*net.TCPConn).CloseWrite()
	go io.Copy(io.Discard, bufio.NewReader(c))
	select {
	case ok := <-complete:
		if !ok {
			t.Error("go-smtp now reports a truncated BDAT LAST as an error: its server may have become usable")
		}
	case <-time.After(10 * time.Second):
		t.Error("go-smtp did not call Data")
	}
}
