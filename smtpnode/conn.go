package smtpnode

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/emersion/go-smtp"

	"msgw/internal/lineproto"
)

// conn is one SMTP connection. One goroutine runs it from greeting to end.
type conn struct {
	srv  *Server
	ctx  context.Context
	log  *slog.Logger
	line *lineproto.Conn
	br   *bufio.Reader
	bw   *bufio.Writer
	peer netip.AddrPort

	offer   Offer
	tls     *tls.ConnectionState // nil in plaintext
	wire    net.Conn             // what replies go to: line, or the TLS connection over it
	helo    string
	esmtp   bool
	session smtp.Session

	mail  *smtp.MailOptions // nil outside a transaction
	rcpts int
	// trouble is the temporary answer to what the transaction needed. What is
	// refused as its consequence gets the same: a sender that pipelines might take
	// a permanent code further on for the verdict.
	trouble *smtp.SMTPError

	pending      *string // a command read ahead by BDAT
	errors       int     // commands refused for good
	idle         int     // commands since the last accepted message, but for RCPT
	named        int     // RCPT since then
	broken       error   // why the connection cannot go on
	transferring atomic.Bool
}

// Handle runs a connection; see lineproto.Handler.
func (s *Server) Handle(ctx context.Context, nc net.Conn) {
	s.metrics.open.Inc()
	defer s.metrics.open.Dec()
	peer, _ := netip.ParseAddrPort(nc.RemoteAddr().String())
	c := &conn{srv: s, ctx: ctx, line: lineproto.NewConn(nc, s.opt.Deadlines), peer: peer,
		log: s.opt.Log.With("peer", peer.String())}
	c.line.Stranger(ctx)
	c.setConn(c.line)
	if s.opt.Mailboxes != nil {
		c.offer = s.opt.Mailboxes.Offer()
	}
	c.session = s.newSession(c)
	stop := context.AfterFunc(ctx, func() {
		if c.transferring.Load() {
			c.line.CloseBy(time.Now().Add(s.opt.Grace))
		} else {
			c.line.CloseBy(time.Now())
		}
	})
	defer stop()
	defer func() {
		if err := c.session.Logout(); err != nil {
			c.log.Warn("smtp session end", "err", err)
		}
	}()
	c.run()
	c.close()
}

// untilGrace returns a context for what a transfer waits for. After the server was told to
// stop it lasts Options.Grace longer.
func (c *conn) untilGrace() (context.Context, func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(c.ctx))
	stop := context.AfterFunc(c.ctx, func() {
		t := time.AfterFunc(c.srv.opt.Grace, cancel)
		context.AfterFunc(ctx, func() { t.Stop() })
	})
	return ctx, func() { stop(); cancel() }
}

// close ends the connection: it sends the answers that wait, for one may tell that a
// message is stored. Over TLS it says that it ends, lest the end look like an attack
// to the peer (RFC 8446 section 6.1).
func (c *conn) close() {
	c.line.CloseBy(time.Now().Add(closeTime))
	// What fails here fails because the peer has gone, which is no news.
	_ = c.bw.Flush()
	if c.tls != nil { // else the server closes it
		_ = c.wire.Close()
	}
}

// closeTime bounds what is still said to a peer when its connection ends.
const closeTime = 2 * time.Second

func (c *conn) setConn(nc net.Conn) {
	c.wire = nc
	c.bw = bufio.NewWriterSize(nc, 4<<10)
	c.br = bufio.NewReaderSize(&answering{nc, c.bw}, narrow)
}

// What is read through: commands, of which the longest line is maxLine; and messages.
const narrow, wide = 4 << 10, 64 << 10

// widen gives the connection the buffer for a message, once there is somebody to take
// one. Whoever only connects costs little.
func (c *conn) widen() {
	if c.rcpts == 0 || c.br.Size() >= wide {
		return
	}
	early, _ := c.br.Peek(c.br.Buffered())
	early = bytes.Clone(early) // all of it goes to the new buffer with the first read
	c.br = bufio.NewReaderSize(&answering{io.MultiReader(bytes.NewReader(early), c.wire), c.bw}, wide)
}

// answering sends the replies that wait before it waits for the peer. Replies to
// pipelined commands go out together (RFC 2920 section 3.2).
type answering struct {
	io.Reader
	replies *bufio.Writer
}

func (a *answering) Read(p []byte) (int, error) {
	if err := a.replies.Flush(); err != nil {
		return 0, err
	}
	return a.Reader.Read(p)
}

func (c *conn) run() {
	if err := c.srv.opt.Store.Err(); err != nil {
		c.log.Warn("smtp greeting refused", "err", err)
		c.farewell("4.3.2", "cannot accept mail now, try another host")
		return
	}
	c.reply(220, "", c.srv.opt.Host+" ESMTP msgw")
	first := true
	for c.broken == nil {
		if c.ctx.Err() != nil {
			c.farewell("4.3.2", "closing down")
			return
		}
		if c.errors >= c.srv.opt.MaxErrors {
			c.farewell("4.7.0", "too many errors")
			return
		}
		line, err := c.readCommand()
		if errors.Is(err, lineproto.ErrLineTooLong) {
			c.refuse(500, "5.5.2", "line too long")
			continue
		}
		if err != nil {
			c.end(err)
			return
		}
		verb, arg := cutVerb(line)
		if first && (verb == "GET" || verb == "POST" || verb == "PUT" || verb == "CONNECT" || verb == "OPTIONS" || strings.HasPrefix(line, "\x16\x03")) {
			// A browser or a TLS client made to talk to us: say nothing it could use.
			c.log.Info("smtp connection closed", "reason", "not SMTP")
			return
		}
		first = false
		if verb == "RCPT" {
			c.named++
		} else {
			c.idle++
		}
		if c.idle > c.srv.opt.MaxIdle || c.named > c.maxRecipients()+overshoot {
			c.farewell("4.7.0", "too many commands without a message")
			return
		}
		if quit := c.command(verb, arg); quit {
			return
		}
	}
	if !errors.Is(c.broken, io.EOF) {
		c.end(c.broken)
	}
}

