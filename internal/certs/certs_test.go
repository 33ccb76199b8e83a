package certs

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/mholt/acmez/v3/acme"

	"msgw/internal/ca"
)

type cluster struct {
	root string
	a    *ca.Authority
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	p, key, err := ca.New("c1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	a, err := ca.Open(p, key)
	if err != nil {
		t.Fatal(err)
	}
	return &cluster{p, a}
}

func (c *cluster) open(t *testing.T, dir string, names ...string) *Manager {
	t.Helper()
	m, err := Open(Options{Dir: dir, Names: names, Authority: func() (*ca.Authority, error) { return c.a, nil },
		Root: func() string { return c.root }, ACME: func() ACME { return ACME{} }, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func leaf(t *testing.T, m *Manager, name string) *x509.Certificate {
	t.Helper()
	c, err := m.TLS().GetCertificate(&tls.ClientHelloInfo{ServerName: name})
	if err != nil {
		t.Fatal(err)
	}
	return c.Leaf
}

func TestClusterCertificate(t *testing.T) {
	t.Parallel()
	c, dir := newCluster(t), t.TempDir()
	m := c.open(t, dir, "msgw1.example.org")
	first := leaf(t, m, "")
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(c.root))
	if _, err := first.Verify(x509.VerifyOptions{Roots: pool, DNSName: "msgw1.example.org"}); err != nil {
		t.Error(err)
	}
	if l := m.List(); len(l) != 1 || !l[0].Served || l[0].Source != "cluster CA" || !slices.Equal(l[0].Names, []string{"msgw1.example.org"}) {
		t.Errorf("list %+v", l)
	}
	if again := leaf(t, c.open(t, dir, "msgw1.example.org"), "other"); !again.Equal(first) {
		t.Error("a restart issued another certificate")
	}
	// Renewal keeps the key; a new name or another CA makes a new certificate.
	if err := m.renewLocal(time.Now().Add(ca.Life - ca.RenewBefore + time.Hour)); err != nil {
		t.Fatal(err)
	}
	second := leaf(t, m, "")
	if second.Equal(first) || !slices.Equal(second.RawSubjectPublicKeyInfo, first.RawSubjectPublicKeyInfo) {
		t.Error("renewal: not renewed, or with another key")
	}
	if got := leaf(t, c.open(t, dir, "mx.example.org"), ""); !slices.Equal(got.DNSNames, []string{"mx.example.org"}) {
		t.Errorf("after a change of name: %v", got.DNSNames)
	}
	d := newCluster(t)
	pool = x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(d.root))
	if _, err := leaf(t, d.open(t, dir, "mx.example.org"), "").Verify(x509.VerifyOptions{Roots: pool}); err != nil {
		t.Errorf("after a change of CA: %v", err)
	}
	// A certificate torn from its key is replaced, the key stays.
	if err := os.WriteFile(filepath.Join(dir, certFile), []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := leaf(t, c.open(t, dir, "mx.example.org"), ""); !slices.Equal(got.RawSubjectPublicKeyInfo, first.RawSubjectPublicKeyInfo) {
		t.Error("another key")
	}
	for _, f := range []string{hostKey, certFile} {
		if fi, err := os.Stat(filepath.Join(dir, f)); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", f, fi.Mode(), err)
		}
	}
}

// Whatever is wrong with the disk or the CA, there is a certificate, and it is said.
func TestAlwaysACertificate(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	const name = "msgw1.example.org"
	noCA := func(dir string) *Manager {
		t.Helper()
		m, err := Open(Options{Dir: dir, Names: []string{name}, Authority: func() (*ca.Authority, error) { return nil, errors.New("sealed to others") },
			Root: func() string { return c.root }, ACME: func() ACME { return ACME{} }, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	selfSigned := func(what string, m *Manager) {
		t.Helper()
		l := leaf(t, m, name)
		if err := l.VerifyHostname(name); err != nil || l.Issuer.CommonName != l.Subject.CommonName {
			t.Errorf("%s: %v, issued by %s", what, err, l.Issuer)
		}
		if i := m.List(); len(i) != 1 || i[0].Source != "self-signed" || i[0].Trouble == "" || !i[0].Served {
			t.Errorf("%s: list %+v", what, i)
		}
	}
	dir := t.TempDir()
	m := noCA(dir)
	selfSigned("no CA", m)
	m.opt.Authority = func() (*ca.Authority, error) { return c.a, nil }
	key := leaf(t, m, name).RawSubjectPublicKeyInfo
	if err := m.renewLocal(time.Now()); err != nil {
		t.Fatal(err)
	}
	good := leaf(t, m, name)
	if good.Issuer.CommonName == good.Subject.CommonName || !slices.Equal(good.RawSubjectPublicKeyInfo, key) {
		t.Error("not replaced by the CA's, or with another key")
	}
	if i := m.List(); i[0].Source != "cluster CA" || i[0].Trouble != "" {
		t.Errorf("list %+v", i)
	}

	// The last good one rather than none, even after its end.
	m = noCA(dir)
	m.opt.Authority = func() (*ca.Authority, error) { return nil, errors.New("sealed to others") }
	if err := m.renewLocal(time.Now().Add(2 * ca.Life)); err == nil {
		t.Error("no error without a CA")
	}
	if got := leaf(t, m, name); !got.Equal(good) {
		t.Error("the last good one is not served")
	}
	if i := m.List(); i[0].Source != "cluster CA" || i[0].Trouble == "" {
		t.Errorf("list %+v", i)
	}

	// A key that cannot be read is not overwritten: a person may want to repair it.
	path := filepath.Join(dir, hostKey)
	if err := os.WriteFile(path, []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	selfSigned("torn key", c.open(t, dir, name))
	if b, err := os.ReadFile(path); err != nil || string(b) != "torn" {
		t.Errorf("the key file was changed: %q, %v", b, err)
	}
	// A state directory in which nothing can be made.
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	selfSigned("no directory", c.open(t, filepath.Join(file, "certs"), name))
}

func TestChallenges(t *testing.T) {
	t.Parallel()
	m := newCluster(t).open(t, t.TempDir(), "msgw1.example.org")
	a := acme.Challenge{Identifier: acme.Identifier{Value: "MSGW1.example.org"}, KeyAuthorization: "one"}
	b := a
	b.KeyAuthorization = "two"
	const name = "_acme-challenge.msgw1.example.org."
	for _, c := range []acme.Challenge{a, b} {
		if err := (ownSolver{m}).Present(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	if got := m.TXT(name); !slices.Equal(got, []string{a.DNS01KeyAuthorization(), b.DNS01KeyAuthorization()}) {
		t.Errorf("two under way: %q", got)
	}
	(ownSolver{m}).CleanUp(t.Context(), a)
	if got := m.TXT(name); !slices.Equal(got, []string{b.DNS01KeyAuthorization()}) {
		t.Errorf("one under way: %q", got)
	}
	(ownSolver{m}).CleanUp(t.Context(), b)
	if got := m.TXT(name); len(got) != 0 || len(m.dns.own) != 0 {
		t.Errorf("none under way: %q", got)
	}
}

// Shared names are in the certificate of the cluster's CA while they are wanted, and the key
// that TLSA records name stays the same.
func TestSharedNames(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	var shared []string
	m, err := Open(Options{Dir: t.TempDir(), Names: []string{"msgw1.example.org"}, Shared: func() []string { return shared },
		Authority: func() (*ca.Authority, error) { return c.a, nil }, Root: func() string { return c.root }, ACME: func() ACME { return ACME{} }, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	keys := m.Keys()
	if sum := sha256.Sum256(leaf(t, m, "").RawSubjectPublicKeyInfo); len(keys) != 1 || keys[0] != hex.EncodeToString(sum[:]) {
		t.Errorf("keys %q", keys)
	}
	for _, want := range [][]string{{"mta-sts.example.org"}, nil} {
		shared = want
		if err := m.renewLocal(time.Now()); err != nil {
			t.Fatal(err)
		}
		if got := leaf(t, m, "mta-sts.example.org").DNSNames; !slices.Equal(got, append([]string{"msgw1.example.org"}, want...)) {
			t.Errorf("names %q", got)
		}
	}
	if !slices.Equal(m.Keys(), keys) {
		t.Error("the key changed")
	}
	if m.Trusted("msgw1.example.org", time.Now()) || m.Account(t.Context()) != "" {
		t.Error("trusted, or with an account, without an ACME directory")
	}
}
