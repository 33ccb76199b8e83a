package health

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/emersion/go-smtp"
	"github.com/miekg/dns"
)

// ProbeSMTP looks at a public SMTP port as a sender would: greeting, EHLO,
// STARTTLS, and a certificate for host. Who issued it is not asked: senders that
// care check it themselves, and status shows it. self is the name to say in EHLO; a
// node without one leaves it empty and says its address.
func ProbeSMTP(ctx context.Context, address, host, self string) error {
	conn, err := dial(ctx, address)
	if err != nil {
		return err
	}
	defer conn.Close()
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
	return cmp.Or(hello(c, conn, self), named)
}

// hello says EHLO and QUIT.
func hello(c *smtp.Client, conn net.Conn, self string) error {
	if self == "" {
		self = literal(conn.LocalAddr())
	}
	if err := c.Hello(self); err != nil {
		return fmt.Errorf("EHLO: %w", err)
	}
	if err := c.Quit(); err != nil {
		return fmt.Errorf("QUIT: %w", err)
	}
	return nil
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

// ProbeGreeting connects to a public SMTP port and waits for the greeting, which a node
// that hangs does not send.
func ProbeGreeting(ctx context.Context, address string) error {
	conn, err := dial(ctx, address)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	line, err := bufio.NewReaderSize(conn, 512).ReadSlice('\n') // RFC 5321 section 4.5.3.1.5
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return fmt.Errorf("greeting: %w", err)
	case !bytes.HasPrefix(line, []byte("220")):
		return fmt.Errorf("greeting: %q", bytes.TrimSpace(line))
	}
	_, err = conn.Write([]byte("QUIT\r\n"))
	return err
}

// ProbeAnchor connects to a TCP port outside of the appliance.
func ProbeAnchor(ctx context.Context, address string) error {
	conn, err := dial(ctx, address)
	if err != nil {
		return err
	}
	return conn.Close()
}

// dial connects, and gives the connection the deadline of ctx.
func dial(ctx context.Context, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	if d, ok := ctx.Deadline(); ok {
		conn.SetDeadline(d)
	}
	return conn, nil
}

// ProbeDNS asks a public DNS port for the SOA of the zone, by UDP and, if nothing or a truncated
// answer comes within half of the time, by TCP: a flood that is sent with this node's address
// uses up what its network is answered by UDP.
func ProbeDNS(ctx context.Context, address, zone string) error {
	r, err := AskDNS(ctx, address, zone, dns.TypeSOA)
	if err != nil {
		return err
	}
	if r.Rcode != dns.RcodeSuccess || !r.Authoritative || len(r.Answer) == 0 {
		return fmt.Errorf("SOA of %s: %s, authoritative %v", zone, dns.RcodeToString[r.Rcode], r.Authoritative)
	}
	return nil
}

// AskDNS asks a public DNS port a question, by UDP and then by TCP as ProbeDNS does.
func AskDNS(ctx context.Context, address, name string, qtype uint16) (*dns.Msg, error) {
	asking := ctx
	if end, ok := ctx.Deadline(); ok {
		var cancel func()
		asking, cancel = context.WithTimeout(ctx, time.Until(end)/2)
		defer cancel()
	}
	r, err := askDNS(asking, "udp", address, name, qtype)
	if ne := net.Error(nil); err == nil && r.Truncated || errors.As(err, &ne) && ne.Timeout() {
		r, err = askDNS(ctx, "tcp", address, name, qtype)
	}
	return r, err
}

func askDNS(ctx context.Context, network, address, name string, qtype uint16) (*dns.Msg, error) {
	m := new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype)
	m.RecursionDesired = false
	r, _, err := (&dns.Client{Net: network}).ExchangeContext(ctx, m, address)
	return r, err
}
