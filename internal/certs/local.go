package certs

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"time"

	"msgw/internal/ca"
	"msgw/internal/durable"
)

func (m *Manager) path(elem ...string) string {
	return filepath.Join(append([]string{m.opt.Dir}, elem...)...)
}

// signSelf makes a certificate without the cluster's CA, with this node's key if that
// can be read.
func (m *Manager) signSelf(now time.Time) (*tls.Certificate, error) {
	key, err := m.keys.load(hostKey)
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

// renewLocal makes sure that a certificate of the cluster's CA is held, for the
// right names, with the right key and for some time to come.
func (m *Manager) renewLocal(now time.Time) error {
	m.renewing.Lock() // or one that read the key before a rollover would undo it
	defer m.renewing.Unlock()
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
	key, err := m.keys.load(hostKey)
	if err != nil {
		return err
	}
	names := slices.Concat(m.opt.Names, m.opt.Shared())
	certPath := m.path(certFile)
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
