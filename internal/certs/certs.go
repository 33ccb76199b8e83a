// Package certs holds the certificates that this host shows to mail programs.
//
// It promises: there is always a certificate to serve; a publicly trusted one is
// served as soon as it is held, and a last good one rather than none; keys never
// leave this node and stay the same over renewals; renewing needs no other node.
package certs

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"msgw/internal/ca"
	"msgw/internal/durable"
)

// Options of a Manager.
type Options struct {
	Dir       string // for this node's certificates and keys
	Names     []string
	Shared    func() []string               // names that the nodes share, for the CA's certificate alone; nil: none
	Authority func() (*ca.Authority, error) // the cluster's CA
	Root      func() string                 // its certificate, PEM
	ACME      func() ACME                   // where public certificates come from
	Changed   func() <-chan struct{}        // closed when Root or ACME may have changed
	Resolver  string                        // host:port of the resolver to reach the directory with; empty: the system's
	Log       *slog.Logger
}

// ACME says where publicly trusted certificates come from; no directory: nowhere.
type ACME struct {
	Directory string // URL
	Email     string
	Roots     string // PEM that the directory's own certificate is checked against; empty: the system's
}

// Info describes a certificate that this node holds.
type Info struct {
	Names    []string  `json:"names"`
	Source   string    `json:"source"` // "cluster CA", "self-signed" or "ACME"
	Issuer   string    `json:"issuer"`
	NotAfter time.Time `json:"not_after"`
	Served   bool      `json:"served"`
	Trouble  string    `json:"trouble,omitempty"` // why a better one is not held
}

// Manager serves and renews the certificates of one node.
type Manager struct {
	opt Options
	dns challenges

	mu         sync.Mutex
	local      *tls.Certificate // issued by the cluster's CA, or self-signed until one is
	selfSigned bool             // local is
	localErr   error            // why no better local one is held
	acme       *account         // nil while no directory is set
}

const (
	keyFile  = "host.key"
	certFile = "host.crt"
)

// Open loads this node's certificate, or makes one with the cluster's CA. If neither
// can be done it makes one by itself, says so, and Run tries on; then the error is
// nil, too. It returns an error only if there is no key at all to be had.
func Open(opt Options) (*Manager, error) {
	if opt.Shared == nil {
		opt.Shared = func() []string { return nil }
	}
	m := &Manager{opt: opt, dns: challenges{values: map[string][]string{}}}
	// Before the first port opens: who comes right after a restart sees no other
	// certificate than before it.
	m.followACME(context.Background())
	err := m.renewLocal(time.Now())
	if err == nil {
		return m, nil
	}
	opt.Log.Error("no certificate from the cluster's CA; the last one or a self-signed one is served", "err", err)
	if m.local == nil {
		m.local, err = m.signSelf(time.Now())
		m.selfSigned = true
		return m, err
	}
	return m, nil
}

// signSelf makes a certificate without the cluster's CA, with this node's key if that
// can be read.
func (m *Manager) signSelf(now time.Time) (*tls.Certificate, error) {
	key, err := m.localKey()
	if err != nil {
		if key, err = ca.NewKey(); err != nil {
			return nil, err
		}
	}
	t := &x509.Certificate{Subject: pkix.Name{CommonName: m.opt.Names[0]}, DNSNames: m.opt.Names, SerialNumber: big.NewInt(now.UnixNano()),
		NotBefore: now.Add(-24 * time.Hour), NotAfter: now.Add(ca.Life), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return pair(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), key)
}

