package certs

import (
	"context"
	"crypto"
	"errors"
	"time"
)

// ErrByFile says that an operator brings this host's certificate, and with it its key.
var ErrByFile = errors.New("the certificate of this host is brought by an operator")

// RollOver makes the key that is to take the place of the one in use, of one of KeyTypes.
// Keys has it from now on; it is used once Options.Announced says that resolvers can know
// of it. If there is one already, it stays. It returns ErrByFile, or what writing it
// returned.
func (m *Manager) RollOver(kind string) error {
	if m.byFile(m.opt.Names[0]) {
		return ErrByFile
	}
	m.rolling.Lock()
	defer m.rolling.Unlock()
	m.mu.Lock()
	next := m.next
	m.mu.Unlock()
	if next != nil {
		return nil
	}
	k, err := newKey(kind)
	if err != nil {
		return err
	}
	if err := m.keys.write(nextKey, k); err != nil {
		return err
	}
	m.mu.Lock()
	m.next, m.waiting = k, ""
	m.mu.Unlock()
	m.opt.Log.Info("a new key is announced", "sha256", sumOf(k))
	m.notify()
	return nil
}

// Abandon forgets the key that was announced, unless a certificate has it already, or is
// being ordered with it: then the rollover goes on, and false is returned.
func (m *Manager) Abandon() (bool, error) {
	m.rolling.Lock()
	defer m.rolling.Unlock()
	m.mu.Lock()
	next, used := m.next, m.useNext
	for _, name := range m.opt.Names {
		if c := m.public[name]; c != nil && next != nil && sameKey(c, next) {
			used = true
		}
	}
	m.mu.Unlock()
	if used {
		return false, nil
	}
	if err := m.keys.remove(nextKey); err != nil {
		return false, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.next, m.waiting = nil, ""
	return true, nil
}

// orderKey is the key to order a host's certificate with; see useNext.
func (m *Manager) orderKey() (crypto.Signer, error) {
	if m.useNext {
		return m.keys.read(nextKey)
	}
	return m.keys.load(hostKey)
}

// rollOver takes the announced key into use once it may be: first for the certificates of
// the directory, then for that of the cluster's CA. Until the last step both keys are held,
// and both are in Keys, so that it can end anywhere and go on.
func (m *Manager) rollOver(ctx context.Context) {
	m.mu.Lock()
	next, a := m.next, m.acme
	m.mu.Unlock()
	if next == nil {
		return
	}
	wait := m.opt.Announced(sumOf(next))
	for _, name := range m.opt.Names {
		if wait != nil || a == nil {
			break
		}
		m.mu.Lock()
		c, p := m.public[name], m.state.of(name)
		early := time.Now().Before(p.notBefore(time.Now()))
		m.mu.Unlock()
		switch {
		case c == nil || sameKey(c, next) || !m.opt.Known(name): // nothing to replace, done, or of no use
		case early:
			wait = errors.New("no certificate for it yet: " + p.Error)
		default:
			wait = m.order(ctx, a, name, rollover)
		}
	}
	if wait == nil {
		wait = m.useNextKey(next)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.waiting = ""; wait != nil {
		m.waiting = wait.Error()
	}
}

// useNextKey makes the announced key this host's.
func (m *Manager) useNextKey(next crypto.Signer) error {
	m.ordering <- struct{}{}
	defer func() { <-m.ordering }()
	m.rolling.Lock()
	defer m.rolling.Unlock()
	m.mu.Lock()
	abandoned := m.next != next
	m.mu.Unlock()
	if abandoned {
		return nil
	}
	if err := m.keys.write(hostKey, next); err != nil {
		return err
	}
	if err := m.renewLocal(time.Now()); err != nil {
		return err
	}
	if err := m.keys.remove(nextKey); err != nil {
		return err
	}
	m.mu.Lock()
	m.next = nil
	for _, name := range m.opt.Names {
		// Obtained of a directory that is not set now. If it is again, nobody knows of
		// the old key any more.
		if c := m.public[name]; c != nil && !sameKey(c, next) {
			delete(m.public, name)
		}
	}
	m.mu.Unlock()
	m.opt.Log.Info("the announced key is in use", "sha256", sumOf(next))
	return nil
}
