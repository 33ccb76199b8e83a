package certs

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"time"
)

// wanted returns the names that public certificates are served for.
func (m *Manager) wanted() []string { return slices.Concat(m.opt.Names, m.opt.Shared()) }

// ordersFor says how a name is ordered.
func (m *Manager) ordersFor(a *account, name string) orders {
	if slices.Contains(m.opt.Names, name) {
		return a.hosts
	}
	return a.shared
}

// keepOrdered orders what is due, until ctx ends.
func (m *Manager) keepOrdered(ctx context.Context) {
	for ctx.Err() == nil {
		m.lookAtFiles(time.Now())
		pause := time.Hour // a clock that was set is noticed
		if a := m.current(); a != nil {
			m.orderDue(ctx, a)
			pause = min(pause, max(time.Second, m.untilDue(a)))
		}
		m.rollOver(ctx)
		switch files, disk := m.pending(); {
		case files:
			pause = min(pause, 5*time.Second)
		case disk:
			pause = min(pause, time.Minute)
		}
		select {
		case <-m.wake:
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// untilDue is the time until the next order is due.
func (m *Manager) untilDue(a *account) time.Duration {
	next := time.Duration(1<<63 - 1)
	for _, name := range m.wanted() {
		if !m.ordered(name) {
			continue
		}
		m.mu.Lock()
		next = min(next, time.Until(m.dueAt(a, name)))
		m.mu.Unlock()
	}
	return next
}

// pending reports what is watched closely: files, or a key that is announced; and a disk that
// could not take a certificate.
func (m *Manager) pending() (files, disk bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.next != nil || len(m.files) > 0, len(m.unstored) > 0
}

// orderDue orders the certificates that are due.
func (m *Manager) orderDue(ctx context.Context, a *account) {
	m.loadPublic() // a name may be wanted again
	for _, name := range m.wanted() {
		if ctx.Err() != nil || a.ctx.Err() != nil {
			return
		}
		if !m.ordered(name) {
			continue
		}
		m.storeAgain(name)
		m.askInfo(a, name)
		m.mu.Lock()
		due := !time.Now().Before(m.dueAt(a, name))
		m.mu.Unlock()
		if due {
			_ = m.order(ctx, a, name, whenDue) // it is taken down
		}
		m.alert(name)
	}
}

// ordered reports whether the certificate for a name comes from a directory.
func (m *Manager) ordered(name string) bool {
	return !m.byFile(name) && (!slices.Contains(m.opt.Names, name) || m.opt.Known(name))
}

// byFile reports whether an operator brings the certificate for a name.
func (m *Manager) byFile(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.brought(name)
}

// brought is byFile; m.mu is held.
func (m *Manager) brought(name string) bool {
	return slices.ContainsFunc(m.files, func(f *file) bool { return f.cert != nil && f.cert.Leaf.VerifyHostname(name) == nil })
}

// dueAt is when the next order for a name may be made; m.mu is held.
func (m *Manager) dueAt(a *account, name string) time.Time {
	p, c, now := m.state.of(name), m.public[name], time.Now()
	var at time.Time // at once, if none of this directory is held
	if c != nil && p.Directory == a.settings.Directory {
		at = p.due(c.Leaf.NotBefore, c.Leaf.NotAfter)
		if first := p.settled(c.Leaf.NotBefore, c.Leaf.NotAfter, now); first.After(at) {
			at = first
		}
	}
	if first := p.notBefore(now); first.After(at) {
		at = first
	}
	return at
}

// askInfo asks the CA from time to time when it would have a certificate renewed.
func (m *Manager) askInfo(a *account, name string) {
	m.mu.Lock()
	p, c := m.state.of(name), m.public[name]
	stale := c != nil && p.Directory == a.settings.Directory && p.infoStale(time.Now())
	m.mu.Unlock()
	if !stale {
		return
	}
	info, err := m.ordersFor(a, name).renewalInfo(a.ctx, c.Leaf)
	if ended(a.ctx) {
		return
	}
	m.mu.Lock()
	if m.public[name] != c { // renewed meanwhile: it is about the one before
		m.mu.Unlock()
		return
	}
	before := p.Info.SelectedTime
	p.noteInfo(info, err, time.Now())
	changed := !p.Info.SelectedTime.Equal(before)
	m.mu.Unlock()
	if changed {
		if err := m.saveState(); err != nil {
			m.opt.Log.Warn("it cannot be stored when certificates are due", "err", err)
		}
	}
	if err != nil {
		m.opt.Log.Debug("the CA does not say when a certificate is to be renewed", "name", name, "err", err)
	}
}

// Why a certificate is ordered.
type why int

const (
	whenDue  why = iota // it is due, if it still is when its turn comes
	byHand              // an operator wants it
	rollover            // with the key that was announced
)

// order orders a certificate once and takes down what became of it.
func (m *Manager) order(ctx context.Context, a *account, name string, because why) error {
	select {
	case m.ordering <- struct{}{}:
		defer func() { <-m.ordering }()
	case <-ctx.Done():
		return ctx.Err()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(a.ctx, cancel)() // the settings have changed
	if ctx.Err() != nil {
		return ctx.Err()
	}
	o := m.ordersFor(a, name)
	m.mu.Lock()
	if because == whenDue && time.Now().Before(m.dueAt(a, name)) {
		m.mu.Unlock()
		return nil // an operator came first
	}
	m.useNext = because == rollover
	p := m.state.of(name)
	p.Last, p.Begun = time.Now(), true
	c := m.public[name]
	early := because == whenDue && c != nil && p.Directory == a.settings.Directory && p.early(c.Leaf.NotBefore, c.Leaf.NotAfter, p.Last)
	// Every other time without a word of what is replaced: a CA that issued a certificate
	// that could not be stored refuses to have the one before replaced again.
	o.config.DisableARI = p.Failures%2 == 1
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.useNext, p.Begun = false, false
	}()
	// Before the order: if the node dies in it, it counts as one that failed.
	if err := m.saveState(); err != nil {
		m.opt.Log.Warn("it cannot be stored that a certificate is ordered", "err", err)
	}
	chain, err := o.order(ctx, name)
	if err == nil {
		if err = m.accept(a, name, chain); err == nil {
			m.mu.Lock()
			p.Early = early
			until := m.public[name].Leaf.NotAfter
			m.mu.Unlock()
			if early {
				if err := m.saveState(); err != nil {
					m.opt.Log.Warn("it cannot be stored that a certificate was obtained", "err", err)
				}
			}
			m.opt.Log.Info("certificate obtained", "name", name, "directory", a.settings.Directory, "until", until)
			return nil
		}
		err = fmt.Errorf("obtained, but not taken into use or not stored: %w", err)
	}
	if ended(ctx) {
		m.mu.Lock()
		p.Begun = false
		m.mu.Unlock()
		return errors.Join(ctx.Err(), m.saveState())
	}
	m.mu.Lock()
	p.Begun = false
	p.failed(err, time.Now())
	first, pause := p.Failures == 1, p.Next
	m.mu.Unlock()
	level := m.opt.Log.Warn
	if !first {
		level = m.opt.Log.Info // once is enough; the last error is shown by status
	}
	level("certificate not obtained; it is tried again", "name", name, "at", pause, "err", p.Error)
	if serr := m.saveState(); serr != nil {
		m.opt.Log.Warn("it cannot be stored that a certificate was ordered", "err", serr)
	}
	return err
}

// alert says once that a certificate could not be renewed and is late, and again when it
// has ended.
func (m *Manager) alert(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p, c := m.state.of(name), m.public[name]
	if p.Failures == 0 {
		return
	}
	now := time.Now()
	switch {
	case c == nil || p.alertedEnd:
	case now.After(c.Leaf.NotAfter):
		p.alerted, p.alertedEnd = true, true
		m.opt.Log.Error("a certificate has ended and is served on: senders and archives that check it do not come", "name", name, "ended", c.Leaf.NotAfter, "err", p.Error)
	case late(c, now) && !p.alerted:
		p.alerted = true
		m.opt.Log.Error("a certificate will end: it could not be renewed", "name", name, "until", c.Leaf.NotAfter, "attempts", p.Failures, "next", p.Next, "err", p.Error)
	}
}

// late reports whether a certificate should have been renewed: a quarter of its life is
// left, or the CA's word of a third is long past.
func late(c *tls.Certificate, now time.Time) bool {
	return now.After(c.Leaf.NotAfter.Add(-c.Leaf.NotAfter.Sub(c.Leaf.NotBefore) / 4))
}

// ErrNotOrdered says that there is no directory to order a certificate from, that an
// operator brings it, or that the DNS does not answer for the name.
var ErrNotOrdered = errors.New("no certificate is ordered for that name")

// Renew orders a certificate now, whether it is due or not. Without a name it orders those
// for every name. The errors are those of the orders, or ErrNotOrdered.
func (m *Manager) Renew(ctx context.Context, name string) error {
	a := m.current()
	if a == nil {
		return ErrNotOrdered
	}
	names := []string{name}
	if name == "" {
		names = m.wanted()
	} else if !slices.Contains(m.wanted(), name) || !m.ordered(name) {
		return ErrNotOrdered
	}
	var errs []error
	for _, name := range names {
		if !m.ordered(name) {
			continue
		}
		if err := m.order(ctx, a, name, byHand); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}