// end reacts to a connection that failed between messages or inside one.
func (c *conn) end(err error) {
	switch {
	case c.ctx.Err() != nil:
		c.farewell("4.3.2", "closing down")
	case errors.Is(err, lineproto.ErrPlaceGiven):
		c.srv.metrics.refused.Inc()
		c.log.Info("smtp connection closed", "reason", "place given to another connection")
		c.farewell("4.7.0", "too many connections, try again later")
	case errors.Is(err, os.ErrDeadlineExceeded):
		c.log.Info("smtp connection timed out", "err", err)
		c.farewell("4.4.2", "timeout")
	case !errors.Is(err, io.EOF):
		c.log.Info("smtp connection lost", "err", err)
	}
}

// farewell ends the session with 421 (RFC 5321 section 3.8).
func (c *conn) farewell(enhanced, text string) {
	c.line.CloseBy(time.Now().Add(closeTime))
	c.reply(421, enhanced, c.srv.opt.Host+" "+text)
	c.bw.Flush()
}

// readCommand returns the next command line, the one read ahead first.
func (c *conn) readCommand() (string, error) {
	if p := c.pending; p != nil {
		c.pending = nil
		return *p, nil
	}
	return lineproto.ReadLine(c.br, maxLine)
}

// cutVerb cuts at the first space. White space at the end is tolerated (RFC 5321
// section 4.1.1); it is space and tab, and nothing that Unicode has besides.
func cutVerb(line string) (verb, arg string) {
	verb, arg, _ = strings.Cut(line, " ")
	return lineproto.Upper(strings.TrimRight(verb, "\t")), strings.Trim(arg, " \t")
}

// words splits at spaces. A bare CR or any other control character does not
// separate.
func words(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ' ' })
}

// command runs one command and reports whether the session ends.
func (c *conn) command(verb, arg string) (quit bool) {
	switch verb {
	case "EHLO":
		c.ehlo(arg, true)
	case "HELO":
		c.ehlo(arg, false)
	case "STARTTLS":
		return c.startTLS(arg)
	case "MAIL":
		c.mailCommand(arg)
	case "RCPT":
		c.rcptCommand(arg)
	case "DATA":
		c.widen()
		c.dataCommand(arg)
	case "BDAT":
		c.widen()
		c.bdatCommand(arg)
	case "RSET":
		c.reset()
		c.reply(250, "2.0.0", "reset")
	case "NOOP":
		c.reply(250, "2.0.0", "ok")
	case "VRFY":
		c.reply(252, "2.5.2", "send some mail and it will be tried") // RFC 5321 section 3.5.3
	case "QUIT":
		c.reply(221, "2.0.0", "bye")
		c.bw.Flush()
		return true
	case "AUTH", "EXPN", "HELP", "TURN", "ETRN":
		c.refuse(502, "5.5.1", "not offered here")
	default:
		c.refuse(500, "5.5.2", "command not recognised")
	}
	return false
}

// accepted notes that the peer got a 250 for a message.
func (c *conn) accepted() {
	c.idle, c.named, c.errors = 0, 0, 0
	c.line.Known()
}

// reset ends the transaction, if there is one.
func (c *conn) reset() {
	c.mail, c.rcpts, c.trouble = nil, 0, nil
	c.session.Reset()
}

// refuse replies and counts against the budget of errors.
func (c *conn) refuse(code int, enhanced, text string) {
	c.errors++
	c.reply(code, enhanced, text)
}

// reply queues a reply; each line of text becomes one of the reply's. Enhanced
// codes go with 2xx, 4xx and 5xx (RFC 2034 section 4).
func (c *conn) reply(code int, enhanced, text string) {
	lines := strings.Split(strings.ReplaceAll(text, "\r", ""), "\n")
	if enhanced != "" {
		enhanced += " "
	}
	for i, l := range lines {
		sep := "-"
		if i == len(lines)-1 {
			sep = " "
		}
		fmt.Fprintf(c.bw, "%d%s%s%s\r\n", code, sep, enhanced, l)
	}
}

// replyError answers with what err says. Only an *smtp.SMTPError chose its words
// for the peer; anything else is our trouble, hence temporary, and not told. It
// returns the answer.
func (c *conn) replyError(err error) *smtp.SMTPError {
	var se *smtp.SMTPError
	if !errors.As(err, &se) {
		c.log.Error("smtp command failed", "err", err)
		se = errTemporary
	}
	if se.Code/100 == 5 { // what is refused for now is no fault of the peer's
		c.errors++
	}
	code := ""
	if e := se.EnhancedCode; e != (smtp.EnhancedCode{}) {
		code = fmt.Sprintf("%d.%d.%d", e[0], e[1], e[2])
	}
	c.reply(se.Code, code, se.Message)
	return se
}

// refuseAlike answers with err and remembers it, if it is temporary, for what
// follows in this transaction.
func (c *conn) refuseAlike(err error) {
	if se := c.replyError(err); se.Code/100 == 4 {
		c.trouble = se
	}
}

var errTemporary = &smtp.SMTPError{Code: 451, EnhancedCode: smtp.EnhancedCode{4, 3, 0}, Message: "temporary trouble here, try again later"}
