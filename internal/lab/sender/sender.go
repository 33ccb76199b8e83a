// Package sender is the sending half of a mail server with one message in hand:
// it finds the hosts that take mail for a domain, tries them in the order that
// RFC 5321 section 5.1 wants, and says what became of the message. The octets it
// is given are the octets that arrive, bare CR and LF included, or there is an
// error. Every wait ends.
package sender

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"time"
)

// Config says how a Sender finds and speaks to its peers.
type Config struct {
	// Servers are name servers as host:port, asked in turn until one answers.
	Servers []string
	// Address maps an address from the DNS to where it is served, so that a lab
	// need not own port 25. Nil: port 25 of that address.
	Address func(netip.Addr) netip.AddrPort
	// Helo is the name given in EHLO. Empty: "localhost".
	Helo string
	// TLS is used for STARTTLS where a server offers it, with the MX host name as
	// the server name. Nil: never STARTTLS. A handshake that fails is tried again
	// in clear, unless RequireTLS.
	TLS        *tls.Config
	RequireTLS bool
	Timeouts   Timeouts
	// Shuffle orders hosts of equal preference and the addresses of a host. Nil:
	// at random, as RFC 5321 section 5.1 demands.
	Shuffle func(n int, swap func(i, j int))
}

// Timeouts bounds every wait. A zero field stands for its default, which is what
// RFC 5321 section 4.5.3.2 has where it says something.
type Timeouts struct {
	Query   time.Duration // for one name server to answer; 2 s
	Connect time.Duration // 30 s
	Reply   time.Duration // to the greeting, a command, a TLS handshake; 5 min
	Block   time.Duration // for the peer to take 64 KiB; 3 min
	Final   time.Duration // for the reply to the end of a message; 10 min
}

// Envelope is what a message is sent with.
type Envelope struct {
	From string   // empty for the null sender
	To   []string // at least one; all of one domain
	// Chunks sends the message with BDAT. Nil: DATA, which cannot carry a message
	// that does not end with CRLF.
	Chunks *Chunks
}

// Chunks says how a message is cut for BDAT (RFC 3030).
type Chunks struct {
	Sizes     []int // octets of each chunk, from the front again when used up; not all zero
	EmptyLast bool  // the last chunk is BDAT 0 LAST
	Pipelined bool  // no reply is waited for between chunks
}

// Result says where a message went.
type Result struct {
	Host       string         // MX host that took it
	Preference uint16         // its preference
	Addr       netip.AddrPort // where it was reached
	TLS        bool
	Accepted   []string // recipients that the host took the message for
	IDs        []string // message ids, where its reply says "stored <id>"
	Attempts   []*Error // what failed before, in order
}

// Error says why a message, or one of its recipients, was not taken.
type Error struct {
	Temporary     bool   // worth trying again later
	MaybeAccepted bool   // all of the message was sent and no reply came: it may have been taken
	Host          string // MX host; empty where none was found
	Stage         string // command or wait that failed
	Recipient     string // where the command was RCPT
	Code          int    // of the reply; zero where there was none
	Text          string // of the reply, lines joined by LF
	Err           error  // cause, where there was no reply

	next bool // another host may do better
}

func (e *Error) Error() string {
	var b strings.Builder
	if e.Host != "" {
		b.WriteString(e.Host + ": ")
	}
	b.WriteString(e.Stage)
	if e.Recipient != "" {
		b.WriteString(" <" + e.Recipient + ">")
	}
	if e.Code != 0 {
		fmt.Fprintf(&b, ": %d %s", e.Code, e.Text)
	}
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	if e.MaybeAccepted {
		b.WriteString(" (the message may have been accepted)")
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// Errors that an Error may wrap.
var (
	ErrEnvelope    = errors.New("invalid envelope")
	ErrNoFinalCRLF = errors.New("DATA cannot carry a message that does not end with CRLF")
	ErrNotOffered  = errors.New("not offered by the server")
	ErrNoMX        = errors.New("domain has no MX record")
	ErrNoSuchName  = errors.New("no such name")
	ErrNoAddress   = errors.New("host has no address")
	ErrProtocol    = errors.New("invalid reply")
)

// Sender sends messages. It may be used by several goroutines at once.
type Sender struct{ cfg Config }

// New returns a Sender; an unusable cfg is an error.
func New(cfg Config) (*Sender, error) {
	if len(cfg.Servers) == 0 {
		return nil, errors.New("sender: no name servers")
	}
	if cfg.RequireTLS && cfg.TLS == nil {
		return nil, errors.New("sender: TLS required but not configured")
	}
	if cfg.Address == nil {
		cfg.Address = func(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, 25) }
	}
	if cfg.Shuffle == nil {
		cfg.Shuffle = rand.Shuffle
	}
	if cfg.Helo == "" {
		cfg.Helo = "localhost"
	}
	t := &cfg.Timeouts
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&t.Query, 2 * time.Second},
		{&t.Connect, 30 * time.Second},
		{&t.Reply, 5 * time.Minute},
		{&t.Block, 3 * time.Minute},
		{&t.Final, 10 * time.Minute},
	} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	return &Sender{cfg}, nil
}

