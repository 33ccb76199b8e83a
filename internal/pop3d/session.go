package pop3d

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"msgw/internal/lineproto"
)

const (
	maxLine     = 255 + 2  // a command and its CRLF (RFC 2449, section 4)
	maxAuthLine = 1024 + 2 // AUTH and its base64 (RFC 5034, section 4, asks for 255 and the mechanism's need)
	maxBad      = 10       // commands that were none, or not here and now
	maxLogins   = 3        // failed logins
	closeTime   = time.Second
)

// end is how a session ended, as logged. As an error it ends it.
type end string

func (e end) Error() string { return string(e) }

const (
	endQuit       end = "quit"
	endClosed     end = "closed by peer"
	endTimeout    end = "timeout"
	endMadeRoom   end = "made room for another"
	endStopped    end = "server stopped"
	endTLS        end = "tls failed"
	endInjected   end = "command behind STLS"
	endHTTP       end = "http"
	endBad        end = "too many errors"
	endLogins     end = "too many failed logins"
	endUnreadable end = "message unreadable"
	endUndeleted  end = "delete failed"
	endDefect     end = "defect of this program"
)

// session is one connection.
type session struct {
	srv     *Server
	log     *slog.Logger
	conn    *lineproto.Conn
	tls     *tls.Conn
	version uint16 // of TLS; zero: the connection is in the clear
	in      *bufio.Reader
	out     *bufio.Writer
	peer    netip.Addr
	started time.Time

	commands, bad, logins int
	user                  string // from USER, for PASS

	// After login.
	drop    Maildrop
	list    []Message
	deleted []bool       // by index in list
	marked  int          // how many of deleted are set
	unread  map[int]bool // messages that could not be read when they were last asked for
	left    int64        // octets of those that are not

	spare    []byte // of two buffers of a chunk, the one that is not in use
	ahead    *ahead // the message that is read ahead, or nil
	expected int    // the message that follows the last one retrieved

	retrieved, removed int
	octets             int64

	mu      sync.Mutex
	waiting bool // for a command
	stopped bool // the server stops
}

func newSession(srv *Server, c net.Conn) *session {
	peer, _ := netip.ParseAddrPort(c.RemoteAddr().String()) // the zero address for what is not TCP
	s := &session{
		srv:     srv,
		log:     srv.options.Log.With("peer", c.RemoteAddr().String()),
		peer:    peer.Addr().Unmap().WithZone(""),
		started: time.Now(),
		conn: lineproto.NewConn(c, lineproto.Deadlines{
			Idle:    srv.options.LoginIdle,
			Write:   srv.options.WriteTime,
			Session: srv.options.LoginTime,
		}),
	}
	s.use(s.conn)
	return s
}

// use talks over c from now on.
func (s *session) use(c net.Conn) {
	s.in = bufio.NewReaderSize(c, 2<<10) // must hold maxAuthLine
	s.out = bufio.NewWriterSize(c, 16<<10)
}

// serve runs the session. ctx ends when the server begins to stop.
func (s *session) serve(ctx context.Context, implicit bool) {
	s.srv.metrics.sessions.Inc()
	defer s.srv.metrics.sessions.Dec()
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	s.conn.Stranger(ctx)
	ended := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() { s.watch(ctx, cancel, ended) })
	var err error = endDefect // until it returns: even then the maildrop is let go
	defer func() {
		close(ended)
		watch.Wait()
		s.finish(err)
	}()
	err = s.converse(ctx, work, implicit)
}

// watch stops the session when ctx ends: it then waits for no further command, and
// the one under way, if any, gets the grace.
func (s *session) watch(ctx context.Context, cancel context.CancelFunc, ended <-chan struct{}) {
	select {
	case <-ended:
		return
	case <-ctx.Done():
	}
	grace := s.srv.options.Grace
	s.mu.Lock()
	s.stopped = true
	if s.waiting {
		grace = 0
	}
	s.conn.CloseBy(time.Now().Add(grace))
	s.mu.Unlock()
	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case <-ended:
	case <-t.C:
		cancel()
	}
}

// readLine sends what is to be sent, unless the next line is already here (RFC
// 2449, section 6.6), and returns that line without its end.
func (s *session) readLine() (string, error) {
	ahead, _ := s.in.Peek(s.in.Buffered()) // never more than there is, so it cannot fail
	if stopped := !s.wait(false); stopped || bytes.IndexByte(ahead, '\n') < 0 {
		if err := s.out.Flush(); err != nil {
			return "", err
		}
	}
	if !s.wait(true) {
		return "", endStopped
	}
	line, err := lineproto.ReadLine(s.in, maxAuthLine)
	if !s.wait(false) {
		return "", endStopped
	}
	return line, err
}

