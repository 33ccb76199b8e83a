package smtpnode

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"sync"
	"time"

	"github.com/emersion/go-smtp"

	"msgw/internal/journal"
)

var (
	// ErrUnknown says that a mailbox certainly does not exist.
	ErrUnknown = errors.New("no such mailbox")
	// ErrUncertain says that it is not known here, but may be elsewhere.
	ErrUncertain = errors.New("mailbox not known here yet")
)

// session accepts journal mail. It implements smtp.Session.
type session struct {
	srv  *Server
	conn *conn

	from string
	size int64 // declared; 0: not
	to   []recipient
}

var _ smtp.Session = (*session)(nil)

// recipient is a mailbox with the addresses that named it in this transaction.
type recipient struct {
	mailbox   Mailbox
	addresses []string
}

// Reset forgets the transaction.
func (s *session) Reset() { s.from, s.size, s.to = "", 0, nil }

// Logout ends the session.
func (s *session) Logout() error { return nil }

// Mail begins a message. It refuses, temporarily, what there is no room for.
func (s *session) Mail(from string, opts *smtp.MailOptions) error {
	if err := s.storable(opts.Size); err != nil {
		s.conn.log.Warn("mail refused", "at", "MAIL", "from", from, "err", err)
		return err
	}
	s.from, s.size = from, opts.Size
	return nil
}

// storable says why a message of size octets cannot be stored now, or nil.
func (s *session) storable(size int64) error {
	if err := s.srv.opt.Store.Err(); err != nil {
		return temporary(451, 3, 0, "cannot store mail now, try another host", err)
	}
	if err := s.srv.opt.Store.Room(size); err != nil {
		return storeError(err)
	}
	if s.srv.opt.Mailboxes.AllStrict() {
		return s.copyable()
	}
	return nil
}

// copyable says why no message can be taken now for a mailbox that wants two copies, or
// nil.
func (s *session) copyable() error {
	if err := s.srv.opt.Store.Refuse(true); err != nil {
		return temporary(451, 3, 0, "no second copy can be made now, try again later", err)
	}
	return nil
}

// Rcpt adds a recipient.
func (s *session) Rcpt(to string, _ *smtp.RcptOptions) error {
	m, err := s.srv.opt.Mailboxes.Mailbox(unquoted(to))
	switch {
	case errors.Is(err, ErrUnknown):
		err = &refusal{smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 1, 1}, Message: "no such mailbox here"}, err}
	case errors.Is(err, ErrUncertain):
		err = temporary(451, 1, 1, "mailbox not known here yet, try again later", err)
	case err != nil:
		err = temporary(451, 3, 0, errTemporary.Message, err)
	case m.Suspended:
		err = temporary(450, 2, 1, "mailbox is suspended, try again later", errors.New("mailbox is suspended"))
	default:
		err = s.allowed(m)
	}
	if err != nil {
		class := "refused-recipient"
		if errors.Is(err, ErrRestricted) {
			class = "restricted"
			s.srv.opt.Mailboxes.Restricted(m.ID, s.conn.peer.Addr().Unmap(), err.(*refusal).cause)
		}
		s.srv.metrics.messages.WithLabelValues(class).Inc()
		s.conn.log.Info("mail refused", "at", "RCPT", "from", s.from, "to", to, "err", err)
		return err
	}
	for i := range s.to {
		if s.to[i].mailbox.ID == m.ID {
			s.to[i].addresses = append(s.to[i].addresses, to)
			return nil
		}
	}
	s.to = append(s.to, recipient{m, []string{to}})
	return nil
}

// allowed says why a mailbox takes no mail in this transaction, or one more address, or
// nil.
func (s *session) allowed(m Mailbox) error {
	if err := m.check(s.conn, s.size); err != nil {
		return err
	}
	for _, to := range s.to {
		if of := to.mailbox; s.size == 0 && of.MaxSize != m.MaxSize || of.RejectDots != m.RejectDots {
			// What the one refuses for good in the end, the other may take.
			return temporary(452, 5, 3, "this mailbox takes other messages than the one before, send them apart", errors.New("another mailbox takes other messages"))
		}
		if to.mailbox.ID == m.ID && m.MaxRecipients > 0 && len(to.addresses) >= m.MaxRecipients {
			// RFC 5321 section 4.5.3.1.10: the sender sends the rest in another transaction.
			return temporary(452, 5, 3, "too many addresses of this mailbox in one message", errors.New("too many addresses of one mailbox"))
		}
	}
	if m.Strict {
		return s.copyable()
	}
	return nil
}

