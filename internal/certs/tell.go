package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Where a certificate is from.
const (
	FromCluster = "cluster CA"
	FromSelf    = "self-signed"
	FromACME    = "ACME"
	FromFile    = "file"
)

// Info describes a certificate that this node holds, or wants.
type Info struct {
	Names     []string
	Source    string
	Issuer    string // empty: none is held
	NotBefore time.Time
	NotAfter  time.Time
	Key       string // SHA-256 of its SubjectPublicKeyInfo, in hex
	Served    bool   // to who asks for one of Names
	Host      bool   // and that to who asks for this host, or for no name
	Trouble   string // what a person should look at
	// Of one that is ordered: the last order, why it failed, and when the next one is due.
	Last  time.Time
	Error string
	Next  time.Time
}

// Rollover describes the key that is announced.
type Rollover struct {
	Key     string // SHA-256 of its SubjectPublicKeyInfo, in hex; empty: there is none
	Waiting string // what for
}

// Rollover returns which key is announced, and why it is not in use yet.
func (m *Manager) Rollover() Rollover {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.next == nil {
		return Rollover{}
	}
	return Rollover{sumOf(m.next), m.waiting}
}

// List describes what is held, served and ordered.
func (m *Manager) List() []Info {
	now := time.Now()
	shared := m.opt.Shared()
	m.mu.Lock()
	defer m.mu.Unlock()
	serves := func(c *tls.Certificate) bool {
		return slices.ContainsFunc(slices.Concat(m.opt.Names, shared), func(name string) bool { return m.best(name, now) == c })
	}
	host := m.local
	for _, name := range m.opt.Names { // as certificate chooses
		if c := m.best(name, now); c != nil {
			host = c
			break
		}
	}
	var infos []Info
	for _, f := range m.files {
		i := Info{Source: FromFile}
		if f.cert != nil {
			i = describe(f.cert.Leaf, FromFile)
			i.Served, i.Host = serves(f.cert), f.cert == host
			i.Trouble = ends(f.cert, now, "bring another one")
		}
		if f.err != nil {
			i.Error = f.err.Error()
			if f.coming == nil {
				i.Trouble = join(i.Trouble, i.Error)
			}
		}
		infos = append(infos, i)
	}
	if m.acme != nil {
		for _, name := range slices.Concat(m.opt.Names, shared) {
			infos = m.listPublic(infos, name, now, serves)
			if last := len(infos) - 1; last >= 0 && infos[last].Source == FromACME && host == m.public[name] {
				infos[last].Host = true
			}
		}
	}
	local := describe(m.local.Leaf, FromCluster)
	if m.selfSigned {
		local.Source = FromSelf
	}
	local.Served = slices.ContainsFunc(slices.Concat(m.opt.Names, shared), func(name string) bool { return m.best(name, now) == nil })
	local.Host = host == m.local
	if m.localErr != nil {
		local.Error, local.Trouble = m.localErr.Error(), m.localErr.Error()
	}
	if local.Served {
		local.Trouble = join(local.Trouble, ends(m.local, now, ""))
	}
	return append(infos, local)
}

// listPublic adds what is held or ordered of the directory for a name; m.mu is held.
func (m *Manager) listPublic(infos []Info, name string, now time.Time, serves func(*tls.Certificate) bool) []Info {
	p, c := m.state.of(name), m.public[name]
	ordered := !m.brought(name) && (!slices.Contains(m.opt.Names, name) || m.opt.Known(name))
	if !ordered && c == nil {
		return infos
	}
	i := Info{Names: []string{name}, Source: FromACME}
	if c != nil {
		i = describe(c.Leaf, FromACME)
		i.Served = serves(c)
	}
	if !ordered {
		return append(infos, i)
	}
	i.Last, i.Error, i.Next = p.Last, p.Error, m.dueAt(m.acme, name)
	switch {
	case c == nil && p.Error != "":
		i.Trouble = "none obtained yet: " + p.Error
	case c != nil && (p.Error != "" && late(c, now) || now.After(c.Leaf.NotAfter)):
		i.Trouble = join(ends(c, now, ""), p.Error)
	}
	return append(infos, i)
}

// ends says that a certificate ends soon, or has ended.
func ends(c *tls.Certificate, now time.Time, what string) string {
	switch until := c.Leaf.NotAfter; {
	case now.After(until):
		return join("it ended "+until.Format(time.DateOnly), what)
	case late(c, now) && until.Sub(now) < 14*24*time.Hour:
		return join("it ends "+until.Format(time.DateOnly), what)
	}
	return ""
}

func join(texts ...string) string {
	return strings.Join(slices.DeleteFunc(texts, func(s string) bool { return s == "" }), ": ")
}

func describe(c *x509.Certificate, source string) Info {
	return Info{Names: c.DNSNames, Source: source, Issuer: c.Issuer.CommonName, NotBefore: c.NotBefore.UTC(), NotAfter: c.NotAfter.UTC(), Key: sum(c.RawSubjectPublicKeyInfo)}
}

// Keys returns the SHA-256, in hex, of the SubjectPublicKeyInfo of every certificate that a
// client may be shown for this host, now, once one cannot be renewed, or once an announced
// key is used. It is what TLSA records of usage 3, selector 1 and matching type 1 hold (RFC
// 6698 section 2.1).
func (m *Manager) Keys() []string {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	keys := []string{sum(m.local.Leaf.RawSubjectPublicKeyInfo)}
	add := func(c *tls.Certificate) {
		if c != nil {
			keys = append(keys, sum(c.Leaf.RawSubjectPublicKeyInfo))
		}
	}
	for _, name := range m.opt.Names {
		add(m.best(name, now))
		if m.acme != nil {
			add(m.public[name])
		}
	}
	for _, f := range m.files {
		for _, c := range []*tls.Certificate{f.cert, f.coming} {
			if c != nil && m.announces(c) {
				add(c)
			}
		}
	}
	if m.next != nil {
		keys = append(keys, sumOf(m.next))
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// Coming returns which of Keys are not used yet.
func (m *Manager) Coming() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var keys []string
	if m.next != nil {
		keys = append(keys, sumOf(m.next))
	}
	for _, f := range m.files {
		if f.coming != nil {
			keys = append(keys, sum(f.coming.Leaf.RawSubjectPublicKeyInfo))
		}
	}
	return keys
}

// Trusted reports whether what is served for a name is a certificate of the ACME directory,
// or one that an operator brought and that the system trusts, in force now.
func (m *Manager) Trusted(name string, now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.best(name, now)
	if c == nil || now.Before(c.Leaf.NotBefore) || now.After(c.Leaf.NotAfter) {
		return false
	}
	return c == m.public[name] || systemTrusts(c, now)
}

func systemTrusts(c *tls.Certificate, now time.Time) bool {
	between := x509.NewCertPool()
	for _, der := range c.Certificate[1:] {
		if ca, err := x509.ParseCertificate(der); err == nil {
			between.AddCert(ca)
		}
	}
	_, err := c.Leaf.Verify(x509.VerifyOptions{Intermediates: between, CurrentTime: now})
	return err == nil
}

// Account returns the URI of this node's account at the ACME directory (RFC 8555 section
// 7.3), or nothing if there is none yet, or not just one that it can be.
func (m *Manager) Account(ctx context.Context) string {
	if a := m.current(); a != nil {
		return a.uri(ctx)
	}
	return ""
}

// String is for errors.
func (f File) String() string { return fmt.Sprintf("%s and %s", f.Chain, f.Key) }
