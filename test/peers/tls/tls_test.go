//go:build peers

// Package tls lets programs that nobody here wrote judge the TLS of a lab's doors:
// testssl.sh looks for what is weak, and OpenSSL sends and fetches mail by hand.
package tls

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"testing"
	"time"

	"msgw/internal/lab"
	"msgw/internal/lab/archive"
	"msgw/test/labtest"
	"msgw/test/peers"
)

var root = &peers.Root{Name: "tls", Packages: []string{"testssl.sh", "openssl"}}

func TestMain(m *testing.M) {
	(&peers.Suite{Roots: []*peers.Root{root}}).Main(m)
}

// labCA is in the root: what the lab's certificates are checked against.
const labCA = "/srv/ca.pem"

const patience = 60 * time.Second

// scene is a running lab.
type scene struct {
	*labtest.Lab
	file  lab.File
	trust *x509.CertPool
}

// TestTLS is one lab that all programs look at.
func TestTLS(t *testing.T) {
	root.Versions(t)
	l := peers.Lab(t, "--mailboxes", "8")
	s := &scene{Lab: l, file: l.File(), trust: x509.NewCertPool()}
	ca, err := os.ReadFile(s.file.CA)
	if err != nil {
		t.Fatal(err)
	}
	if !s.trust.AppendCertsFromPEM(ca) {
		t.Fatalf("%s holds no certificate", s.file.CA)
	}
	root.Write(t, labCA, string(ca), 0o644)
	t.Run("openssl s_client", func(t *testing.T) { openssl(t, s) })
	t.Run("testssl.sh", func(t *testing.T) { testssl(t, s) })
}

// door is where mail programs begin TLS at a site.
type door struct {
	name     string
	addr     string // of a site
	host     string // its name
	starttls string // the protocol, as openssl and testssl.sh call it; empty: TLS from the start
}

// doors returns those of a site.
func doors(n lab.NodeRow) []door {
	return []door{{"SMTP", n.SMTP, n.Host, "smtp"}, {"POP3", n.POP3, n.Host, "pop3"}, {"POP3S", n.POP3S, n.Host, ""}}
}

func (d door) ip() string {
	host, _, _ := net.SplitHostPort(d.addr)
	return host
}

func (d door) port() string {
	_, port, _ := net.SplitHostPort(d.addr)
	return port
}

// fetch empties a mailbox at a site and returns what was there.
func (s *scene) fetch(t *testing.T, n lab.NodeRow, b lab.Mailbox) (got [][]byte) {
	t.Helper()
	_, err := archive.Fetch(t.Context(), archive.Config{Address: n.POP3S, User: b.ID, Password: b.Password, Timeout: patience,
		TLS: &tls.Config{RootCAs: s.trust, ServerName: n.Host}}, true, func(_ string, msg []byte) error {
		got = append(got, bytes.Clone(msg))
		return nil
	})
	if err != nil {
		t.Fatalf("fetch from %s: %v", n.Name, err)
	}
	return got
}
