package certs

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mholt/acmez/v3/acme"
)

// challenges holds the values that this node's DNS answers for DNS-01 (RFC 8555 section
// 8.4): its own, and those of other sites for names that they share.
type challenges struct {
	mu   sync.Mutex
	own  map[string][]string         // by name, ending with a dot
	told map[string]map[string]lease // by name and site
}

// lease is what another site asked for, until it is not wanted any more at the latest.
type lease struct {
	values []string
	until  time.Time
}

// Bounds of what another site may ask for.
const (
	maxValues = 16
	maxLease  = 2 * orderTime
)

func newChallenges() *challenges {
	return &challenges{own: map[string][]string{}, told: map[string]map[string]lease{}}
}

func canonical(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) + "." }

func (c *challenges) add(name, value string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.own[name] = append(slices.Clone(c.own[name]), value)
	return c.own[name]
}

func (c *challenges) remove(name, value string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	rest := slices.Clone(c.own[name])
	if i := slices.Index(rest, value); i >= 0 {
		rest = slices.Delete(rest, i, i+1)
	}
	if c.own[name] = rest; len(rest) == 0 {
		delete(c.own, name)
	}
	return rest
}

// set takes the place of what a site asked for at a name before.
func (c *challenges) set(site, name string, values []string, until time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	sites := c.told[name]
	if sites == nil {
		sites = map[string]lease{}
		c.told[name] = sites
	}
	if sites[site] = (lease{values, until}); len(values) == 0 {
		delete(sites, site)
	}
	if len(sites) == 0 {
		delete(c.told, name)
	}
}

func (c *challenges) get(name string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	sites := c.told[name]
	if len(sites) == 0 {
		return c.own[name]
	}
	all := slices.Clone(c.own[name])
	for _, l := range sites {
		if time.Now().Before(l.until) {
			all = append(all, l.values...)
		}
	}
	return all
}

// TXT returns the challenge values of a name; see dnsplugin.Challenges.
func (m *Manager) TXT(name string) []string { return m.dns.get(name) }

// Tell takes down which values another site wants to be answered at the challenge name of
// a name that the sites share, for at most the time that an order can take. No values: none
// any more. It returns an error if that is not a name that they share.
func (m *Manager) Tell(site, name string, values []string) error {
	if !slices.ContainsFunc(m.opt.Shared(), func(s string) bool { return canonical("_acme-challenge."+s) == name }) {
		return fmt.Errorf("challenge name %.80q: it belongs to no name that the sites share", name)
	}
	if len(values) > maxValues || slices.ContainsFunc(values, func(v string) bool { return len(v) > 255 }) {
		return fmt.Errorf("challenge name %s: expected at most %d values of 255 octets", name, maxValues)
	}
	m.dns.set(site, name, values, time.Now().Add(maxLease))
	return nil
}

// ownSolver proves this node's host names, whose challenge names are delegated to it alone:
// neither another node nor a quorum is needed. It is an acmez.Solver.
type ownSolver struct{ m *Manager }

func (s ownSolver) name(c acme.Challenge) string {
	if s.m.opt.ChallengeName != nil {
		return canonical(s.m.opt.ChallengeName(c.Identifier.Value))
	}
	return canonical(c.DNS01TXTRecordName())
}

// Present puts a value into the DNS.
func (s ownSolver) Present(_ context.Context, c acme.Challenge) error {
	s.m.dns.add(s.name(c), c.DNS01KeyAuthorization())
	return nil
}

// CleanUp takes it out again.
func (s ownSolver) CleanUp(_ context.Context, c acme.Challenge) error {
	s.m.dns.remove(s.name(c), c.DNS01KeyAuthorization())
	return nil
}

// waitsError says why an order is not gone on with for now.
type waitsError struct{ error }

func (e *waitsError) Error() string { return "the order waits: " + e.error.Error() }

// Unwrap returns the cause.
func (e *waitsError) Unwrap() error { return e.error }

// sharedSolver proves names that the sites share: the CA may ask any of them, so all that
// answer have to know the value. It is an acmez.Solver.
type sharedSolver struct{ m *Manager }

// Present puts a value into the DNS of every site, and returns once it is answered there.
// A site whose DNS answers but that cannot be told makes it fail: the CA might ask that one,
// and a failed validation counts against this node.
func (s sharedSolver) Present(ctx context.Context, c acme.Challenge) error {
	name := canonical(c.DNS01TXTRecordName())
	values := s.m.dns.add(name, c.DNS01KeyAuthorization())
	if s.m.opt.Others == nil {
		return nil
	}
	if err := s.m.opt.Others(ctx, name, values); err != nil {
		return &waitsError{err}
	}
	return nil
}

// CleanUp takes it out again. Who cannot be told forgets it by itself.
func (s sharedSolver) CleanUp(ctx context.Context, c acme.Challenge) error {
	name := canonical(c.DNS01TXTRecordName())
	values := s.m.dns.remove(name, c.DNS01KeyAuthorization())
	if s.m.opt.Others != nil {
		_ = s.m.opt.Others(ctx, name, values) // a lease ends by itself
	}
	return nil
}

// Try answers a value at a challenge name until the function that it returns is called.
func (m *Manager) Try(name, value string) (remove func()) {
	name = canonical(name)
	m.dns.add(name, value)
	return func() { m.dns.remove(name, value) }
}
