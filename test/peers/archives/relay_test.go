//go:build peers

package archives

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
	"io"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"msgw/internal/lab"
)

// authority is a CA.
type authority struct {
	pem  []byte
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{key: key, cert: &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "another CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}}
	der, err := x509.CreateCertificate(rand.Reader, a.cert, a.cert, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	a.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return a
}

// issue makes a certificate for a host.
func (a *authority) issue(t testing.TB, host string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
		NotBefore: a.cert.NotBefore, NotAfter: a.cert.NotAfter, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, leaf, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// relay stands between clients and a site on the site's own address, at another port,
// and holds a session at a point that the test chooses. It speaks TLS to both, with a
// certificate of the other CA, to see where a session is.
type relay struct {
	port int
	held chan struct{} // closed when a session is held

	at       point
	release  chan struct{} // closed to let the session go on
	mu       sync.Mutex
	conns    []net.Conn // bare ones, to be closed
	octets   int64      // to the client
	commands map[string]int
	once     sync.Once
	wg       sync.WaitGroup
}

// point is where a session is held: when so many octets went to the client, or, if
// that is zero, before QUIT of a session that deletes something.
type point struct{ octets int64 }

func (s *scene) relay(t testing.TB, n lab.NodeRow, at point) *relay {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(n.Addr, "0"))
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{port: l.Addr().(*net.TCPAddr).Port, held: make(chan struct{}), release: make(chan struct{}), at: at, commands: map[string]int{}}
	theirs := &tls.Config{Certificates: []tls.Certificate{s.other.issue(t, n.Host)}}
	ours := &tls.Config{RootCAs: s.trust, ServerName: n.Host}
	r.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // closed by the test
			}
			r.wg.Go(func() { r.serve(c, n.POP3S, theirs, ours) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		r.cut()
		r.wg.Wait()
	})
	return r
}

// serve relays one session until either side ends it.
func (r *relay) serve(client net.Conn, addr string, theirs, ours *tls.Config) {
	defer client.Close()
	server, err := net.Dial("tcp", addr)
	if err != nil {
		return
	}
	defer server.Close()
	r.mu.Lock()
	r.conns = append(r.conns, client, server)
	r.mu.Unlock()
	c, s := tls.Server(client, theirs), tls.Client(server, ours)
	done := make(chan struct{}, 2)
	r.wg.Go(func() { r.up(c, s); done <- struct{}{} })
	r.wg.Go(func() { r.down(c, s); done <- struct{}{} })
	<-done
}

// up relays commands.
func (r *relay) up(c, s io.ReadWriter) {
	in := bufio.NewReader(c)
	deletes := false
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		verb := strings.ToUpper(strings.Fields(line + " -")[0])
		deletes = deletes || verb == "DELE"
		if r.at.octets == 0 && verb == "QUIT" && deletes {
			r.hold()
		}
		r.mu.Lock()
		r.commands[verb]++
		r.mu.Unlock()
		if _, err := io.WriteString(s, line); err != nil {
			return
		}
	}
}

// down relays responses.
func (r *relay) down(c, s io.ReadWriter) {
	p := make([]byte, 16<<10)
	for {
		n, err := s.Read(p)
		r.mu.Lock()
		r.octets += int64(n)
		reached := r.at.octets > 0 && r.octets >= r.at.octets
		r.mu.Unlock()
		if reached {
			r.hold()
		}
		if _, werr := c.Write(p[:n]); err != nil || werr != nil {
			return
		}
	}
}

func (r *relay) hold() {
	r.once.Do(func() { close(r.held) })
	<-r.release
}

// letGo lets a held session go on.
func (r *relay) letGo() {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-r.release:
	default:
		close(r.release)
	}
}

// cut breaks every connection off, as a network would.
func (r *relay) cut() {
	r.mu.Lock()
	for _, c := range r.conns {
		c.Close()
	}
	r.mu.Unlock()
	r.letGo()
}

// said returns how often a command was passed on.
func (r *relay) said(verb string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.commands[verb]
}

// awaitHeld waits until a session is held, or the client has ended.
func (r *relay) awaitHeld(t testing.TB, u *setup, ended <-chan error, out *bytes.Buffer) {
	t.Helper()
	select {
	case <-r.held:
	case err := <-ended:
		t.Fatalf("%s ended before it could be held: %v\n%s", u.name, err, out)
	case <-time.After(2 * time.Minute):
		t.Fatalf("%s was not held within two minutes", u.name)
	}
}
