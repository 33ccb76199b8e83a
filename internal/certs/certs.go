// Package certs holds the certificates that this host shows to mail programs.
//
// It promises: there is always a certificate to serve; a publicly trusted one is
// served as soon as it is held, and a last good one rather than none; keys never
// leave this node and stay the same over renewals; renewing the certificate of a host
// needs no other node. DESIGN.md says how.
package certs

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/netutil"

	"msgw/internal/ca"
)

// Options of a Manager.
type Options struct {
	Dir       string // for this node's certificates and keys
	Names     []string
	Shared    func() []string               // names that the sites share; nil: none
	Authority func() (*ca.Authority, error) // the cluster's CA
	Root      func() string                 // its certificate, PEM
	ACME      func() ACME                   // where public certificates come from
	Own       Own                           // what is said of that for this node alone
	Files     []File                        // certificates that an operator brings
	Changed   func() <-chan struct{}        // closed when Root, Shared or ACME may have changed
	Resolver  string                        // host:port of the resolver to reach the directory with; empty: the system's
	// ChallengeName is where the DNS is asked for the proof of a host name; nil: at
	// _acme-challenge below it. A host outside of the zone has an alias there.
	ChallengeName func(host string) string
	// Known reports whether the DNS answers for one of Names: none is ordered before that,
	// nor once it does not any more. nil: for all of them.
	Known func(host string) bool
	// Others makes the other sites answer values, and these only, at the challenge name of
	// a shared name, and waits until they do; nil: there are no others.
	Others func(ctx context.Context, name string, values []string) error
	// Announced returns nil once every resolver can know of a key that Keys has, and else
	// why not; nil: they need not.
	Announced func(key string) error
	Log       *slog.Logger
}

// Manager serves and renews the certificates of one node.
type Manager struct {
	opt     Options
	dns     *challenges
	keys    keyring
	storage *storage
	wake    chan struct{} // there may be something to order

	ordering chan struct{} // has room while no order is made, of which there is one at a time
	useNext  bool          // order with the announced key; guarded by ordering and mu
	rolling  sync.Mutex    // held while the announced key is made, dropped or taken into use; after ordering
	renewing sync.Mutex    // held while the certificate of the cluster's CA is renewed
	saving   sync.Mutex    // held while the state is written

	mu         sync.Mutex
	local      *tls.Certificate // issued by the cluster's CA, or self-signed until one is
	selfSigned bool             // local is
	localErr   error            // why no better local one is held
	acme       *account         // nil while no directory is set
	public     map[string]*tls.Certificate
	unstored   map[string][]byte // chains that are served, and that could not be stored yet
	loaded     map[string]bool   // names whose certificate was looked for in the files
	state      *state
	files      []*file
	next       crypto.Signer // announced, to be used after the one in use; nil: none
	waiting    string        // why it is not in use yet
}

const certFile = "host.crt" // of the cluster's CA

// Open loads this node's certificates, or makes one with the cluster's CA. If neither
// can be done it makes one by itself, says so, and Run tries on; then the error is
// nil, too. It returns an error only if there is no key at all to be had.
func Open(opt Options) (*Manager, error) {
	if opt.Shared == nil {
		opt.Shared = func() []string { return nil }
	}
	if opt.Known == nil {
		opt.Known = func(string) bool { return true }
	}
	if opt.Announced == nil {
		opt.Announced = func(string) error { return nil }
	}
	m := &Manager{opt: opt, dns: newChallenges(), keys: keyring{opt.Dir}, wake: make(chan struct{}, 1), ordering: make(chan struct{}, 1), public: map[string]*tls.Certificate{}, unstored: map[string][]byte{}, loaded: map[string]bool{}}
	if err := os.MkdirAll(opt.Dir, 0o700); err != nil {
		opt.Log.Error("the directory of the certificates cannot be made", "err", err)
	}
	m.storage = newStorage(m.path("acme"))
	var err error
	if m.state, err = readState(opt.Dir); err != nil {
		opt.Log.Error("it is not known what was ordered before; orders begin anew", "err", err)
	}
	if k, err := m.keys.read(nextKey); err == nil {
		m.next = k
	} else if !errors.Is(err, os.ErrNotExist) {
		opt.Log.Error("the key that was announced cannot be read; begin the rollover again", "err", err)
	}
	// Before the first port opens: who comes right after a restart sees no other
	// certificate than before it.
	m.openFiles()
	m.lookAtFiles(time.Now())
	m.followACME()
	m.loadPublic()
	err = m.renewLocal(time.Now())
	if err == nil {
		return m, nil
	}
	opt.Log.Error("no certificate from the cluster's CA; the last one or a self-signed one is served", "err", err)
	if m.local == nil {
		m.local, err = m.signSelf(time.Now())
		m.selfSigned = true
		return m, err
	}
	return m, nil
}