// Send sends msg once: to the first host of the recipients' domain that takes it.
// The next one is tried after a failed connection, a 4xx or 5xx greeting, a
// connection lost before the final reply, a TLS or CHUNKING that is wanted and
// not to be had, and any 4xx. A 5xx to a command ends it.
//
// The error is an *Error and nil only if every recipient was accepted. Where some
// were, Result says which, and no further host is tried. After several failures
// it is the last one, temporary or maybe accepted if any of them was.
func (s *Sender) Send(ctx context.Context, env Envelope, msg []byte) (Result, error) {
	domain, err := env.check(msg)
	if err != nil {
		return Result{}, &Error{Stage: "envelope", Err: err}
	}
	var res Result
	failed, fail := s.walk(ctx, domain, func(x *Session) *Error {
		var fail *Error
		res, fail = x.transfer(ctx, env, msg)
		// What became of the message is known; how the connection ends is not news.
		_ = x.close(ctx)
		if fail != nil {
			fail.next = fail.next && len(res.Accepted) == 0
		}
		return fail
	})
	res.Attempts = failed
	if fail != nil {
		return res, fail
	}
	return res, nil
}

// Dial connects to the first host of domain that greets and, where wanted, speaks
// TLS. The hosts are tried as by Send; the error is an *Error.
func (s *Sender) Dial(ctx context.Context, domain string) (*Session, error) {
	var x *Session
	failed, fail := s.walk(ctx, domain, func(got *Session) *Error {
		x = got
		return nil
	})
	if fail != nil {
		return nil, fail
	}
	x.failed = failed
	return x, nil
}

// walk connects to the hosts of domain in turn until use returns nil or an error
// that no other host can mend. It returns all that failed, and what to say if
// nothing succeeded.
func (s *Sender) walk(ctx context.Context, domain string, use func(*Session) *Error) (failed []*Error, fail *Error) {
	for t, err := range s.targets(ctx, domain) {
		if err == nil {
			var x *Session
			if x, err = s.connect(ctx, t); err == nil {
				err = use(x)
			}
			if err == nil {
				return failed, nil
			}
		}
		failed = append(failed, err)
		if !err.next || ctx.Err() != nil {
			break
		}
	}
	last := *failed[len(failed)-1]
	for _, e := range failed {
		last.Temporary = last.Temporary || e.Temporary && last.next
		last.MaybeAccepted = last.MaybeAccepted || e.MaybeAccepted
	}
	return failed, &last
}

// check returns the domain that env is for.
func (env Envelope) check(msg []byte) (string, error) {
	if len(env.To) == 0 {
		return "", fmt.Errorf("%w: no recipient", ErrEnvelope)
	}
	domain := ""
	for _, a := range env.To {
		i := strings.LastIndexByte(a, '@')
		if i < 1 || i == len(a)-1 {
			return "", fmt.Errorf("%w: recipient %q", ErrEnvelope, a)
		}
		if d := strings.ToLower(a[i+1:]); domain == "" {
			domain = d
		} else if d != domain {
			return "", fmt.Errorf("%w: recipients of two domains", ErrEnvelope)
		}
	}
	for _, a := range append([]string{env.From}, env.To...) {
		if strings.ContainsFunc(a, func(r rune) bool { return r < ' ' || r == 0x7f || r == '<' || r == '>' }) {
			return "", fmt.Errorf("%w: address %q", ErrEnvelope, a)
		}
	}
	if c := env.Chunks; c != nil {
		sum := 0
		for _, n := range c.Sizes {
			if n < 0 {
				return "", fmt.Errorf("%w: chunk of %d octets", ErrEnvelope, n)
			}
			sum += n
		}
		if sum == 0 {
			return "", fmt.Errorf("%w: chunks of no octets", ErrEnvelope)
		}
	} else if len(msg) > 0 && !bytes.HasSuffix(msg, crlf) {
		return "", ErrNoFinalCRLF
	}
	return domain, nil
}