// limits returns what the strictest of the recipients says of a message as a whole. They
// differ in the size only if the sender declared another one than it sends.
func (s *session) limits() (size int64, rejectDots bool) {
	size = math.MaxInt64
	for _, to := range s.to {
		if to.mailbox.MaxSize > 0 {
			size = min(size, to.mailbox.MaxSize)
		}
		rejectDots = rejectDots || to.mailbox.RejectDots
	}
	return size, rejectDots
}

// draft is the copy of the message for one recipient.
type draft struct {
	to    recipient
	meta  journal.Meta
	body  Body
	plain io.WriteCloser // seals into body
}

// Data seals and stores the message for every recipient, all or none. It returns
// an *smtp.SMTPError with code 250 that names the message ids.
func (s *session) Data(r io.Reader) error {
	start := time.Now()
	drafts := make([]*draft, 0, len(s.to))
	defer func() {
		for _, d := range drafts {
			d.body.Discard() // nothing, once it is committed
		}
	}()
	buf := s.srv.buffers.Get().(*buffers)
	release := sync.OnceFunc(func() {
		buf.sealed.Reset(nil)
		s.srv.buffers.Put(buf)
	})
	defer release()
	most, rejectDots := s.limits()
	count := &octets{most: most}
	writers := []io.Writer{count}
	for _, to := range s.to {
		d, err := s.begin(to, start, buf)
		drafts = append(drafts, d)
		if err != nil {
			return s.refused("begin", err)
		}
		writers = append(writers, d.plain)
	}
	if _, err := io.CopyBuffer(io.MultiWriter(writers...), onlyReader{r}, buf.plain[:]); err != nil {
		return s.refused("receive", err)
	}
	dots, _ := r.(interface{ ambiguous() bool })
	ambiguous := dots != nil && dots.ambiguous()
	flags := count.result()
	if ambiguous {
		flags |= journal.AmbiguousDot
	}
	switch {
	case ambiguous && rejectDots:
		return s.refused("receive", errDots)
	case count.received > s.srv.opt.MaxReceived:
		return s.refused("receive", errLoop)
	}
	last := time.Now()
	msgs, strict := make([]Message, len(drafts)), false
	for i, d := range drafts {
		if err := d.plain.Close(); err != nil {
			return s.refused("seal", err)
		}
		d.meta.Octets, d.meta.BareLFs, d.meta.Flags = count.total, count.bareLFs, flags
		msgs[i] = Message{d.meta, d.body}
		strict = strict || d.to.mailbox.Strict || s.srv.opt.Mailboxes.Strict(d.to.mailbox.ID) // the strictest governs all of them
	}
	if err := buf.sealed.Flush(); err != nil {
		return s.refused("store", err)
	}
	for _, d := range drafts {
		if !s.srv.opt.Mailboxes.Seals(d.meta.Mailbox, d.meta.Key) {
			return s.refused("seal", temporary(451, 3, 0, "a mailbox was changed while the message came in, try again", errors.New("another key by now")))
		}
	}
	release() // a commit may take long
	ctx, cancel := s.conn.untilGrace()
	defer cancel()
	copies, err := s.srv.opt.Store.Commit(ctx, strict, msgs...)
	if err != nil {
		return s.refused("commit", err)
	}
	s.srv.metrics.seconds.Observe(time.Since(last).Seconds())
	s.srv.metrics.octets.Add(float64(count.total))
	var ids []string
	for _, d := range drafts {
		ids = append(ids, "stored "+d.meta.ID.String())
		s.srv.metrics.messages.WithLabelValues("accepted").Inc()
		s.conn.log.Info("mail accepted", "id", d.meta.ID.String(), "mailbox", d.to.mailbox.ID, "from", s.from,
			"octets", count.total, "copies", copies, "tls", s.conn.tls != nil, "report", d.meta.Flags&journal.JournalReport != 0,
			"ms", time.Since(start).Milliseconds())
	}
	return &smtp.SMTPError{Code: 250, EnhancedCode: smtp.EnhancedCode{2, 0, 0}, Message: strings.Join(ids, "\n")}
}

