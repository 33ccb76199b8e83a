package certs

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/certmagic"
)

// GenerateKey gives the key of this node to a first ACME certificate: TLSA records hold from
// the certificate of the cluster's CA to that. It is a certmagic.KeyGenerator.
func (m *Manager) GenerateKey() (crypto.PrivateKey, error) { return m.localKey() }

// Keys returns the SHA-256, in hex, of the SubjectPublicKeyInfo of every certificate that a
// client may be shown now, or once one cannot be renewed. It is what TLSA records of usage
// 3, selector 1 and matching type 1 hold (RFC 6698 section 2.1).
func (m *Manager) Keys() []string {
	m.mu.Lock()
	held, a := []*tls.Certificate{m.local}, m.acme
	m.mu.Unlock()
	if a != nil {
		for _, name := range m.opt.Names {
			if c := a.held(name); c != nil {
				held = append(held, c)
			}
		}
	}
	var keys []string
	for _, c := range held {
		sum := sha256.Sum256(c.Leaf.RawSubjectPublicKeyInfo)
		keys = append(keys, hex.EncodeToString(sum[:]))
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// Trusted reports whether the certificate for this node's first name is one of the ACME
// directory, in force now.
func (m *Manager) Trusted(now time.Time) bool {
	m.mu.Lock()
	a := m.acme
	m.mu.Unlock()
	if a == nil {
		return false
	}
	c := a.held(m.opt.Names[0])
	return c != nil && now.After(c.Leaf.NotBefore) && now.Before(c.Leaf.NotAfter)
}

// Account returns the URI of this node's account at the ACME directory (RFC 8555 section
// 7.3), or nothing if there is none yet, or not just one that it can be.
func (m *Manager) Account(ctx context.Context) string {
	m.mu.Lock()
	a := m.acme
	m.mu.Unlock()
	if a == nil {
		return ""
	}
	return a.uri(ctx)
}

// uri looks for the account where certmagic keeps it: acme/<directory>/users/<email>/<name>.json.
func (a *account) uri(ctx context.Context) string {
	users := path.Join("acme", certmagic.StorageKeys.Safe(a.issuer.IssuerKey()), "users")
	files, err := a.config.Storage.List(ctx, users, true)
	if err != nil {
		return "" // there is none yet
	}
	user := ""
	if a.settings.Email != "" {
		user = path.Join(users, certmagic.StorageKeys.Safe(a.settings.Email)) + "/"
	}
	var uris []string
	for _, f := range files {
		if !strings.HasSuffix(f, ".json") || !strings.HasPrefix(f, user) {
			continue
		}
		var account struct {
			Location string `json:"location"`
		}
		b, err := a.config.Storage.Load(ctx, f)
		if err == nil && json.Unmarshal(b, &account) == nil && account.Location != "" {
			uris = append(uris, account.Location)
		}
	}
	if len(uris) != 1 {
		return ""
	}
	return uris[0]
}