// wait notes whether the session waits for a command. It returns false if the
// server stops.
func (s *session) wait(waiting bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting = waiting
	return !s.stopped
}

// reply writes one line. out keeps an error until it is flushed.
func (s *session) reply(line string) {
	s.out.WriteString(line)
	s.out.WriteString("\r\n")
}

// refuse answers a bad command, of which there may be only so many.
func (s *session) refuse(why string) error {
	if s.bad++; s.bad >= maxBad {
		s.reply("-ERR too many errors")
		return endBad
	}
	s.reply("-ERR " + why)
	return nil
}

// converse greets and answers commands until something ends the session.
func (s *session) converse(ctx, work context.Context, implicit bool) error {
	if implicit {
		if err := s.startTLS(ctx); err != nil {
			return err
		}
	}
	s.reply("+OK msgw POP3 server ready") // no time stamp: APOP (RFC 1939, section 7) is not offered
	for {
		line, err := s.readLine()
		long := errors.Is(err, lineproto.ErrLineTooLong)
		if err != nil && !long {
			return err
		}
		verb, arg, hasArg := strings.Cut(line, " ")
		verb = lineproto.Upper(verb)
		s.commands++
		switch {
		case long, verb != "AUTH" && len(line) > maxLine-2:
			err = s.refuse("line too long")
		case s.commands == 1 && isHTTP(verb):
			return endHTTP
		default:
			err = s.command(ctx, work, verb, arg, hasArg)
		}
		if err != nil {
			return err
		}
	}
}

// isHTTP knows the methods of RFC 9110 and HTTP/2's preface: a browser that was
// made to talk to this port (or a scanner).
func isHTTP(verb string) bool {
	switch verb {
	case "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "PRI":
		return true
	}
	return false
}

// command answers one command. An error ends the session.
func (s *session) command(ctx, work context.Context, verb, arg string, hasArg bool) error {
	if verb == "PASS" {
		if !hasArg {
			return s.refuse("PASS needs a password")
		}
		return s.pass(ctx, arg)
	}
	arg = strings.Trim(arg, " ")
	switch verb {
	case "USER":
		return s.name(arg)
	case "AUTH":
		return s.auth(ctx, arg)
	case "CAPA", "QUIT", "STLS", "STAT", "RSET", "NOOP":
		if arg != "" {
			return s.refuse(verb + " takes no argument")
		}
	}
	switch verb {
	case "CAPA":
		s.capa()
		return nil
	case "QUIT":
		return s.quit(work)
	case "STLS":
		return s.stls(ctx)
	case "STAT", "LIST", "UIDL", "RETR", "TOP", "DELE", "RSET", "NOOP":
		if s.drop == nil {
			return s.refuse("log in first")
		}
		return s.transaction(work, verb, arg)
	}
	return s.refuse("unknown command")
}

// capa lists what may be used now (RFC 2449, section 5).
func (s *session) capa() {
	s.reply("+OK capability list follows")
	if s.drop == nil && s.version != 0 {
		s.reply("USER")
		s.reply("SASL PLAIN")
	}
	if s.version == 0 {
		s.reply("STLS") // nobody logs in in the clear, so this is before login
	}
	for _, c := range []string{"TOP", "UIDL", "RESP-CODES", "AUTH-RESP-CODE", "PIPELINING", "IMPLEMENTATION msgw", "."} {
		s.reply(c)
	}
}

// finish lets go of the maildrop and of the connection, and logs the session.
func (s *session) finish(err error) {
	if s.drop != nil {
		s.takeAhead(none)
		// Before the answer to QUIT is flushed: who comes back at once finds it unlocked.
		s.drop.Close()
	}
	why := endClosed
	switch {
	case errors.As(err, &why):
	case errors.Is(err, lineproto.ErrPlaceGiven):
		why = endMadeRoom
	case errors.Is(err, os.ErrDeadlineExceeded):
		if why = endTimeout; !s.wait(false) {
			why = endStopped
		}
	}
	s.conn.CloseBy(time.Now().Add(closeTime))
	// Nothing more may follow half a message, not even the notice that TLS ends.
	if why != endUnreadable && why != endTLS && why != endDefect {
		// What fails here fails because the peer has gone, which is no news.
		_ = s.out.Flush()
		if s.tls != nil {
			_ = s.tls.Close()
		}
	}
	version := ""
	if s.version != 0 {
		version = tls.VersionName(s.version)
	}
	attrs := []any{"tls", version, "retrieved", s.retrieved, "deleted", s.removed, "octets", s.octets,
		"duration", time.Since(s.started), "outcome", string(why)}
	if why == endTLS {
		attrs = append(attrs, "err", err)
	}
	s.log.Info("pop3 session", attrs...)
}
