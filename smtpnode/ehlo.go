package smtpnode

import (
	"bytes"
	"crypto/tls"
	"fmt"

	"net"
	"strings"
	"time"
)

// ehlo greets (RFC 5321 section 4.1.1.1) and says what is offered.
func (c *conn) ehlo(arg string, esmtp bool) {
	name, _, _ := strings.Cut(arg, " ")
	if name == "" || len(name) > 255 || strings.ContainsFunc(name, notPrintable) {
		c.refuse(501, "5.5.4", "expected a host name")
		return
	}
	c.reset()
	c.helo, c.esmtp = name, esmtp
	if m := c.srv.opt.Mailboxes; m != nil {
		c.offer = m.Offer()
	}
	if !esmtp {
		c.reply(250, "", c.srv.opt.Host)
		return
	}
	offers := []string{
		c.srv.opt.Host,
		fmt.Sprintf("SIZE %d", c.maxSize()), // RFC 1870
		"8BITMIME",                          // RFC 6152
		"SMTPUTF8",                          // RFC 6531
		"ENHANCEDSTATUSCODES",               // RFC 2034
		"PIPELINING",                        // RFC 2920
		"CHUNKING",                          // RFC 3030
		"BINARYMIME",                        // RFC 3030
		fmt.Sprintf("LIMITS RCPTMAX=%d", c.maxRecipients()), // RFC 9422
	}
	if c.srv.opt.TLS != nil && c.tls == nil {
		offers = append(offers, "STARTTLS") // RFC 3207
	}
	c.reply(250, "", strings.Join(offers, "\n"))
}

func notPrintable(r rune) bool { return r < 0x21 || r == 0x7f }

// startTLS turns the connection into a TLS one (RFC 3207). A failed handshake ends
// it: what follows could be anybody's.
func (c *conn) startTLS(arg string) (quit bool) {
	switch {
	case c.srv.opt.TLS == nil:
		c.refuse(502, "5.5.1", "TLS is not offered here")
		return false
	case c.tls != nil:
		c.refuse(503, "5.5.1", "TLS is active already")
		return false
	case arg != "":
		c.refuse(501, "5.5.4", "STARTTLS takes no parameter")
		return false
	case c.helo == "":
		c.refuse(503, "5.5.1", "say EHLO first")
		return false
	}
	c.reply(220, "2.0.0", "go ahead")
	if err := c.bw.Flush(); err != nil {
		return true
	}
	// What was pipelined behind STARTTLS in plaintext is given to the handshake,
	// which fails on it: it never becomes a command (RFC 3207 section 6).
	early, _ := c.br.Peek(c.br.Buffered())
	cfg := c.srv.opt.TLS
	if c.offer.ClientCertificate {
		// It is checked where a mailbox asks for it: one that does not please must not
		// end the connection for the others.
		cfg = cfg.Clone()
		cfg.ClientAuth = tls.RequestClientCert
	}
	tc := tls.Server(&prefixConn{c.line, bytes.NewReader(bytes.Clone(early))}, cfg)
	timer := time.AfterFunc(c.srv.opt.TLSTime, func() { c.line.CloseBy(time.Now()) })
	err := tc.HandshakeContext(c.ctx)
	if !timer.Stop() && err == nil {
		err = fmt.Errorf("TLS handshake took longer than %v", c.srv.opt.TLSTime)
	}
	if err != nil {
		c.log.Info("smtp connection closed", "reason", "TLS handshake failed", "err", err)
		return true
	}
	state := tc.ConnectionState()
	c.tls = &state
	c.setConn(tc)
	// The session starts anew (RFC 3207 section 4.2).
	c.reset()
	c.helo, c.esmtp = "", false
	return false
}

// prefixConn reads early before what the connection brings.
type prefixConn struct {
	net.Conn
	early *bytes.Reader
}

func (p *prefixConn) Read(b []byte) (int, error) {
	if p.early.Len() > 0 {
		return p.early.Read(b)
	}
	return p.Conn.Read(b)
}
