//go:build peers

// Package acme has a lab certified by a certificate authority that nobody here wrote.
package acme

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/textproto"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"msgw/internal/lab"
	"msgw/internal/lab/archive"
	"msgw/internal/lab/report"
	"msgw/internal/lab/sender"
	"msgw/test/labtest"
	"msgw/test/peers"
)

const pebbleModule = "github.com/letsencrypt/pebble/v2/cmd/pebble@v2.10.1"

var (
	base    = &peers.Root{Name: "acme", Packages: []string{"nsd", "unbound", "openssl", "ldnsutils"}}
	postfix = &peers.Root{Name: "postfix", Packages: []string{"postfix"}}
)

func TestMain(m *testing.M) {
	(&peers.Suite{Roots: []*peers.Root{base, postfix}, Programs: map[string]string{"pebble": pebbleModule}}).Main(m)
}

// TestIssue lets both sites of a lab get certificates from a real ACME server by
// DNS-01, answered by the sites themselves and looked up through a real resolver and a
// delegated zone. SMTP and POP3 serve them then, also after a restart and with the
// directory gone, and without the directory the sites go back to their own CA's.
func TestIssue(t *testing.T) {
	base.Versions(t)
	t.Logf("judged by %s", pebbleModule)

	// The zone must be delegated before a certificate can be had, as in earnest; the
	// addresses are the same in every lab.
	plain := peers.Lab(t)
	peers.ServeTree(t, base, plain.File())
	peers.Unbound(t, base, 0)
	p := startPebble(t)
	if out, err := plain.End(syscall.SIGTERM); err != nil {
		t.Fatalf("lab: %v\n%s", err, out)
	}

	l := peers.Lab(t, "--acme", directory, "--acme-root", p.root, "--acme-issuer-root", p.issuer)
	f := l.File()
	issued := pool(p.issuer)
	serials := map[string]string{}
	for _, n := range f.Nodes {
		labtest.Within(t, 2*time.Minute, n.Name+" serves a certificate that Pebble issued", func() error {
			cert, err := smtpCertificate(t.Context(), n, issued)
			if err == nil {
				serials[n.Name] = cert.SerialNumber.String()
			}
			return err
		})
		for _, stls := range []bool{true, false} {
			if cert, err := pop3Certificate(t.Context(), n, issued, stls); err != nil || cert.SerialNumber.String() != serials[n.Name] {
				t.Errorf("%s: POP3 with STLS %v serves another certificate: %v", n.Name, stls, err)
			}
		}
		if out, err := l.Msgw("status", "--dir", n.Dir); err != nil || !strings.Contains(out, "ACME") {
			t.Errorf("status: %v\n%s", err, out)
		}
		checkByOpenSSL(t, n, p.issuer)
	}

	// ca in lab.json trusts what is served now, and what is served without the directory.
	deliverAndFetch(t, f)

	// A restarted site serves what it holds, with the directory gone.
	p.Stop(syscall.SIGKILL)
	for _, verb := range []string{"stop", "start"} {
		if out, err := l.Msgw("lab", verb, "msgw2", "--dir", l.Dir); err != nil {
			t.Fatalf("%s: %v %s", verb, err, out)
		}
	}
	var cert *x509.Certificate
	labtest.Within(t, 30*time.Second, "msgw2 answers again", func() (err error) {
		cert, err = smtpCertificate(t.Context(), f.Nodes[1], nil)
		return err
	})
	if got := cert.SerialNumber.String(); got != serials["msgw2"] {
		t.Errorf("after a restart msgw2 serves %s, before %s", got, serials["msgw2"])
	}
	deliverAndFetch(t, f)

	if out, err := l.Msgw("acme", "--dir", f.Nodes[0].Dir); err != nil {
		t.Fatalf("acme: %v %s", err, out)
	}
	for _, n := range f.Nodes {
		labtest.Within(t, 30*time.Second, n.Name+" goes back to its own CA", func() error {
			if cert, err := smtpCertificate(t.Context(), n, nil); err != nil || cert.SerialNumber.String() == serials[n.Name] {
				return fmt.Errorf("serves Pebble's still: %w", err)
			}
			return nil
		})
	}
	deliverAndFetch(t, f)

	b, err := os.ReadFile(p.Log)
	if err != nil {
		t.Fatal(err)
	}
	issues, refusals := strings.Count(string(b), "Issued certificate serial"), strings.Count(string(b), "set INVALID")
	if issues != len(f.Nodes) || refusals != 0 {
		t.Errorf("Pebble issued %d certificates and refused %d challenges, expected %d and none:\n%s", issues, refusals, len(f.Nodes), b)
	}
}

