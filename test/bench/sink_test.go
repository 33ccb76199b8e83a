//go:build bench && peers

package bench

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-smtp"

	"msgw/test/labtest"
	"msgw/test/peers"
)

// serverName is in the certificate of every system but msgw, which makes its own.
const serverName = "mail.example.org"

// certificate writes a certificate and its key, both ECDSA on P-256 as those of msgw
// are, into a file of dir, and returns its path and what a client needs.
func certificate(t *testing.T, dir string) (path string, client *tls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	about := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: serverName}, DNSNames: []string{serverName},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(48 * time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, about, about, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	text := keyPEM(t, key)
	text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	path = filepath.Join(dir, "certificate.pem")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return path, &tls.Config{RootCAs: pool, ServerName: serverName}
}

func keyPEM(t *testing.T, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// directory makes a directory in dir.
func directory(t *testing.T, dir, name string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// answers waits until something accepts connections at addr.
func answers(t *testing.T, addr string) {
	t.Helper()
	labtest.Within(t, 30*time.Second, addr+" answers", func() error {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return err
		}
		return c.Close()
	})
}

// sink is a server that reads mail and stores nothing. One is made of go-smtp's server:
// what a Go receiver does before it stores. The other does as little as can be: what
// the wire and this load generator allow.
type sink struct {
	target
	bare bool
	g    *group
}

func newSink(bare bool, ip string) *sink {
	return &sink{target: target{addr: ip + ":25"}, bare: bare}
}

func (s *sink) start(t *testing.T) {
	s.g = newGroup(t, "sink")
	cert, client := certificate(t, t.TempDir())
	s.tls, s.to = client, user
	cmd := self(t, "sink", s.addr, cert, strconv.FormatBool(s.bare))
	defer s.g.adopt(t, cmd)()
	peers.Start(t, "sink", cmd)
	answers(t, s.addr)
}

func (s *sink) load(_ *testing.T, c cell, warm, measured time.Duration) *load {
	return s.send(c, warm, measured)
}

func (s *sink) settle(*testing.T, int)    {}
func (s *sink) take(*testing.T, int, int) {}
func (s *sink) group() *group             { return s.g }

// sinkProgram serves: address, certificate, whether bare.
func sinkProgram(args []string) error {
	cert, err := tls.LoadX509KeyPair(args[1], args[1])
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	if args[2] == "false" {
		srv := smtp.NewServer(smtp.BackendFunc(func(*smtp.Conn) (smtp.Session, error) { return forgetful{}, nil }))
		srv.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}, SessionTicketsDisabled: true}
		return srv.Serve(l)
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			if err := swallow(c, &cert); err != nil && !errors.Is(err, io.EOF) {
				fmt.Fprintln(os.Stderr, err)
			}
		}()
	}
}

// forgetful is a session that reads messages and forgets them.
type forgetful struct{}

func (forgetful) Reset()                               {}
func (forgetful) Logout() error                        { return nil }
func (forgetful) Mail(string, *smtp.MailOptions) error { return nil }
func (forgetful) Rcpt(string, *smtp.RcptOptions) error { return nil }
func (forgetful) Data(r io.Reader) error {
	_, err := io.Copy(io.Discard, r)
	return err
}

// swallow serves one connection.
func swallow(c net.Conn, cert *tls.Certificate) error {
	r, w := bufio.NewReaderSize(c, 64<<10), bufio.NewWriter(c)
	fmt.Fprint(w, "220 sink ESMTP\r\n")
	for {
		if r.Buffered() == 0 {
			if err := w.Flush(); err != nil {
				return err
			}
		}
		line, err := r.ReadString('\n')
		if err != nil {
			return err
		}
		switch verb := strings.ToUpper(line[:min(4, len(line))]); verb {
		case "EHLO":
			fmt.Fprint(w, "250-sink\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 STARTTLS\r\n")
		case "STAR":
			fmt.Fprint(w, "220 go ahead\r\n")
			if err := w.Flush(); err != nil {
				return err
			}
			c = tls.Server(c, &tls.Config{Certificates: []tls.Certificate{*cert}, SessionTicketsDisabled: true})
			r, w = bufio.NewReaderSize(c, 64<<10), bufio.NewWriter(c)
		case "DATA":
			fmt.Fprint(w, "354 go on\r\n")
			if err := w.Flush(); err != nil {
				return err
			}
			if err := skipMessage(r); err != nil {
				return err
			}
			fmt.Fprint(w, "250 2.0.0 forgotten\r\n")
		case "QUIT":
			fmt.Fprint(w, "221 2.0.0 bye\r\n")
			return w.Flush()
		default:
			fmt.Fprint(w, "250 2.0.0 ok\r\n")
		}
	}
}

// skipMessage reads up to the line that is a dot.
func skipMessage(r *bufio.Reader) error {
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		if bytes.Equal(line, []byte(".\r\n")) {
			return nil
		}
	}
}
