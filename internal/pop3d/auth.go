package pop3d

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"msgw/internal/lineproto"
)

// startTLS makes the handshake. It returns endTLS with its cause.
func (s *session) startTLS(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.srv.options.HandshakeTime)
	defer cancel()
	c := tls.Server(s.conn, s.srv.tls)
	if err := c.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("%w: %w", endTLS, err)
	}
	version := c.ConnectionState().Version
	if version < tls.VersionTLS12 { // a tls.Config of GetConfigForClient may allow it
		return fmt.Errorf("%w: %s", endTLS, tls.VersionName(version))
	}
	s.tls, s.version = c, version
	s.use(c)
	return nil
}

// stls answers STLS (RFC 2595, section 4). What came in behind it in the clear
// may be anybody's, so it ends the session; what comes later fails the handshake.
func (s *session) stls(ctx context.Context) error {
	if s.version != 0 {
		return s.refuse("TLS is active already")
	}
	if s.in.Buffered() > 0 {
		s.reply("-ERR nothing may follow STLS before its answer")
		return endInjected
	}
	s.reply("+OK begin TLS")
	if err := s.out.Flush(); err != nil {
		return err
	}
	return s.startTLS(ctx)
}

// mayLogin refuses a login before TLS and a second one.
func (s *session) mayLogin() (bool, error) {
	switch {
	case s.version == 0:
		return false, s.refuse("TLS is required, use STLS first")
	case s.drop != nil:
		return false, s.refuse("already logged in")
	}
	return true, nil
}

// name answers USER, alike whether or not there is such a mailbox.
func (s *session) name(user string) error {
	if ok, err := s.mayLogin(); !ok {
		return err
	}
	if user == "" {
		return s.refuse("USER needs a mailbox")
	}
	s.user = user
	s.reply("+OK password, please")
	return nil
}

// pass answers PASS. Spaces belong to the password (RFC 1939, section 7).
func (s *session) pass(ctx context.Context, password string) error {
	if ok, err := s.mayLogin(); !ok {
		return err
	}
	user := s.user
	switch s.user = ""; {
	case user == "":
		return s.refuse("USER comes before PASS")
	case password == "":
		return s.refuse("PASS needs a password")
	}
	return s.login(ctx, user, password)
}

// auth answers AUTH (RFC 5034, section 4).
func (s *session) auth(ctx context.Context, arg string) error {
	if ok, err := s.mayLogin(); !ok {
		return err
	}
	mechanism, initial, hasInitial := strings.Cut(arg, " ")
	if !strings.EqualFold(mechanism, "PLAIN") {
		return s.refuse("the mechanism is PLAIN")
	}
	if !hasInitial {
		s.reply("+ ")
		var err error
		if initial, err = s.readLine(); errors.Is(err, lineproto.ErrLineTooLong) {
			return s.refuse("line too long")
		} else if err != nil {
			return err
		}
		if initial == "*" {
			return s.refuse("cancelled")
		}
	} else if initial == "=" {
		initial = "" // that is how it is written here
	}
	user, password, ok := plain(initial)
	if !ok {
		return s.refuse("not a PLAIN response")
	}
	return s.login(ctx, user, password)
}

// plain takes a response of SASL PLAIN apart (RFC 4616, section 2). Who logs in
// may only act as himself.
func plain(response string) (user, password string, ok bool) {
	raw, err := base64.StdEncoding.Strict().DecodeString(response)
	if err != nil {
		return "", "", false
	}
	parts := bytes.Split(raw, []byte{0})
	if len(parts) != 3 || len(parts[1]) == 0 || len(parts[2]) == 0 {
		return "", "", false
	}
	if len(parts[0]) != 0 && !bytes.Equal(parts[0], parts[1]) {
		return "", "", false
	}
	return string(parts[1]), string(parts[2]), true
}

// login opens the maildrop.
func (s *session) login(ctx context.Context, user, password string) error {
	if !s.srv.throttle.allow(s.peer, user) {
		return s.loginFailed(ctx, user, loginThrottled, nil)
	}
	drop, err := s.srv.options.Maildrops.Login(ctx, user, password)
	switch {
	case err == nil:
	case errors.Is(err, ErrCredentials):
		s.srv.throttle.failed(s.peer, user)
		return s.loginFailed(ctx, user, loginCredentials, nil)
	case errors.Is(err, ErrInUse):
		return s.loginFailed(ctx, user, loginInUse, nil)
	default:
		return s.loginFailed(ctx, user, loginTemporary, err)
	}
	s.srv.throttle.succeeded(s.peer, user)
	s.srv.metrics.logins.WithLabelValues(loginOK).Inc()
	s.conn.Known()
	s.conn.SetLimits(lineproto.Deadlines{Idle: s.srv.options.Idle, Write: s.srv.options.WriteTime})
	s.drop, s.list, s.expected = drop, drop.Messages(), none
	s.log = s.log.With("mailbox", user)
	s.restore()
	s.reply("+OK " + strconv.Itoa(len(s.list)) + " messages")
	return nil
}

// loginFailed answers a failed login (RFC 2449, section 8.1.2; RFC 3206), a wrong
// one after a while that grows.
func (s *session) loginFailed(ctx context.Context, user, result string, cause error) error {
	s.logins++
	s.srv.metrics.logins.WithLabelValues(result).Inc()
	attrs := []any{"user", quoted(user), "result", result}
	if cause != nil {
		attrs = append(attrs, "err", cause)
	}
	s.log.Warn("pop3 login failed", attrs...)

	answer := "-ERR [SYS/TEMP] cannot open the maildrop now"
	switch result {
	case loginInUse:
		answer = "-ERR [IN-USE] another session has the maildrop open"
	case loginCredentials:
		answer = "-ERR [AUTH] unknown mailbox or wrong password"
	case loginThrottled:
		answer = "-ERR [SYS/TEMP] too many failed logins, come back later"
	}
	if result == loginCredentials || result == loginThrottled {
		err := s.conn.Pause(ctx, time.Duration(s.logins)*s.srv.options.FailureDelay)
		switch {
		case ctx.Err() != nil:
			return endStopped
		case err != nil:
			return err
		}
	}
	s.reply(answer)
	if s.logins >= maxLogins {
		return endLogins
	}
	return nil
}

// quoted makes what a stranger sent fit for a log.
func quoted(user string) string {
	const most = 64
	if len(user) > most {
		return strconv.Quote(user[:most]) + "..."
	}
	return strconv.Quote(user)
}
