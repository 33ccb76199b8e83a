package certs

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"path"
	"strings"
	"time"
	"unicode"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3/acme"
	"go.uber.org/zap"
)

// ACME says where publicly trusted certificates come from, for every site; no directory:
// nowhere.
type ACME struct {
	Directory string // URL
	Email     string
	Roots     string // PEM that the directory's own certificate is checked against; empty: the system's
	Profile   string // of the directory's; empty: its default
	Chain     string // common name of an issuer that the chain is to have, if there is a choice
}

// Own is what is said of ACME for this node alone.
type Own struct {
	// Challenge is how its host names are proven: dns-01 (also if empty), http-01 or
	// tls-alpn-01. Names that sites share are always proven by dns-01.
	Challenge string
	HTTP      string // address of the port that http-01 is answered at
	HTTPS     string // address of the port that tls-alpn-01 is answered at
	// KeyID and MAC bind the account to one that the CA knows (RFC 8555 section 7.3.4).
	KeyID, MAC string
}

// orderTime bounds an order from its first to its last request.
const orderTime = 10 * time.Minute

// account orders certificates from one ACME directory. Account and keys are this node's
// own; the challenge name of its host is delegated to it alone, so its own DNS answers
// every challenge.
type account struct {
	settings ACME
	storage  *storage
	cache    *certmagic.Cache
	hosts    orders // of this node's host names
	shared   orders // of names that the sites share
	ctx      context.Context
	cancel   context.CancelFunc // ends every order
}

// orders is how certificates of one kind are ordered.
type orders struct {
	config *certmagic.Config
	issuer *certmagic.ACMEIssuer
}

// keyFunc is a certmagic.KeyGenerator.
type keyFunc func() (crypto.Signer, error)

// GenerateKey returns the key to order with.
func (f keyFunc) GenerateKey() (crypto.PrivateKey, error) { return f() }

func (m *Manager) newAccount(s ACME) (*account, error) {
	a := &account{settings: s, storage: m.storage}
	template := certmagic.ACMEIssuer{CA: s.Directory, Email: s.Email, Agreed: true, Profile: s.Profile, Resolver: m.opt.Resolver,
		CertObtainTimeout: orderTime / 2, Logger: zap.NewNop()} // what there is to say is returned
	if s.Email == "" {
		template.Email = " " // none; certmagic would look for one elsewhere, at last at the terminal
	}
	if s.Chain != "" {
		template.PreferredChains.AnyCommonName = []string{s.Chain}
	}
	if m.opt.Own.KeyID != "" {
		template.ExternalAccount = &acme.EAB{KeyID: m.opt.Own.KeyID, MACKey: m.opt.Own.MAC}
	}
	if s.Roots != "" {
		template.TrustedRoots = x509.NewCertPool()
		if !template.TrustedRoots.AppendCertsFromPEM([]byte(s.Roots)) {
			return nil, errors.New("roots: expected certificates in PEM")
		}
	}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	// Nothing is put into the cache: what is served and when it is renewed is said here.
	a.cache = certmagic.NewCache(certmagic.CacheOptions{Logger: zap.NewNop(),
		GetConfigForCert: func(certmagic.Certificate) (*certmagic.Config, error) { return a.hosts.config, nil }})
	hosts, shared := template, template
	switch own := m.opt.Own; own.Challenge {
	case "http-01":
		hosts.DisableTLSALPNChallenge = true
		hosts.ListenHost, hosts.AltHTTPPort = split(own.HTTP)
	case "tls-alpn-01":
		hosts.DisableHTTPChallenge = true
		hosts.ListenHost, hosts.AltTLSALPNPort = split(own.HTTPS)
	default:
		hosts.DNS01Solver = ownSolver{m}
	}
	shared.DNS01Solver = sharedSolver{m}
	a.hosts = a.orders(m.orderKey, hosts)
	a.shared = a.orders(func() (crypto.Signer, error) { return m.keys.load(sharedKey) }, shared)
	return a, nil
}

func (a *account) orders(key keyFunc, template certmagic.ACMEIssuer) orders {
	// Keys are not certmagic's: it stores key, certificate and description one after the
	// other, and deletes the first two if the third cannot be stored.
	config := certmagic.New(a.cache, certmagic.Config{Storage: a.storage, KeySource: key, Logger: zap.NewNop(),
		OCSP: certmagic.OCSPConfig{DisableStapling: true}})
	issuer := certmagic.NewACMEIssuer(config, template)
	config.Issuers = []certmagic.Issuer{issuer}
	return orders{config, issuer}
}

func split(address string) (host string, port int) {
	ap, _ := netip.ParseAddrPort(address) // checked with the configuration
	return ap.Addr().String(), int(ap.Port())
}

