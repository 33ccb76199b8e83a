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
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
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
	Authority func() (*ca.Authority, error) // the cluster's CA
	Root      func() string                 // its certificate, PEM
	ACME      func() ACME                   // where public certificates come from
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
	Source   string    `json:"source"` // "cluster CA" or "ACME"
	Issuer   string    `json:"issuer"`
	NotAfter time.Time `json:"not_after"`
	Served   bool      `json:"served"`
	Trouble  string    `json:"trouble,omitempty"` // why a better one is not held
}

// Manager serves and renews the certificates of one node.
type Manager struct {
	opt Options
	dns challenges

	mu    sync.Mutex
	local *tls.Certificate // issued by the cluster's CA
	acme  *account         // nil while no directory is set
}

const (
	keyFile  = "host.key"
	certFile = "host.crt"
)

// Open loads this node's certificate, or makes one with the cluster's CA.
func Open(opt Options) (*Manager, error) {
	if err := os.MkdirAll(opt.Dir, 0o700); err != nil {
		return nil, err
	}
	m := &Manager{opt: opt, dns: challenges{values: map[string][]string{}}}
	return m, m.renewLocal(time.Now())
}

// Run renews certificates until ctx ends.
func (m *Manager) Run(ctx context.Context) {
	defer m.stopACME()
	t := time.NewTicker(time.Minute)
	defer t.Stop()
	for {
		if err := m.renewLocal(time.Now()); err != nil {
			m.opt.Log.Error("cannot renew the certificate of the cluster's CA; the old one is served on", "err", err)
		}
		m.followACME(ctx)
		select {
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
// cluster CA's.
func (m *Manager) certificate(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
	m.mu.Lock()
	local, a := m.local, m.acme
	m.mu.Unlock()
	if a != nil {
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
	local, a := m.local, m.acme
	m.mu.Unlock()
	info := describe(local.Leaf, "cluster CA")
	info.Served = true
	infos := []Info{info}
	if a != nil {
		for _, name := range m.opt.Names {
			if c := a.held(name); c != nil {
				infos[0].Served = false
				i := describe(c.Leaf, "ACME")
				i.Served, i.Trouble = true, a.trouble()
				infos = append([]Info{i}, infos...)
			} else {
				infos[0].Trouble = a.trouble()
			}
		}
	}
	return infos
}

func describe(c *x509.Certificate, source string) Info {
	return Info{Names: c.DNSNames, Source: source, Issuer: c.Issuer.CommonName, NotAfter: c.NotAfter.UTC()}
}

// TXT returns the challenge values of a name; see dnsplugin.Challenges.
func (m *Manager) TXT(name string) []string { return m.dns.get(name) }

// renewLocal makes sure that a certificate of the cluster's CA is held, for the
// right names and for some time to come.
func (m *Manager) renewLocal(now time.Time) error {
	key, err := m.localKey()
	if err != nil {
		return err
	}
	certPath := filepath.Join(m.opt.Dir, certFile)
	b, err := os.ReadFile(certPath)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	c, perr := pair(b, key)
	if perr == nil {
		m.mu.Lock()
		if m.local == nil {
			m.local = c
		}
		m.mu.Unlock()
		if now.Before(c.Leaf.NotAfter.Add(-ca.RenewBefore)) && slices.Equal(c.Leaf.DNSNames, m.opt.Names) && issuedBy(c.Leaf, m.opt.Root()) {
			return nil
		}
	}
	a, err := m.opt.Authority()
	if err != nil {
		return err
	}
	p, err := a.IssueHost(m.opt.Names, key.Public(), now)
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
	m.local = c
	m.mu.Unlock()
	m.opt.Log.Info("certificate issued by the cluster's CA", "names", m.opt.Names, "until", c.Leaf.NotAfter)
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