// smtpCertificate returns what a site shows after STARTTLS, checked against roots for
// its host name; nil roots: not checked.
func smtpCertificate(ctx context.Context, n lab.NodeRow, roots *x509.CertPool) (*x509.Certificate, error) {
	return certificate(ctx, n, n.SMTP, roots, "220", "EHLO judge.example.net", "250", "STARTTLS", "220")
}

func pop3Certificate(ctx context.Context, n lab.NodeRow, roots *x509.CertPool, stls bool) (*x509.Certificate, error) {
	if !stls {
		return certificate(ctx, n, n.POP3S, roots)
	}
	return certificate(ctx, n, n.POP3, roots, "+OK", "STLS", "+OK")
}

// certificate returns the one that connect was shown.
func certificate(ctx context.Context, n lab.NodeRow, addr string, roots *x509.CertPool, dialogue ...string) (*x509.Certificate, error) {
	conn, err := connect(ctx, n.Host, addr, roots, dialogue...)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0], nil
}

// connect connects, holds the dialogue (reply, command, reply, ...), and then speaks TLS
// to a host whose certificate is checked against roots; nil roots: not checked.
func connect(ctx context.Context, host, addr string, roots *x509.CertPool, dialogue ...string) (*tls.Conn, error) {
	d := net.Dialer{Timeout: 5 * time.Second}
	raw, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	raw.SetDeadline(time.Now().Add(20 * time.Second))
	conn := tls.Client(raw, &tls.Config{RootCAs: roots, ServerName: host, InsecureSkipVerify: roots == nil})
	if err = talk(textproto.NewConn(raw), dialogue...); err == nil {
		err = conn.HandshakeContext(ctx)
	}
	if err != nil {
		raw.Close()
		return nil, err
	}
	return conn, nil
}

// talk holds a dialogue: reply, command, reply, and so on; an empty reply is not waited for.
func talk(c *textproto.Conn, dialogue ...string) error {
	for i, line := range dialogue {
		if i%2 == 1 {
			if err := c.PrintfLine("%s", line); err != nil {
				return err
			}
			continue
		}
		for line != "" {
			reply, err := c.ReadLine()
			if err != nil {
				return err
			}
			if !strings.HasPrefix(reply, line) {
				return fmt.Errorf("%q, expected %s", reply, line)
			}
			if len(reply) < 4 || reply[3] != '-' {
				break
			}
		}
	}
	return nil
}

// checkByOpenSSL lets openssl verify chain and name, as a second opinion.
func checkByOpenSSL(t *testing.T, n lab.NodeRow, roots string) {
	t.Helper()
	for _, at := range [][]string{{n.SMTP, "-starttls", "smtp"}, {n.POP3, "-starttls", "pop3"}, {n.POP3S}} {
		args := append([]string{"s_client", "-connect", at[0], "-CAfile", roots, "-verify_hostname", n.Host, "-verify_return_error", "-brief"}, at[1:]...)
		cmd := base.Command(t.Context(), "/usr/bin/openssl", args...)
		cmd.Stdin = strings.NewReader("QUIT\r\n")
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "Verification: OK") {
			t.Errorf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// deliverAndFetch sends a message by MX and fetches it from whichever site took it,
// both with certificates checked against ca in lab.json.
func deliverAndFetch(t *testing.T, f lab.File) {
	t.Helper()
	roots := pool(f.CA)
	limits := sender.Timeouts{Query: 5 * time.Second, Connect: 10 * time.Second, Reply: 30 * time.Second, Block: 30 * time.Second, Final: 30 * time.Second}
	s, err := sender.New(sender.Config{Servers: []string{f.Nodes[0].DNS, f.Nodes[1].DNS}, Helo: "journal.example.net",
		TLS: &tls.Config{RootCAs: roots}, RequireTLS: true, Timeouts: limits})
	if err != nil {
		t.Fatal(err)
	}
	box := f.Mailboxes[0]
	msg := report.New(1, 1, 4000)
	if _, err := s.Send(t.Context(), sender.Envelope{To: []string{box.Address}}, msg); err != nil {
		t.Fatal(err)
	}
	got := 0
	for _, n := range f.Nodes {
		_, err := archive.Fetch(t.Context(), archive.Config{Address: n.POP3S, User: box.ID, Password: box.Password,
			TLS: &tls.Config{RootCAs: roots, ServerName: n.Host}}, true, func(_ string, b []byte) error {
			if string(b) != string(msg) {
				return fmt.Errorf("%s hands over other octets than were sent", n.Name)
			}
			got++
			return nil
		})
		if err != nil {
			t.Fatalf("%s: %v", n.Name, err)
		}
	}
	if got != 1 {
		t.Fatalf("fetched %d messages, sent 1", got)
	}
}
