package sender

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"
)

// block is how much is written under one deadline.
const block = 64 << 10

// Session is a connection on which messages are sent one after another. It is for
// one goroutine.
type Session struct {
	cfg    *Config
	to     target
	conn   net.Conn // the TLS connection once there is one
	raw    net.Conn
	r      *bufio.Reader
	w      *bufio.Writer
	offers map[string]string // EHLO keyword -> parameters
	tls    bool
	failed []*Error // what failed before this host was reached

	begun bool  // MAIL was sent since the last end of a transaction
	dead  error // why nothing more can be said
}

// connect brings a session to where MAIL may be said.
func (s *Sender) connect(ctx context.Context, t target) (*Session, *Error) {
	x, fail := s.open(ctx, t, s.cfg.TLS != nil)
	if fail != nil && fail.Stage == "TLS handshake" && !s.cfg.RequireTLS && ctx.Err() == nil {
		return s.open(ctx, t, false)
	}
	return x, fail
}

// open connects, greets, and starts TLS if wanted and offered.
func (s *Sender) open(ctx context.Context, t target, startTLS bool) (*Session, *Error) {
	d := net.Dialer{Timeout: s.cfg.Timeouts.Connect}
	raw, err := d.DialContext(ctx, "tcp", t.addr.String())
	if err != nil {
		return nil, &Error{Temporary: true, Host: t.host, Stage: "connect", Err: err, next: true}
	}
	x := &Session{cfg: &s.cfg, to: t, raw: raw}
	x.use(raw)
	stop := context.AfterFunc(ctx, x.abort)
	fail := x.greet(ctx, startTLS)
	if !stop() {
		fail = x.fail("greeting", ctx.Err())
	}
	if fail != nil {
		raw.Close()
		return nil, fail
	}
	return x, nil
}

// use reads from and writes to conn from here on.
func (x *Session) use(conn net.Conn) {
	x.conn = conn
	x.r = bufio.NewReaderSize(conn, 4096)
	x.w = bufio.NewWriterSize(patient{conn, x.cfg.Timeouts.Block}, block)
}

// abort makes every wait end now.
func (x *Session) abort() { x.raw.Close() }

// patient writes with a deadline for each block.
type patient struct {
	net.Conn
	wait time.Duration
}

func (p patient) Write(b []byte) (int, error) {
	written := 0
	for {
		// Replies may be awaited meanwhile; to take octets is a sign of life too.
		if err := p.SetDeadline(time.Now().Add(p.wait)); err != nil {
			return written, err
		}
		n, err := p.Conn.Write(b[:min(len(b), block)])
		written += n
		if b = b[n:]; err != nil || len(b) == 0 {
			return written, err
		}
	}
}

func (x *Session) greet(ctx context.Context, startTLS bool) *Error {
	rep, err := x.readReply(x.cfg.Timeouts.Reply)
	if err != nil {
		return x.fail("greeting", err)
	}
	if rep.code != 220 {
		fail := x.refused("greeting", rep)
		// Other hosts may be in better health, whatever the code (as with Postfix's
		// smtp_skip_5xx_greeting).
		fail.next = true
		return fail
	}
	if fail := x.hello(); fail != nil {
		return fail
	}
	if startTLS {
		if fail := x.startTLS(ctx); fail != nil {
			return fail
		}
	}
	if x.cfg.RequireTLS && !x.tls {
		return x.lacks("STARTTLS")
	}
	return nil
}

// hello says EHLO, or HELO to who does not know it (RFC 5321 section 3.2).
func (x *Session) hello() *Error {
	rep, fail := x.command("EHLO", x.cfg.Helo)
	if fail == nil && rep.code/100 == 5 {
		rep, fail = x.command("HELO", x.cfg.Helo)
		rep.lines = rep.lines[:min(len(rep.lines), 1)]
	}
	if fail != nil {
		return fail
	}
	if rep.code != 250 {
		return x.refused("EHLO", rep)
	}
	x.offers = map[string]string{}
	for _, line := range rep.lines[1:] {
		keyword, params, _ := strings.Cut(line, " ")
		x.offers[strings.ToUpper(keyword)] = params
	}
	return nil
}