// Run renews certificates until ctx ends.
func (m *Manager) Run(ctx context.Context) {
	var orders sync.WaitGroup
	defer orders.Wait()
	defer m.stopACME()
	orders.Go(func() { m.keepOrdered(ctx) })
	for {
		changed, pause := m.opt.Changed(), time.Hour
		if err := m.renewLocal(time.Now()); err != nil {
			pause = time.Minute
			m.opt.Log.Error("cannot renew the certificate of the cluster's CA; the old one is served on", "err", err)
		}
		m.followACME()
		m.notify()
		select {
		case <-changed:
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

func (m *Manager) notify() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// current is the account in use, or nil.
func (m *Manager) current() *account {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.acme
}

// followACME starts, changes or stops ACME as the settings say.
func (m *Manager) followACME() {
	want, have := m.opt.ACME(), m.current()
	if have != nil && have.settings == want || have == nil && want.Directory == "" {
		return
	}
	m.stopACME()
	if want.Directory == "" {
		return
	}
	a, err := m.newAccount(want)
	if err != nil {
		m.opt.Log.Error("ACME settings cannot be used", "directory", want.Directory, "err", err)
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.acme = a
}

func (m *Manager) stopACME() {
	m.mu.Lock()
	a := m.acme
	m.acme = nil
	m.mu.Unlock()
	if a != nil {
		a.stop()
	}
}

// ALPN is what a TLS client says to look at a tls-alpn-01 challenge (RFC 8737 section 3).
const ALPN = "acme-tls/1"

// TLS returns the configuration for listeners.
func (m *Manager) TLS() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: m.certificate}
}

// HTTPS returns the configuration for the HTTPS port, which also answers tls-alpn-01
// challenges if that is how this node proves its names.
func (m *Manager) HTTPS() *tls.Config {
	c := m.TLS()
	if m.opt.Own.Challenge == "tls-alpn-01" {
		c.NextProtos = []string{ALPN}
		c.GetCertificate = func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if a := m.current(); a != nil && slices.Equal(h.SupportedProtos, []string{ALPN}) {
				return a.hosts.config.GetCertificate(h)
			}
			return m.certificate(h)
		}
	}
	return c
}

// certificate chooses what to serve: the best certificate for the name asked for, if it
// is one of ours, else for this host's (many SMTP clients send none).
func (m *Manager) certificate(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
	now, asked := time.Now(), strings.ToLower(h.ServerName)
	wanted := asked != "" && slices.Contains(m.wanted(), asked)
	m.mu.Lock()
	defer m.mu.Unlock()
	if asked != "" {
		if c := m.best(asked, now); c != nil {
			return c, nil
		}
	}
	if wanted { // the cluster's CA alone certifies it
		return m.local, nil
	}
	for _, name := range m.opt.Names {
		if c := m.best(name, now); c != nil {
			return c, nil
		}
	}
	return m.local, nil
}

// best returns the certificate to serve for a name, but for that of the cluster's CA: one
// that an operator brought, else one of a directory; one that is in force before one that
// has ended; nil if there is none. m.mu is held.
func (m *Manager) best(name string, now time.Time) *tls.Certificate {
	var best *tls.Certificate
	better := func(c *tls.Certificate) {
		if c != nil && (best == nil || now.After(best.Leaf.NotAfter) && now.Before(c.Leaf.NotAfter)) {
			best = c
		}
	}
	for _, f := range m.files {
		if f.cert != nil && f.cert.Leaf.VerifyHostname(name) == nil {
			better(f.cert)
		}
	}
	if m.acme != nil {
		better(m.public[name])
	}
	return best
}

// pair makes a certificate to serve of a PEM chain and the one of keys that is its.
func pair(chain []byte, keys ...crypto.Signer) (*tls.Certificate, error) {
	c := &tls.Certificate{}
	for b, rest := pem.Decode(chain); b != nil; b, rest = pem.Decode(rest) {
		if b.Type == "CERTIFICATE" {
			c.Certificate = append(c.Certificate, b.Bytes)
		}
	}
	if len(c.Certificate) == 0 {
		return nil, errors.New("no certificate in PEM")
	}
	leaf, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		return nil, err
	}
	for _, key := range keys {
		pub, err := x509.MarshalPKIXPublicKey(key.Public())
		if err == nil && bytes.Equal(pub, leaf.RawSubjectPublicKeyInfo) {
			c.PrivateKey, c.Leaf = key, leaf
			return c, nil
		}
	}
	return nil, errors.New("certificate and key do not belong together")
}

// limit bounds the connections of a port that only a CA has reason to open.
func limit(l net.Listener) net.Listener { return netutil.LimitListener(l, 64) }
