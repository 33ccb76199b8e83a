package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3/acme"
	"go.uber.org/zap"
)

// account gets and renews certificates from one ACME directory. Account and keys
// are this node's own; the challenge name of its host is delegated to it alone, so
// its own DNS answers every challenge.
type account struct {
	settings ACME
	issuer   *certmagic.ACMEIssuer
	cache    *certmagic.Cache
	config   *certmagic.Config
	stored   map[string]*tls.Certificate // what it had got before; served until cache holds it again
	managed  bool                        // certificates are got and renewed; only Run looks at it
	cancel   context.CancelFunc          // ends that; nil before it has begun

	mu   sync.Mutex
	last string // the last failure; empty after a success
}

// followACME starts, changes or stops ACME as the settings say.
func (m *Manager) followACME(ctx context.Context) {
	want := m.opt.ACME()
	m.mu.Lock()
	have := m.acme
	m.mu.Unlock()
	if have != nil && have.settings == want || have == nil && want.Directory == "" {
		return
	}
	m.stopACME()
	if want.Directory == "" {
		return
	}
	a, err := m.newAccount(ctx, want)
	if err != nil {
		m.opt.Log.Error("ACME settings cannot be used", "directory", want.Directory, "err", err)
		return
	}
	m.mu.Lock()
	m.acme = a
	m.mu.Unlock()
}

// manageACME gets what is not held yet, and renews, from the first call on.
func (m *Manager) manageACME(ctx context.Context) {
	m.mu.Lock()
	a := m.acme
	m.mu.Unlock()
	if a == nil || a.managed {
		return
	}
	a.managed = true
	ctx, a.cancel = context.WithCancel(ctx)
	if err := a.config.ManageAsync(ctx, m.opt.Names); err != nil {
		m.opt.Log.Error("certificates cannot be renewed", "directory", a.settings.Directory, "err", err)
	}
}

func (m *Manager) stopACME() {
	m.mu.Lock()
	a := m.acme
	m.acme = nil
	m.mu.Unlock()
	if a == nil {
		return
	}
	if a.cancel != nil {
		a.cancel()
	}
	a.cache.Stop()
}

// newAccount opens an account and loads what it has got before.
func (m *Manager) newAccount(ctx context.Context, s ACME) (*account, error) {
	a := &account{settings: s}
	quiet := zap.NewNop() // events say what there is to say
	a.cache = certmagic.NewCache(certmagic.CacheOptions{Logger: quiet,
		GetConfigForCert: func(certmagic.Certificate) (*certmagic.Config, error) { return a.config, nil }})
	a.config = certmagic.New(a.cache, certmagic.Config{
		Storage: &certmagic.FileStorage{Path: filepath.Join(m.opt.Dir, "acme")},
		// The same key over renewals keeps TLSA records true, and leaves no moment
		// when key and certificate on disk do not match.
		ReusePrivateKeys: true,
		KeySource:        m,
		OCSP:             certmagic.OCSPConfig{DisableStapling: true},
		Logger:           quiet,
		OnEvent: func(_ context.Context, event string, data map[string]any) error {
			m.acmeEvent(a, event, data)
			return nil
		},
	})
	issuer := certmagic.ACMEIssuer{CA: s.Directory, Email: s.Email, Agreed: true, Resolver: m.opt.Resolver,
		DNS01Solver: &m.dns, DisableHTTPChallenge: true, DisableTLSALPNChallenge: true,
		CertObtainTimeout: 5 * time.Minute, Logger: quiet}
	if s.Roots != "" {
		issuer.TrustedRoots = x509.NewCertPool()
		if !issuer.TrustedRoots.AppendCertsFromPEM([]byte(s.Roots)) {
			a.cache.Stop()
			return nil, fmt.Errorf("roots: expected certificates in PEM")
		}
	}
	a.issuer = certmagic.NewACMEIssuer(a.config, issuer)
	a.config.Issuers = []certmagic.Issuer{a.issuer}
	a.stored = map[string]*tls.Certificate{}
	for _, name := range m.opt.Names {
		c, err := a.config.CacheManagedCertificate(ctx, name)
		if err == nil {
			a.stored[name] = &c.Certificate
		} else if !errors.Is(err, fs.ErrNotExist) {
			m.opt.Log.Error("a certificate that was obtained cannot be loaded", "name", name, "err", err)
		}
		// What the cache holds already, ManageAsync does not look at: whether it is due.
		a.cache.RemoveManaged([]certmagic.SubjectIssuer{{Subject: name}})
	}
	return a, nil
}

func (m *Manager) acmeEvent(a *account, event string, data map[string]any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch event {
	case "cert_obtained":
		a.last = ""
		m.opt.Log.Info("certificate obtained", "name", data["identifier"], "renewal", data["renewal"])
	case "cert_failed":
		a.last = fmt.Sprint(data["error"])
		m.opt.Log.Error("certificate not obtained; it is tried again", "name", data["identifier"], "err", data["error"])
	}
}

func (a *account) trouble() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.last
}

// held returns the newest certificate for a name, expired or not, or nil.
func (a *account) held(name string) *tls.Certificate {
	var best *tls.Certificate
	for _, c := range a.cache.AllMatchingCertificates(name) {
		if c.Leaf != nil && (best == nil || c.Leaf.NotAfter.After(best.Leaf.NotAfter)) {
			best = &c.Certificate
		}
	}
	if best == nil {
		return a.stored[name]
	}
	return best
}

// challenges answers DNS-01 (RFC 8555 section 8.4) through this node's own DNS. It
// is an acmez.Solver.
type challenges struct {
	mu     sync.Mutex
	values map[string][]string
}

func challengeName(c acme.Challenge) string {
	return strings.ToLower(strings.TrimSuffix(c.DNS01TXTRecordName(), ".")) + "."
}

// Present puts a value into the DNS.
func (s *challenges) Present(_ context.Context, c acme.Challenge) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := challengeName(c)
	s.values[name] = append(s.values[name], c.DNS01KeyAuthorization())
	return nil
}

// CleanUp takes it out again.
func (s *challenges) CleanUp(_ context.Context, c acme.Challenge) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	name, value := challengeName(c), c.DNS01KeyAuthorization()
	var rest []string
	for _, v := range s.values[name] {
		if v != value {
			rest = append(rest, v)
		}
	}
	if len(rest) == 0 {
		delete(s.values, name)
	} else {
		s.values[name] = rest
	}
	return nil
}

func (s *challenges) get(name string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.values[name]
}