// Run renews certificates until ctx ends.
func (m *Manager) Run(ctx context.Context) {
	defer m.stopACME()
	t := time.NewTicker(time.Minute)
	defer t.Stop()
	for {
		changed := m.opt.Changed()
		if err := m.renewLocal(time.Now()); err != nil {
			m.opt.Log.Error("cannot renew the certificate of the cluster's CA; the old one is served on", "err", err)
		}
		m.followACME(ctx)
		m.manageACME(ctx)
		select {
		case <-changed:
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// TLS returns the configuration for listeners.
func (m *Manager) TLS() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: m.certificate}
}

// certificate chooses what to serve: a publicly trusted certificate for the name
// asked for, else one for any name of ours (many SMTP clients send none), else the
// cluster CA's, which alone has the shared names.
func (m *Manager) certificate(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
	m.mu.Lock()
	local, a := m.local, m.acme
	m.mu.Unlock()
	if a != nil && !slices.Contains(m.opt.Shared(), h.ServerName) {
		names := m.opt.Names
		if slices.Contains(names, h.ServerName) {
			names = append([]string{h.ServerName}, names...)
		}
		for _, name := range names {
			if c := a.held(name); c != nil {
				return c, nil
			}
		}
	}
	return local, nil
}

// List describes what is held and served.
func (m *Manager) List() []Info {
	m.mu.Lock()
	local, a, source, err := m.local, m.acme, "cluster CA", m.localErr
	if m.selfSigned {
		source = "self-signed"
	}
	m.mu.Unlock()
	info := describe(local.Leaf, source)
	info.Served = true
	if err != nil {
		info.Trouble = err.Error()
	}
	var infos []Info
	if a != nil {
		for _, name := range m.opt.Names {
			if c := a.held(name); c != nil {
				info.Served = false
				i := describe(c.Leaf, "ACME")
				i.Served, i.Trouble = true, a.trouble()
				infos = append(infos, i)
			} else if info.Trouble == "" {
				info.Trouble = a.trouble()
			}
		}
	}
	return append(infos, info)
}

func describe(c *x509.Certificate, source string) Info {
	return Info{Names: c.DNSNames, Source: source, Issuer: c.Issuer.CommonName, NotAfter: c.NotAfter.UTC()}
}

// TXT returns the challenge values of a name; see dnsplugin.Challenges.
func (m *Manager) TXT(name string) []string { return m.dns.get(name) }

// renewLocal makes sure that a certificate of the cluster's CA is held, for the
// right names and for some time to come.
func (m *Manager) renewLocal(now time.Time) error {
	err := m.tryRenewLocal(now)
	m.mu.Lock()
	m.localErr = err
	m.mu.Unlock()
	return err
}

func (m *Manager) tryRenewLocal(now time.Time) error {
	if err := os.MkdirAll(m.opt.Dir, 0o700); err != nil {
		return err
	}
	key, err := m.localKey()
	if err != nil {
		return err
	}
	names := slices.Concat(m.opt.Names, m.opt.Shared())
	certPath := filepath.Join(m.opt.Dir, certFile)
	b, err := os.ReadFile(certPath)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	c, perr := pair(b, key)
	if perr == nil {
		m.mu.Lock()
		if m.local == nil || m.selfSigned {
			m.local, m.selfSigned = c, false
		}
		m.mu.Unlock()
		if now.Before(c.Leaf.NotAfter.Add(-ca.RenewBefore)) && slices.Equal(c.Leaf.DNSNames, names) && issuedBy(c.Leaf, m.opt.Root()) {
			return nil
		}
	}
	a, err := m.opt.Authority()
	if err != nil {
		return err
	}
	p, err := a.IssueHost(names, key.Public(), now)
	if err != nil {
		return err
	}
	if c, err = pair([]byte(p+m.opt.Root()), key); err != nil {
		return err
	}
	if err := durable.ReplaceFile(certPath, []byte(p+m.opt.Root())); err != nil {
		return err
	}
	m.mu.Lock()
	m.local, m.selfSigned = c, false
	m.mu.Unlock()
	m.opt.Log.Info("certificate issued by the cluster's CA", "names", names, "until", c.Leaf.NotAfter)
	return nil
}

func issuedBy(leaf *x509.Certificate, rootPEM string) bool {
	root, err := ca.ParseCertificate(rootPEM)
	return err == nil && leaf.CheckSignatureFrom(root) == nil
}

// localKey reads the key of this node's certificates, or makes it once.
func (m *Manager) localKey() (crypto.Signer, error) {
	path := filepath.Join(m.opt.Dir, keyFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		k, err := ca.NewKey()
		if err != nil {
			return nil, err
		}
		der, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			return nil, err
		}
		return k, durable.ReplaceFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	}
	if err != nil {
		return nil, err
	}
	p, _ := pem.Decode(b)
	if p == nil {
		return nil, fmt.Errorf("%s: expected a private key in PEM", path)
	}
	k, err := x509.ParsePKCS8PrivateKey(p.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: the key does not parse", path)
	}
	s, ok := k.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%s: the key cannot sign", path)
	}
	return s, nil
}

// pair makes a certificate to serve of a PEM chain and its key.
func pair(chain []byte, key crypto.Signer) (*tls.Certificate, error) {
	c := &tls.Certificate{PrivateKey: key}
	for b, rest := pem.Decode(chain); b != nil; b, rest = pem.Decode(rest) {
		c.Certificate = append(c.Certificate, b.Bytes)
	}
	if len(c.Certificate) == 0 {
		return nil, errors.New("no certificate in PEM")
	}
	leaf, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		return nil, err
	}
	pub, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil || !bytes.Equal(pub, leaf.RawSubjectPublicKeyInfo) {
		return nil, errors.New("certificate and key do not belong together")
	}
	c.Leaf = leaf
	return c, nil
}