func (a *account) stop() {
	a.cancel()
	a.cache.Stop()
}

// order gets a certificate for a name, and returns its chain in PEM.
func (o orders) order(ctx context.Context, name string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, orderTime)
	defer cancel()
	var err error
	if o.stored(ctx, name) {
		err = o.config.RenewCertSync(ctx, name, true) // it tells the CA what is replaced (RFC 9773 section 5)
	} else {
		err = o.config.ObtainCertSync(ctx, name)
	}
	if err != nil {
		return nil, plain(err)
	}
	return o.chain(ctx, name)
}

// stored reports whether there is an order to renew. What certmagic could not read again,
// after a crash of the machine or of its disk, is removed: it would refuse every order.
func (o orders) stored(ctx context.Context, name string) bool {
	issuer := o.issuer.IssuerKey()
	if !o.config.Storage.Exists(ctx, certmagic.StorageKeys.SiteCert(issuer, name)) {
		return false
	}
	b, err := o.config.Storage.Load(ctx, certmagic.StorageKeys.SiteMeta(issuer, name))
	if err == nil && json.Unmarshal(b, new(certmagic.CertificateResource)) == nil || err != nil && !errors.Is(err, fs.ErrNotExist) {
		return true
	}
	return o.config.Storage.Delete(ctx, certmagic.StorageKeys.CertsSitePrefix(issuer, name)) != nil
}

func (o orders) chain(ctx context.Context, name string) ([]byte, error) {
	return o.config.Storage.Load(ctx, certmagic.StorageKeys.SiteCert(o.issuer.IssuerKey(), name))
}

// renewalInfo asks the CA when it would have a certificate renewed (RFC 9773).
func (o orders) renewalInfo(ctx context.Context, leaf *x509.Certificate) (acme.RenewalInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var c certmagic.Certificate
	c.Leaf = leaf
	return o.issuer.GetRenewalInfo(ctx, c)
}

// plain is an error of an order in one line, without what is said twice.
func plain(err error) error {
	var p acme.Problem
	if errors.As(err, &p) {
		text := p.Detail
		for _, sub := range p.Subproblems {
			text += fmt.Sprintf("; %s: %s", sub.Identifier.Value, sub.Detail)
		}
		return &refusedError{Type: strings.TrimPrefix(p.Type, acme.ProblemTypeNamespace), Detail: printable(text)}
	}
	var waits *waitsError
	if errors.As(err, &waits) {
		return waits
	}
	return err
}

// printable is a stranger's text in one line of at most 500 octets, without control characters.
func printable(text string) string {
	text = strings.Join(strings.FieldsFunc(text, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }), " ")
	return strings.ToValidUTF8(fmt.Sprintf("%.500s", text), "")
}

// refusedError is the CA's word that there is no certificate.
type refusedError struct {
	Type   string // of RFC 8555 section 6.7, without its prefix
	Detail string
}

func (e *refusedError) Error() string {
	text := "the CA says " + e.Type
	if e.Detail != "" {
		text += ": " + e.Detail
	}
	switch e.Type {
	case "caa":
		text += " (see `msgw dns set --caa`, and the CAA records of the parent zones)"
	case "externalAccountRequired":
		text += " (set acme.key_id and acme.mac_file in the configuration file)"
	}
	return text
}

// uri looks for the account where certmagic keeps it: acme/<directory>/users/<email>/<name>.json.
func (a *account) uri(ctx context.Context) string {
	users := path.Join("acme", certmagic.StorageKeys.Safe(a.hosts.issuer.IssuerKey()), "users")
	files, err := a.storage.List(ctx, users, true)
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
		b, err := a.storage.Load(ctx, f)
		if err == nil && json.Unmarshal(b, &account) == nil && account.Location != "" {
			uris = append(uris, account.Location)
		}
	}
	if len(uris) != 1 {
		return ""
	}
	return uris[0]
}

// ServeHTTP01 answers http-01 challenges (RFC 8555 section 8.3) on l, and nothing else,
// until ctx ends.
func (m *Manager) ServeHTTP01(ctx context.Context, l net.Listener) error {
	s := &http.Server{ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, MaxHeaderBytes: 8 << 10,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if a := m.current(); a != nil {
				a.hosts.issuer.HTTPChallengeHandler(http.NotFoundHandler()).ServeHTTP(w, r)
				return
			}
			http.NotFound(w, r)
		})}
	s.SetKeepAlivesEnabled(false)
	defer context.AfterFunc(ctx, func() { s.Close() })()
	if err := s.Serve(limit(l)); ctx.Err() == nil {
		return err
	}
	return nil
}