// startTLS secures the connection (RFC 3207). It returns nil if TLS is not to be
// had; the connection is in clear then.
func (x *Session) startTLS(ctx context.Context) *Error {
	if _, ok := x.offers["STARTTLS"]; !ok {
		return nil
	}
	rep, fail := x.command("STARTTLS")
	if fail != nil {
		return fail
	}
	if rep.code != 220 {
		if rep.code == 421 {
			return x.refused("STARTTLS", rep)
		}
		return nil
	}
	if x.r.Buffered() > 0 {
		return x.fail("TLS handshake", fmt.Errorf("%w: text behind the reply to STARTTLS", ErrProtocol))
	}
	cfg := x.cfg.TLS.Clone()
	cfg.ServerName = x.to.host
	conn := tls.Client(x.raw, cfg)
	if err := x.raw.SetDeadline(time.Now().Add(x.cfg.Timeouts.Reply)); err != nil {
		return x.fail("TLS handshake", err)
	}
	if err := conn.HandshakeContext(ctx); err != nil {
		return x.fail("TLS handshake", err)
	}
	x.use(conn)
	x.tls = true
	return x.hello() // what was offered in clear is void (section 4.2)
}

// Host returns the MX host that the session is with.
func (x *Session) Host() string { return x.to.host }

// Send sends msg. The error is an *Error and nil only if every recipient was
// accepted. After a refusal the session can send the next message; after a
// connection lost it can only be closed, and so after a ctx that ended.
func (x *Session) Send(ctx context.Context, env Envelope, msg []byte) (Result, error) {
	if _, err := env.check(msg); err != nil {
		return Result{}, &Error{Host: x.to.host, Stage: "envelope", Err: err}
	}
	res, fail := x.transfer(ctx, env, msg)
	res.Attempts, x.failed = x.failed, nil
	if fail != nil {
		return res, fail
	}
	return res, nil
}

// Close says QUIT, awaits the answer for a short while and closes the connection.
func (x *Session) Close() error { return x.close(context.Background()) }

func (x *Session) close(ctx context.Context) error {
	defer x.raw.Close()
	if x.dead != nil {
		return nil // told by who met it
	}
	defer context.AfterFunc(ctx, x.abort)()
	const patience = 5 * time.Second
	if err := x.write("QUIT"); err != nil {
		return x.fail("QUIT", err)
	}
	rep, err := x.readReply(min(patience, x.cfg.Timeouts.Reply))
	if err != nil {
		return x.fail("QUIT", err)
	}
	if rep.code != 221 {
		return x.refused("QUIT", rep)
	}
	return nil
}

// fail notes that the connection is of no more use.
func (x *Session) fail(stage string, err error) *Error {
	x.dead = err
	return &Error{Temporary: true, Host: x.to.host, Stage: stage, Err: err, next: true}
}

// refused turns a reply that is not what it should be into an error.
func (x *Session) refused(stage string, rep reply) *Error {
	if rep.code == 421 { // RFC 5321 section 3.8
		x.dead = errors.New("server is closing the connection")
	}
	e := &Error{Host: x.to.host, Stage: stage, Code: rep.code, Text: strings.Join(rep.lines, "\n")}
	// A 2xx or 3xx out of place says nothing about the message: try again.
	e.Temporary = rep.code/100 != 5
	e.next = e.Temporary
	return e
}

// lacks says that the server has not got what is wanted; another may.
func (x *Session) lacks(extension string) *Error {
	return &Error{Temporary: true, Host: x.to.host, Stage: "EHLO", Err: fmt.Errorf("%s %w", extension, ErrNotOffered), next: true}
}
