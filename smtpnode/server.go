// Package smtpnode is the journal receiver: SMTP on the wire, and what is
// accepted from whom.
//
// It promises: a 250 for a message is sent only after Store.Commit returned nil
// for every recipient; the octets committed are the octets the sender sent; a
// connection that ends inside a message never commits it; whatever may be better
// later is answered with a 4xx code.
//
// Sessions follow the contract of github.com/emersion/go-smtp; the engine that
// drives them is this package's own and synchronous, because go-smtp's server
// delivers a cut-off BDAT LAST as a complete message (see upstream_test.go).
package smtpnode

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/emersion/go-smtp"
	"github.com/prometheus/client_golang/prometheus"

	"msgw/internal/journal"
	"msgw/internal/lineproto"
	"msgw/internal/seal"
)

// Mailboxes finds the mailbox that an address names.
type Mailboxes interface {
	// Mailbox looks up the address as the sender wrote it, without brackets and
	// quotes. The error is ErrUnknown if the mailbox certainly does not exist, ErrUncertain if
	// another node may know better.
	Mailbox(address string) (Mailbox, error)
	// AllStrict returns whether the policy of every mailbox is strict. What cannot be
	// taken is then refused at MAIL.
	AllStrict() bool
	// Strict returns whether the policy of a mailbox is strict now: it may have become so
	// while the message came in.
	Strict(id string) bool
	// Seals returns whether mail for a mailbox is still sealed to a key: a reset of the
	// password makes another one, and what is sealed to the one before is locked.
	Seals(id, key string) bool
	// Offer returns what clients are told now, whatever the mailbox.
	Offer() Offer
	// Restricted hears of mail for a mailbox that its Restrictions refused, so that an
	// operator can be told.
	Restricted(id string, peer netip.Addr, why error)
}

// Mailbox is what the receiver needs to know of one.
type Mailbox struct {
	ID        string
	Suspended bool
	Strict    bool   // never taken with one copy only
	Key       string // id of the active key
	Recipient string // its public half, an age recipient
	Restrictions
}

// Store makes messages durable.
type Store interface {
	NewBody(journal.ID) Body
	// Commit returns once every message is as durable as promised, under the strict
	// policy or the other one, and how many copies there are of each at least. It ends
	// with ctx.
	Commit(ctx context.Context, strict bool, ms ...Message) (copies int, err error)
	// Refuse returns why no message under the policy can be taken now, or nil.
	Refuse(strict bool) error
	// Room returns why a message of size octets cannot be taken now, or nil.
	Room(size int64) error
	// Err returns why nothing at all can be taken, or nil.
	Err() error
}

// Body collects the sealed octets of one message of a Store.
type Body interface {
	io.Writer
	// Discard drops a body that was not committed. It is safe to call always.
	Discard()
}

// Message is what a Store commits.
type Message struct {
	Meta journal.Meta
	Body Body
}

// Options of a Server. Zero limits mean the defaults.
type Options struct {
	Host      string // greeted with
	TLS       *tls.Config
	Mailboxes Mailboxes
	Store     Store
	Log       *slog.Logger
	Metrics   prometheus.Registerer // nil: none

	MaxSize       int64 // octets of a message; default DefaultMaxSize
	MaxRecipients int   // per message; default DefaultMaxRecipients
	MaxErrors     int   // commands refused for good before 421; default 3
	MaxIdle       int   // commands without an accepted message before 421, but for RCPT; default 200
	MaxReceived   int   // Received fields in a message's header; default 100 (RFC 5321 section 6.3)
	Limits        lineproto.Limits
	Deadlines     lineproto.Deadlines
	TLSTime       time.Duration // for the handshake; default 30 s
	Grace         time.Duration // for transfers under way at a stop; default 10 s
}

// Defaults of Options and Offer.
const (
	DefaultMaxSize       = 250 << 20 // octets
	DefaultMaxRecipients = 100       // RFC 5321 section 4.5.3.1.8
)

// maxLine is the longest command line: RFC 5321 section 4.5.3.1.4 asks for 512
// octets, extensions for more (RFC 6531 section 3.4).
const maxLine = 2048

// Server receives mail on listeners.
type Server struct {
	opt        Options
	metrics    *metrics
	recipients seal.Recipients
	buffers    sync.Pool // of *buffers
	// newSession makes the session of a connection; tests put others here.
	newSession func(*conn) smtp.Session
}

func orDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// New returns a server that does not listen yet.
func New(opt Options) *Server {
	orDefault(&opt.MaxSize, DefaultMaxSize)
	orDefault(&opt.MaxRecipients, DefaultMaxRecipients)
	orDefault(&opt.MaxErrors, 3)
	orDefault(&opt.MaxIdle, 200)
	orDefault(&opt.MaxReceived, 100)
	orDefault(&opt.Limits.Total, 1000)
	orDefault(&opt.Limits.PerAddress, 64)
	orDefault(&opt.Limits.PerNetwork, 256)
	if opt.Limits.Large == nil {
		opt.Limits.Large = FromPreset
	}
	orDefault(&opt.Deadlines, lineproto.Deadlines{Idle: 5 * time.Minute, Write: time.Minute, Session: 4 * time.Hour, MinRate: 1 << 10, RateGrace: time.Minute})
	orDefault(&opt.TLSTime, 30*time.Second)
	orDefault(&opt.Grace, 10*time.Second)
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.TLS != nil {
		opt.TLS = opt.TLS.Clone()
		// Exchange Online stalls on a Go server that resumes sessions:
		// https://github.com/golang/go/issues/70232
		opt.TLS.SessionTicketsDisabled = true
		opt.TLS.MinVersion = max(opt.TLS.MinVersion, tls.VersionTLS12)
	}
	s := &Server{opt: opt, metrics: newMetrics(opt.Metrics)}
	s.buffers.New = newBuffers
	s.newSession = func(c *conn) smtp.Session { return &session{srv: s, conn: c} }
	return s
}

// Serve receives mail on l until ctx ends; then no connection is accepted, idle
// ones are told 421, transfers under way have Options.Grace to finish, and nothing
// is acknowledged after Serve returned.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ls := lineproto.Server{Handler: s, Limits: s.opt.Limits, Log: s.opt.Log}
	return ls.Serve(ctx, l)
}

// Refuse answers a connection beyond the limits; see lineproto.Handler.
func (s *Server) Refuse(c net.Conn) {
	s.metrics.refused.Inc()
	c.Write([]byte("421 4.7.0 " + s.opt.Host + " too many connections, try again later\r\n"))
}
