// Package ca is the cluster's certificate authority. It issues two kinds of
// certificate: a peer certificate says which node of which cluster its holder is,
// and a host certificate is served to mail programs until a publicly trusted one is
// held. Each site can issue without the others, so renewal needs no quorum.
package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"time"
)

const (
	caLife = 30 * 365 * 24 * time.Hour
	// Life of an issued certificate; RenewBefore is when to replace it.
	Life        = 90 * 24 * time.Hour
	RenewBefore = Life / 3
	// skew is how far the clocks of two nodes may differ.
	skew = 24 * time.Hour
)

// Authority can issue.
type Authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// New makes the authority of a cluster and returns its certificate in PEM and its
// key in PKCS #8.
func New(cluster string, now time.Time) (certPEM string, key []byte, err error) {
	k, err := NewKey()
	if err != nil {
		return "", nil, err
	}
	t := &x509.Certificate{
		Subject: pkix.Name{CommonName: "msgw cluster " + cluster}, SerialNumber: serial(),
		NotBefore: now.Add(-skew), NotAfter: now.Add(caLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, k.Public(), k)
	if err != nil {
		return "", nil, err
	}
	if key, err = x509.MarshalPKCS8PrivateKey(k); err != nil {
		return "", nil, err
	}
	return encode(der), key, nil
}

// NewKey makes a key for a certificate: ECDSA P-256, which every mail program takes.
func NewKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// Open makes an Authority of what New returned.
func Open(certPEM string, key []byte) (*Authority, error) {
	c, err := ParseCertificate(certPEM)
	if err != nil {
		return nil, err
	}
	k, err := x509.ParsePKCS8PrivateKey(key)
	if err != nil {
		return nil, errors.New("cluster CA: the key does not parse")
	}
	s, ok := k.(crypto.Signer)
	if !ok {
		return nil, errors.New("cluster CA: the key cannot sign")
	}
	return &Authority{c, s}, nil
}

// ParseCertificate reads one certificate in PEM.
func ParseCertificate(certPEM string) (*x509.Certificate, error) {
	b, _ := pem.Decode([]byte(certPEM))
	if b == nil || b.Type != "CERTIFICATE" {
		return nil, errors.New("expected a certificate in PEM")
	}
	return x509.ParseCertificate(b.Bytes)
}

// Fingerprint names a certificate: the hex SHA-256 of its DER octets.
func Fingerprint(c *x509.Certificate) string {
	h := sha256.Sum256(c.Raw)
	return hex.EncodeToString(h[:])
}

func encode(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func serial() *big.Int {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 126))
	if err != nil {
		panic(err) // crypto/rand.Reader does not fail
	}
	return n.Add(n, big.NewInt(1))
}

// Identity is what a peer certificate says.
type Identity struct {
	Cluster string
	Node    string
	ID      string // raft server id
}

func (id Identity) uri() *url.URL {
	return &url.URL{Scheme: "msgw", Host: id.Cluster, Path: "/" + id.Node + "/" + id.ID}
}

// IdentityOf reads a peer certificate.
func IdentityOf(c *x509.Certificate) (Identity, error) {
	for _, u := range c.URIs {
		if f := strings.Split(u.Path, "/"); u.Scheme == "msgw" && len(f) == 3 && f[0] == "" {
			return Identity{u.Host, f[1], f[2]}, nil
		}
	}
	return Identity{}, errors.New("not a peer certificate")
}

// IssuePeer issues a peer certificate, in PEM, for a node's public key.
func (a *Authority) IssuePeer(id Identity, pub crypto.PublicKey, now time.Time) (string, error) {
	return a.issue(&x509.Certificate{
		Subject: pkix.Name{CommonName: id.Node}, URIs: []*url.URL{id.uri()},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}, pub, now)
}

// IssueHost issues a certificate, in PEM, for host names. It cannot be used as a
// peer certificate.
func (a *Authority) IssueHost(names []string, pub crypto.PublicKey, now time.Time) (string, error) {
	if len(names) == 0 {
		return "", errors.New("host certificate without a name")
	}
	return a.issue(&x509.Certificate{
		Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, pub, now)
}

func (a *Authority) issue(t *x509.Certificate, pub crypto.PublicKey, now time.Time) (string, error) {
	t.SerialNumber = serial()
	t.NotBefore, t.NotAfter = now.Add(-skew), now.Add(Life)
	t.KeyUsage = x509.KeyUsageDigitalSignature
	t.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, pub, a.key)
	if err != nil {
		return "", fmt.Errorf("issue certificate for %s: %w", t.Subject.CommonName, err)
	}
	return encode(der), nil
}

// VerifyPeer checks that chain[0] is a peer certificate issued by root and in
// force, and returns its identity. The caller decides whether that node is wanted.
func VerifyPeer(root *x509.Certificate, chain []*x509.Certificate, now time.Time) (Identity, error) {
	if len(chain) == 0 {
		return Identity{}, errors.New("peer showed no certificate")
	}
	pool := x509.NewCertPool()
	pool.AddCert(root)
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: pool, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		return Identity{}, fmt.Errorf("peer certificate: %w", err)
	}
	return IdentityOf(chain[0])
}
