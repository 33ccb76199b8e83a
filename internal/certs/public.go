package certs

import (
	"crypto"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/caddyserver/certmagic"

	"msgw/internal/durable"
)

// publicDir has the chains that were obtained, a file for each name: what is served, and
// what is served on when there is no better one.
const publicDir = "public"

func (m *Manager) publicPath(name string) string {
	return m.path(publicDir, certmagic.StorageKeys.Safe(name)+".crt")
}

// ownKeys returns every key that a certificate here may have.
func (m *Manager) ownKeys() []crypto.Signer {
	var keys []crypto.Signer
	for _, name := range []string{hostKey, nextKey, sharedKey} {
		if k, err := m.keys.read(name); err == nil {
			keys = append(keys, k)
		}
	}
	return keys
}

// loadPublic loads the certificates that were obtained. One that was obtained right before
// a crash may be in the account's storage only.
func (m *Manager) loadPublic() {
	keys, a := m.ownKeys(), m.current()
	for _, name := range m.wanted() {
		m.mu.Lock()
		tried := m.loaded[name]
		m.loaded[name] = true
		m.mu.Unlock()
		if tried {
			continue
		}
		b, err := os.ReadFile(m.publicPath(name))
		if err == nil {
			var c *tls.Certificate
			if c, err = pair(b, keys...); err == nil {
				m.mu.Lock()
				m.public[name] = c
				m.mu.Unlock()
			}
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			m.opt.Log.Error("a certificate that was obtained cannot be loaded", "name", name, "err", err)
		}
		if a == nil {
			continue
		}
		chain, err := m.ordersFor(a, name).chain(a.ctx, name)
		if err != nil {
			continue // none was ever obtained there
		}
		if c, err := pair(chain, keys...); err == nil && m.newer(name, c) {
			if err := m.accept(a, name, chain); err != nil {
				m.opt.Log.Error("a certificate that was obtained cannot be stored", "name", name, "err", err)
			}
		}
	}
}

// newer reports whether a certificate is another one than what is held, and not older.
func (m *Manager) newer(name string, c *tls.Certificate) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	have := m.public[name]
	return have == nil || !c.Leaf.Equal(have.Leaf) && !c.Leaf.NotBefore.Before(have.Leaf.NotBefore)
}

// accept stores a certificate that was obtained, and serves it from then on.
func (m *Manager) accept(a *account, name string, chain []byte) error {
	c, err := pair(chain, m.ownKeys()...)
	if err != nil {
		return err
	}
	if err := c.Leaf.VerifyHostname(name); err != nil {
		return err
	}
	// Served also if it cannot be stored: then it is stored as soon as that can be done.
	now := time.Now()
	m.mu.Lock()
	if have := m.public[name]; have != nil && now.After(c.Leaf.NotAfter) && now.Before(have.Leaf.NotAfter) {
		m.mu.Unlock()
		return fmt.Errorf("it ended %s already", c.Leaf.NotAfter.UTC().Format(time.DateTime))
	}
	m.public[name] = c
	p := m.state.of(name)
	*p = progress{Directory: a.settings.Directory, Last: p.Last, Obtained: now}
	m.unstored[name] = chain
	m.mu.Unlock()
	return m.store(name, chain)
}

// store writes a chain that is served.
func (m *Manager) store(name string, chain []byte) error {
	err := makeDirs(m.opt.Dir, m.path(publicDir))
	if err == nil {
		err = durable.ReplaceFile(m.publicPath(name), chain)
	}
	if err = errors.Join(err, m.saveState()); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.unstored, name)
	return nil
}

// storeAgain stores what could not be before: the error is over, and nothing is ordered for it.
func (m *Manager) storeAgain(name string) {
	select {
	case m.ordering <- struct{}{}:
		defer func() { <-m.ordering }()
	default: // an order may bring another one
		return
	}
	m.mu.Lock()
	chain := m.unstored[name]
	m.mu.Unlock()
	if chain == nil || m.store(name, chain) != nil {
		return
	}
	m.mu.Lock()
	p := m.state.of(name)
	p.Failures, p.Error, p.Next = 0, "", time.Time{}
	m.mu.Unlock()
	if err := m.saveState(); err != nil {
		m.opt.Log.Warn("it cannot be stored that a certificate was stored", "name", name, "err", err)
	}
}
