// Package archive is a mail archive as a POP3 server meets one: it logs in,
// fetches what is there and deletes what it has. It is strict: octets are taken as
// they come, and whatever RFC 1939 does not allow is an error instead of a guess.
// Every wait ends.
package archive

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"time"
)

// Config says which maildrop to empty, and how to get there.
type Config struct {
	Address string // host:port
	// TLS is used from the start, or after STLS. An empty ServerName stands for the
	// host in Address; nil for the system's roots.
	TLS      *tls.Config
	STLS     bool // start in clear and say STLS (RFC 2595); else TLS from the start
	User     string
	Password string
	Timeout  time.Duration // bound on each wait; zero: one minute
}

// Error is an -ERR.
type Error struct {
	Command string // that it answers, without arguments
	Code    string // extended response code without brackets, such as "AUTH", "IN-USE" or "SYS/TEMP" (RFC 2449 section 8, RFC 3206)
	Text    string
}

func (e *Error) Error() string {
	if e.Code != "" {
		return fmt.Sprintf("%s: -ERR [%s] %s", e.Command, e.Code, e.Text)
	}
	return fmt.Sprintf("%s: -ERR %s", e.Command, e.Text)
}

// ErrProtocol says that a server did what RFC 1939 does not allow. ErrOctets, that
// a message was not as long as listed.
var (
	ErrProtocol = errors.New("POP3 violated")
	ErrOctets   = errors.New("not the number of octets listed")
)

// Result says what one session did.
type Result struct {
	Listed  int   // messages in the maildrop
	Fetched int   // of which came whole and as long as listed
	Octets  int64 // of those
	Deleted int   // deleted, and QUIT answered +OK; else zero
}

// Fetch runs one session: it fetches every message, hands it to each, deletes it
// if each returned nil and remove is set, and says QUIT. msg belongs to each.
//
// A message that the server refuses to hand over, or that each does not take, is
// left where it is, and the session goes on; the error names the first of them
// once QUIT is said. Whatever else fails ends the session without QUIT, so that
// nothing is deleted. Result is valid in any case.
func Fetch(ctx context.Context, cfg Config, remove bool, each func(uidl string, msg []byte) error) (Result, error) {
	var res Result
	c, err := Dial(ctx, cfg)
	if err != nil {
		return res, err
	}
	defer c.Close()
	if err := c.Login(); err != nil {
		return res, err
	}
	messages, err := c.Messages()
	if err != nil {
		return res, err
	}
	res.Listed = len(messages)
	var left error
	deleted := 0
	for _, m := range messages {
		msg, err := c.Retrieve(m)
		var refusal *Error
		if errors.As(err, &refusal) {
			left = cmp.Or(left, fmt.Errorf("message %s: %w", m.UIDL, err))
			continue
		}
		if err != nil {
			return res, fmt.Errorf("message %s: %w", m.UIDL, err)
		}
		res.Fetched++
		res.Octets += int64(len(msg))
		if err := each(m.UIDL, msg); err != nil {
			left = cmp.Or(left, fmt.Errorf("message %s not taken: %w", m.UIDL, err))
			continue
		}
		if remove {
			if err := c.Delete(m); err != nil {
				return res, fmt.Errorf("message %s: %w", m.UIDL, err)
			}
			deleted++
		}
	}
	if err := c.Quit(); err != nil {
		return res, errors.Join(left, err)
	}
	res.Deleted = deleted
	return res, left
}
