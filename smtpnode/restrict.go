package smtpnode

import (
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/emersion/go-smtp"
)

// Restrictions say from whom a mailbox takes mail, and how much in one message. The
// zero value adds nothing to what Options and Offer say.
type Restrictions struct {
	Allow         []netip.Prefix // of senders; empty: any
	RequireTLS    bool
	ClientNames   []string       // the client's certificate must be for one of them; empty: none is needed
	ClientCAs     *x509.CertPool // that issued it; nil: those that the system trusts
	MaxSize       int64          // octets of a message; 0: no bound of its own
	MaxRecipients int            // addresses in one message that may name the mailbox; 0: no bound of its own
	RejectDots    bool           // refuse DATA that other servers may take for two messages
}

// Offer is what a client is told before it names a mailbox. Zero fields mean what
// Options say.
type Offer struct {
	MaxSize       int64 // octets of a message
	MaxRecipients int   // of a message
	// ClientCertificate: ask for one in the TLS handshake. A client that has none is
	// served as before.
	ClientCertificate bool
}

// ErrRestricted says that mail was refused because of Restrictions. What they refuse is
// refused for now, sizes excepted: a list may be wrong or out of date, a connection may
// have lost its TLS on the way, and the sender gives up at the first permanent answer.
var ErrRestricted = errors.New("restricted")

// check returns why a message that declares a size, 0 if none, is not taken over c.
func (r Restrictions) check(c *conn, size int64) error {
	peer := c.peer.Addr().Unmap().WithZone("")
	if len(r.Allow) > 0 && !slices.ContainsFunc(r.Allow, func(p netip.Prefix) bool { return p.Contains(peer) }) {
		return temporary(450, 7, 1, fmt.Sprintf("this mailbox takes no mail from %s", peer), fmt.Errorf("%w: %s is not in the allow list", ErrRestricted, peer))
	}
	if r.RequireTLS && c.tls == nil {
		return temporary(450, 7, 0, "this mailbox takes mail over TLS only", fmt.Errorf("%w: sent without TLS", ErrRestricted))
	}
	if err := r.checkClient(c); err != nil {
		return temporary(450, 7, 0, "this mailbox takes mail from other clients only, by their certificate", fmt.Errorf("%w: %w", ErrRestricted, err))
	}
	if r.MaxSize > 0 && size > r.MaxSize { // RFC 1870 section 6.1
		return &refusal{*errTooLarge, fmt.Errorf("%w: %d octets declared, at most %d are taken", ErrRestricted, size, r.MaxSize)}
	}
	return nil
}

// checkClient checks the client's certificate. Public CAs issue certificates for servers
// only, and mail servers show those as clients, so any use is right.
func (r Restrictions) checkClient(c *conn) error {
	if len(r.ClientNames) == 0 {
		return nil
	}
	if c.tls == nil || len(c.tls.PeerCertificates) == 0 {
		return errors.New("no client certificate")
	}
	chain := c.tls.PeerCertificates
	opts := x509.VerifyOptions{Roots: r.ClientCAs, Intermediates: x509.NewCertPool(), CurrentTime: time.Now(),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
	for _, ca := range chain[1:] {
		opts.Intermediates.AddCert(ca)
	}
	if _, err := chain[0].Verify(opts); err != nil {
		return fmt.Errorf("client certificate: %w", err)
	}
	for _, name := range r.ClientNames {
		if chain[0].VerifyHostname(name) == nil {
			return nil
		}
	}
	return fmt.Errorf("client certificate is for %s", cmp.Or(strings.Join(chain[0].DNSNames, ", "), chain[0].Subject.CommonName))
}

// errDots refuses what RejectDots does.
var errDots = &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 6, 0}, Message: "a lone dot between line ends that are not both CRLF"}

// errLoop refuses a message that goes round (RFC 5321 section 6.3).
var errLoop = &smtp.SMTPError{Code: 554, EnhancedCode: smtp.EnhancedCode{5, 4, 6}, Message: "too many Received fields, mail loop"}

func (c *conn) maxSize() int64     { return cmp.Or(c.offer.MaxSize, c.srv.opt.MaxSize) }
func (c *conn) maxRecipients() int { return cmp.Or(c.offer.MaxRecipients, c.srv.opt.MaxRecipients) }

// overshoot is how many recipients a sender may name beyond those that may be taken. It
// tries all that it has, is told 452 for the rest or that they are refused for now, and
// does the same with its next attempt: were the connection ended before DATA, the message
// would not come to those that were taken either (RFC 5321 section 4.5.3.1.10).
const overshoot = 1000
