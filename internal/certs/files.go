package certs

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"msgw/internal/durable"
)

// File is a certificate that an operator brings, in PEM: the chain, the host's certificate
// first, and its key. Both may be in one file.
type File struct {
	Chain, Key string // paths
}

// file is what was found there. Its fields are guarded by Manager.mu.
type file struct {
	File
	cert   *tls.Certificate // served; nil before the first good one
	coming *tls.Certificate // found, but its key is not announced for long enough
	err    error            // why what is there is not served
	seen   [2][32]byte      // what was looked at last
}

const maxFile = 1 << 20

// lookAtFiles takes what operators have put into place, if it can be served. What cannot
// leaves in use what was there before.
func (m *Manager) lookAtFiles(now time.Time) {
	for _, f := range m.files {
		chain, err := readFile(f.Chain)
		var key []byte
		if err == nil {
			key, err = readFile(f.Key)
		}
		if err != nil {
			m.noteFile(f, nil, err)
			continue
		}
		seen := [2][32]byte{sha256.Sum256(chain), sha256.Sum256(key)}
		m.mu.Lock()
		settled := seen == f.seen && f.err == nil // else the names, or the clock, may be others now
		f.seen = seen
		m.mu.Unlock()
		if settled {
			continue
		}
		c, err := m.checkFile(f.File, chain, key, now)
		m.noteFile(f, c, err)
	}
}

func readFile(path string) ([]byte, error) {
	if fi, err := os.Stat(path); err == nil && !fi.Mode().IsRegular() { // opening a pipe may last for ever
		return nil, fmt.Errorf("%s: expected a file, not a directory, pipe or device", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("%s: expected at most %d octets", path, maxFile)
	}
	return b, err
}

// checkFile makes a certificate of two files, or says why it cannot be served.
func (m *Manager) checkFile(f File, chain, key []byte, now time.Time) (*tls.Certificate, error) {
	k, err := parseKey(f.Key, key)
	if err != nil {
		return nil, err
	}
	c, err := pair(chain, k)
	if err != nil {
		return nil, fmt.Errorf("%s, %s: %w", f.Chain, f.Key, err)
	}
	names := m.wanted()
	switch covers := func(name string) bool { return c.Leaf.VerifyHostname(name) == nil }; {
	case !slices.ContainsFunc(names, covers):
		return nil, fmt.Errorf("%s: it is for %s, expected %s", f.Chain, strings.Join(c.Leaf.DNSNames, ", "), strings.Join(names, " or "))
	case now.After(c.Leaf.NotAfter):
		return nil, fmt.Errorf("%s: it ended %s", f.Chain, c.Leaf.NotAfter.Format(time.DateTime))
	}
	return c, nil
}

// keptDir has a copy of each pair that was served, chain and key in one file, for a restart
// after what an operator put into place cannot be used, or not yet.
const keptDir = "files"

func (m *Manager) keptPath(f File) string {
	return m.path(keptDir, sum([]byte(f.Chain + "\n" + f.Key))[:16]+".pem")
}

// openFiles loads the copies, and removes those of files that are not named any more.
func (m *Manager) openFiles() {
	kept := map[string]bool{}
	for _, named := range m.opt.Files {
		f := &file{File: named}
		m.files = append(m.files, f)
		path := m.keptPath(named)
		kept[path] = true
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		var k crypto.Signer
		if err == nil {
			k, err = parseKey(path, b)
		}
		if err == nil {
			f.cert, err = pair(b, k)
		}
		if err != nil {
			m.opt.Log.Error("the copy of a certificate file cannot be used", "err", err)
		}
	}
	old, _ := filepath.Glob(m.path(keptDir, "*.pem"))
	for _, path := range old {
		if !kept[path] {
			if err := os.Remove(path); err != nil {
				m.opt.Log.Warn("the copy of a certificate file is left", "err", err)
			}
		}
	}
}

// keep stores a copy of a pair that is served.
func (m *Manager) keep(f File, c *tls.Certificate) error {
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		return err
	}
	var b []byte
	for _, chain := range c.Certificate {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: chain})...)
	}
	b = append(b, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})...)
	if err := makeDirs(m.opt.Dir, m.path(keptDir)); err != nil {
		return err
	}
	return durable.ReplaceFile(m.keptPath(f), b)
}

// noteFile takes down what was found in a file.
func (m *Manager) noteFile(f *file, c *tls.Certificate, err error) {
	m.mu.Lock()
	served := f.cert
	m.mu.Unlock()
	var waits error
	if c != nil && m.announces(c) {
		if key := sum(c.Leaf.RawSubjectPublicKeyInfo); served == nil || key != sum(served.Leaf.RawSubjectPublicKeyInfo) {
			waits = m.opt.Announced(key)
		}
	}
	m.mu.Lock()
	before := f.err
	f.err, f.coming = err, nil
	switch {
	case err != nil:
	case waits != nil:
		f.coming, f.err = c, waits
	default:
		f.cert = c
	}
	m.mu.Unlock()
	switch {
	case err != nil && (before == nil || before.Error() != err.Error()):
		m.opt.Log.Error("a certificate file cannot be used; what was served before is served on", "err", err)
	case err != nil:
	case waits != nil && before == nil:
		m.opt.Log.Info("a certificate file has another key; it is served once resolvers know of it", "file", f.Chain, "err", waits)
	case waits == nil:
		m.opt.Log.Info("certificate file in use", "file", f.Chain, "names", c.Leaf.DNSNames, "until", c.Leaf.NotAfter)
		if err := m.keep(f.File, c); err != nil {
			m.opt.Log.Warn("a certificate file cannot be copied; it is served all the same", "err", err)
		}
	}
}

// announces reports whether TLSA records may name a certificate's key: it is for a host.
func (m *Manager) announces(c *tls.Certificate) bool {
	return slices.ContainsFunc(m.opt.Names, func(name string) bool { return c.Leaf.VerifyHostname(name) == nil })
}

// sameKey reports whether a certificate is for a key.
func sameKey(c *tls.Certificate, key crypto.Signer) bool {
	k, ok := c.PrivateKey.(crypto.Signer)
	return ok && bytes.Equal([]byte(sumOf(k)), []byte(sumOf(key)))
}