// buffers are what a message passes through. They are used again.
type buffers struct {
	plain [32 << 10]byte
	// sealed gathers what is sealed for the only recipient. Most messages fit, so their
	// body comes in one piece, and is not moved to where there is more room.
	sealed *bufio.Writer
}

func newBuffers() any { return &buffers{sealed: bufio.NewWriterSize(nil, 128<<10)} }

// onlyReader hides every method but Read, so that buf is used.
type onlyReader struct{ io.Reader }

// begin opens the sealed copy of one recipient, to be discarded even if that fails, and writes its trace block: what is
// known of the transfer, which belongs beside the message and not into it.
func (s *session) begin(to recipient, now time.Time, buf *buffers) (*draft, error) {
	id := journal.NewID()
	d := &draft{to: to, body: s.srv.opt.Store.NewBody(id)}
	dst := io.Writer(d.body)
	if len(s.to) == 1 {
		buf.sealed.Reset(d.body)
		dst = buf.sealed
	}
	var err error
	if d.plain, err = s.srv.recipients.Writer(dst, to.mailbox.Recipient); err != nil {
		return d, err
	}
	trace := s.trace(id, to, now)
	if _, err := io.WriteString(d.plain, trace); err != nil {
		return d, err
	}
	d.meta = journal.Meta{ID: id, Mailbox: to.mailbox.ID, Key: to.mailbox.Key, Received: now.UTC(), Trace: int64(len(trace))}
	return d, nil
}

// trace writes the trace block as header lines, the last of them empty. Its first
// line binds the sealed octets to the record that holds them.
func (s *session) trace(id journal.ID, to recipient, now time.Time) string {
	var b strings.Builder
	b.WriteString(journal.TraceBinding(id, to.mailbox.ID))
	fmt.Fprintf(&b, "Return-Path: <%s>\r\n", s.from) // RFC 5321 section 4.4
	with := "SMTP"
	switch { // RFC 3848, RFC 6531 section 4.3
	case s.conn.mail.UTF8:
		with = "UTF8SMTP"
	case s.conn.esmtp:
		with = "ESMTP"
	}
	if t := s.conn.tls; t != nil {
		with += "S\r\n\t(" + tls.VersionName(t.Version) + " " + tls.CipherSuiteName(t.CipherSuite) + ")"
	}
	forOne := ""
	if len(to.addresses) == 1 {
		forOne = fmt.Sprintf("\r\n\tfor <%s>", to.addresses[0])
	}
	fmt.Fprintf(&b, "Received: from %s (%s)\r\n\tby %s with %s id %s%s;\r\n\t%s\r\n", hostName(s.conn.helo), literal(s.conn.peer.Addr()),
		s.srv.opt.Host, with, id, forOne, now.Format(time.RFC1123Z))
	fmt.Fprintf(&b, "X-Envelope-From: <%s>\r\n", s.from)
	for _, a := range to.addresses {
		fmt.Fprintf(&b, "X-Envelope-To: <%s>\r\n", Original(a))
	}
	b.WriteString("\r\n")
	return b.String()
}

// refused logs why a message was not stored and returns what to tell the sender.
func (s *session) refused(at string, err error) error {
	var se *smtp.SMTPError
	class := "refused"
	switch {
	case errors.As(err, &se):
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, errAborted):
		class = "incomplete"
	default:
		err = storeError(err)
	}
	s.srv.metrics.messages.WithLabelValues(class).Inc()
	s.conn.log.Warn("mail not stored", "at", at, "from", s.from, "recipients", len(s.to), "err", err)
	return err
}

// refusal is an answer to the sender with the cause that only the log sees.
type refusal struct {
	smtp.SMTPError
	cause error
}

func (r *refusal) Error() string { return fmt.Sprintf("%d: %v", r.Code, r.cause) }
func (r *refusal) Unwrap() []error {
	return []error{&r.SMTPError, r.cause}
}

func temporary(code, subject, detail int, text string, cause error) error {
	return &refusal{smtp.SMTPError{Code: code, EnhancedCode: smtp.EnhancedCode{4, subject, detail}, Message: text}, cause}
}

// storeError makes the answer for trouble of ours: always a temporary one.
func storeError(err error) error {
	if errors.Is(err, journal.ErrDiskFull) {
		return temporary(452, 3, 1, "no room for this message now, try another host", err)
	}
	return temporary(451, 3, 0, errTemporary.Message, err)
}
