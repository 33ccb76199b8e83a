package health

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"

	"github.com/emersion/go-smtp"
	"github.com/miekg/dns"
)

// ProbeSMTP looks at a public SMTP port as a sender would: greeting, EHLO,
// STARTTLS, and a certificate for host. Who issued it is not asked: senders that
// care check it themselves, and status shows it. self is the name to say in EHLO; a
// node without one leaves it empty and says its address.
func ProbeSMTP(ctx context.Context, address, host, self string) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if d, ok := ctx.Deadline(); ok {
		conn.SetDeadline(d)
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	var named error
	c, err := smtp.NewClientStartTLS(conn, &tls.Config{ServerName: host, InsecureSkipVerify: true,
		VerifyConnection: func(st tls.ConnectionState) error {
			named = st.PeerCertificates[0].VerifyHostname(host)
			return nil
		}})
	if err != nil {
		return fmt.Errorf("STARTTLS: %w", err)
	}
	if self == "" {
		self = literal(conn.LocalAddr())
	}
	if err := c.Hello(self); err != nil {
		return fmt.Errorf("EHLO: %w", err)
	}
	if err := c.Quit(); err != nil {
		return fmt.Errorf("QUIT: %w", err)
	}
	return named
}

// literal is what a host without a name says in EHLO (RFC 5321 section 4.1.3).
func literal(a net.Addr) string {
	ap, err := netip.ParseAddrPort(a.String())
	switch ip := ap.Addr().Unmap().WithZone(""); {
	case err != nil:
		return "localhost"
	case ip.Is4():
		return "[" + ip.String() + "]"
	default:
		return "[IPv6:" + ip.String() + "]"
	}
}

// ProbeDNS asks a public DNS port for the SOA of the zone.
func ProbeDNS(ctx context.Context, address, zone string) error {
	m := new(dns.Msg).SetQuestion(dns.Fqdn(zone), dns.TypeSOA)
	m.RecursionDesired = false
	r, _, err := new(dns.Client).ExchangeContext(ctx, m, address)
	if err != nil {
		return err
	}
	if r.Rcode != dns.RcodeSuccess || !r.Authoritative || len(r.Answer) == 0 {
		return fmt.Errorf("SOA of %s: %s, authoritative %v", zone, dns.RcodeToString[r.Rcode], r.Authoritative)
	}
	return nil
}
