package node

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"msgw/internal/ca"
	"msgw/internal/certs"
)

// acmeServer issues certificates by RFC 8555 with DNS-01. It lives outside of virtual
// time, with sockets of this machine, and keeps no connection open: who talks to it from
// inside waits for an answer, in which no time passes, and for nothing after it.
type acmeServer struct {
	*httptest.Server
	root   *x509.Certificate
	key    *ecdsa.PrivateKey
	life   time.Duration // of what it issues
	lookup func(name string) ([]string, error)

	mu       sync.Mutex
	now      time.Time // for what it issues; zero: the machine's
	nonces   map[string]bool
	accounts []acmeAccount
	orders   []*acmeOrder
	faults   []string
}

type acmeAccount struct {
	key        *ecdsa.PublicKey
	thumbprint string // RFC 7638
}

type acmeOrder struct {
	account int
	name    string
	token   string
	valid   bool // the challenge was met
	failed  bool
	chain   []byte // PEM
}

var b64 = base64.RawURLEncoding

func newACME(t *testing.T, life time.Duration) *acmeServer {
	t.Helper()
	s := &acmeServer{life: life, nonces: map[string]bool{}}
	var err error
	if s.key, err = ca.NewKey(); err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "public CA of the test"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Unix(0, 0), NotAfter: time.Now().AddDate(10, 0, 0), KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, s.key.Public(), s.key)
	if err != nil {
		t.Fatal(err)
	}
	if s.root, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /dir", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(map[string]string{"newNonce": s.URL + "/nonce", "newAccount": s.URL + "/account", "newOrder": s.URL + "/order"})
	})
	mux.HandleFunc("/nonce", func(w http.ResponseWriter, _ *http.Request) { s.nonce(w) })
	for path, f := range map[string]func(account int, arg string, body []byte) (int, string, any, error){
		"/order": s.newOrder, "/order/{n}": s.order, "/authz/{n}": s.authorization, "/challenge/{n}": s.challenge, "/finalize/{n}": s.finalize, "/cert/{n}": s.certificate,
	} {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
			account, body, err := s.verify(r)
			if err != nil {
				s.answer(w, 0, "", nil, err)
				return
			}
			code, location, out, err := f(account, r.PathValue("n"), body)
			s.answer(w, code, location, out, err)
		})
	}
	mux.HandleFunc("POST /account", func(w http.ResponseWriter, r *http.Request) {
		account, _, err := s.verify(r)
		s.answer(w, http.StatusCreated, s.URL+"/account/"+strconv.Itoa(account), map[string]string{"status": "valid"}, err)
	})
	s.Server = httptest.NewUnstartedServer(mux)
	s.Config.SetKeepAlivesEnabled(false)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

// roots is what the server's own certificate is checked against, in PEM.
func (s *acmeServer) roots() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
}

// at tells what time it is.
func (s *acmeServer) at(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = now
}

func (s *acmeServer) nonce(w http.ResponseWriter) {
	n := rand.Text()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nonces[n] = true
	w.Header().Set("Replay-Nonce", n)
}

func (s *acmeServer) answer(w http.ResponseWriter, code int, location string, out any, err error) {
	s.nonce(w)
	if err != nil {
		s.mu.Lock()
		s.faults = append(s.faults, err.Error())
		s.mu.Unlock()
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusBadRequest)
		json.NewEncoder(w).Encode(map[string]string{"type": "urn:ietf:params:acme:error:malformed", "detail": err.Error()})
		return
	}
	if location != "" {
		w.Header().Set("Location", location)
	}
	if chain, ok := out.([]byte); ok {
		w.Header().Set("Content-Type", "application/pem-certificate-chain")
		w.Write(chain)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(out)
}

// verify checks a request's signature, nonce and address (RFC 8555 section 6), and makes
// the account of a key that is shown.
func (s *acmeServer) verify(r *http.Request) (account int, payload []byte, err error) {
	var jws struct{ Protected, Payload, Signature string }
	b, err := io.ReadAll(io.LimitReader(r.Body, 64<<10))
	if err == nil {
		err = json.Unmarshal(b, &jws)
	}
	if err != nil {
		return 0, nil, err
	}
	var head struct {
		Alg, Nonce, URL, Kid string
		JWK                  *struct{ Kty, Crv, X, Y string }
	}
	b, err = b64.DecodeString(jws.Protected)
	if err == nil {
		err = json.Unmarshal(b, &head)
	}
	if err != nil {
		return 0, nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.nonces[head.Nonce] || head.Alg != "ES256" || head.URL != s.URL+r.URL.Path {
		return 0, nil, fmt.Errorf("nonce, algorithm %s or address %s is not right", head.Alg, head.URL)
	}
	delete(s.nonces, head.Nonce)
	if head.JWK != nil {
		x, err := b64.DecodeString(head.JWK.X)
		y, yerr := b64.DecodeString(head.JWK.Y)
		if err := errors.Join(err, yerr); err != nil {
			return 0, nil, err
		}
		pub, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), slices.Concat([]byte{4}, x, y))
		if err != nil {
			return 0, nil, err
		}
		sum := sha256.Sum256(fmt.Appendf(nil, `{"crv":"P-256","kty":"EC","x":%q,"y":%q}`, head.JWK.X, head.JWK.Y))
		thumb := b64.EncodeToString(sum[:])
		if account = slices.IndexFunc(s.accounts, func(a acmeAccount) bool { return a.thumbprint == thumb }); account < 0 {
			account = len(s.accounts)
			s.accounts = append(s.accounts, acmeAccount{pub, thumb})
		}
	} else if account, err = strconv.Atoi(strings.TrimPrefix(head.Kid, s.URL+"/account/")); err != nil || account < 0 || account >= len(s.accounts) {
		return 0, nil, fmt.Errorf("account %q", head.Kid)
	}
	sig, err := b64.DecodeString(jws.Signature)
	if err != nil || len(sig) != 64 {
		return 0, nil, fmt.Errorf("signature of %d octets: %w", len(sig), err)
	}
	sum := sha256.Sum256([]byte(jws.Protected + "." + jws.Payload))
	if !ecdsa.Verify(s.accounts[account].key, sum[:], new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])) {
		return 0, nil, errors.New("signature does not verify")
	}
	payload, err = b64.DecodeString(jws.Payload)
	return account, payload, err
}

func (s *acmeServer) newOrder(account int, _ string, body []byte) (int, string, any, error) {
	var in struct {
		Identifiers []struct{ Type, Value string }
	}
	if err := json.Unmarshal(body, &in); err != nil || len(in.Identifiers) != 1 || in.Identifiers[0].Type != "dns" {
		return 0, "", nil, fmt.Errorf("order: %s, %w", body, err)
	}
	s.mu.Lock()
	s.orders = append(s.orders, &acmeOrder{account: account, name: in.Identifiers[0].Value, token: rand.Text()})
	n := strconv.Itoa(len(s.orders) - 1)
	s.mu.Unlock()
	_, location, out, err := s.order(account, n, nil)
	return http.StatusCreated, location, out, err
}

// find looks up an order of an account; s.mu is held.
func (s *acmeServer) find(account int, arg string) (*acmeOrder, error) {
	n, err := strconv.Atoi(arg)
	if err != nil || n < 0 || n >= len(s.orders) || s.orders[n].account != account {
		return nil, fmt.Errorf("order %q is not of this account", arg)
	}
	return s.orders[n], nil
}

func (s *acmeServer) order(account int, arg string, _ []byte) (int, string, any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, err := s.find(account, arg)
	if err != nil {
		return 0, "", nil, err
	}
	out := map[string]any{"status": o.status("ready"), "identifiers": []any{map[string]string{"type": "dns", "value": o.name}},
		"authorizations": []string{s.URL + "/authz/" + arg}, "finalize": s.URL + "/finalize/" + arg}
	if o.chain != nil {
		out["status"], out["certificate"] = "valid", s.URL+"/cert/"+arg
	}
	return http.StatusOK, s.URL + "/order/" + arg, out, nil
}

func (o *acmeOrder) status(met string) string {
	switch {
	case o.valid:
		return met
	case o.failed:
		return "invalid"
	}
	return "pending"
}

func (s *acmeServer) authorization(account int, arg string, _ []byte) (int, string, any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, err := s.find(account, arg)
	if err != nil {
		return 0, "", nil, err
	}
	return http.StatusOK, "", map[string]any{"status": o.status("valid"), "identifier": map[string]string{"type": "dns", "value": o.name},
		"challenges": []any{o.describe(s.URL + "/challenge/" + arg)}}, nil
}

func (o *acmeOrder) describe(url string) map[string]string {
	return map[string]string{"type": "dns-01", "url": url, "token": o.token, "status": o.status("valid")}
}

// challenge looks whether the DNS says what it should (RFC 8555 section 8.4).
func (s *acmeServer) challenge(account int, arg string, _ []byte) (int, string, any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, err := s.find(account, arg)
	if err != nil {
		return 0, "", nil, err
	}
	sum := sha256.Sum256([]byte(o.token + "." + s.accounts[account].thumbprint))
	got, err := s.lookup("_acme-challenge." + o.name + ".")
	if o.valid = slices.Contains(got, b64.EncodeToString(sum[:])); !o.valid {
		o.failed = true
		s.faults = append(s.faults, fmt.Sprintf("challenge for %s: %q, %v", o.name, got, err))
	}
	return http.StatusOK, "", o.describe(s.URL + "/challenge/" + arg), nil
}

func (s *acmeServer) finalize(account int, arg string, body []byte) (int, string, any, error) {
	if err := s.issue(account, arg, body); err != nil {
		return 0, "", nil, err
	}
	return s.order(account, arg, nil)
}

func (s *acmeServer) issue(account int, arg string, body []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, err := s.find(account, arg)
	if err != nil || !o.valid {
		return fmt.Errorf("order %s is not ready: %w", arg, err)
	}
	var in struct{ CSR string }
	if err := json.Unmarshal(body, &in); err != nil {
		return err
	}
	der, err := b64.DecodeString(in.CSR)
	if err != nil {
		return err
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil || !slices.Equal(csr.DNSNames, []string{o.name}) {
		return fmt.Errorf("request for %q: %w", csr.DNSNames, err)
	}
	now := s.now
	if now.IsZero() {
		now = time.Now()
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(int64(len(s.orders)) + 1000), DNSNames: csr.DNSNames, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(s.life),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	leaf, err := x509.CreateCertificate(rand.Reader, tmpl, s.root, csr.PublicKey, s.key)
	if err != nil {
		return err
	}
	for _, der := range [][]byte{leaf, s.root.Raw} {
		o.chain = append(o.chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return nil
}

func (s *acmeServer) certificate(account int, arg string, _ []byte) (int, string, any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, err := s.find(account, arg)
	if err != nil || o.chain == nil {
		return 0, "", nil, fmt.Errorf("no certificate %s: %w", arg, err)
	}
	return http.StatusOK, "", o.chain, nil
}

// warm lets certmagic get one certificate in the machine's time. It keeps a goroutine for
// each directory and e-mail address for as long as the process lives, which must not begin
// in virtual time.
func (s *acmeServer) warm(t *testing.T, settings certs.ACME) { s.obtain(t, t.TempDir(), settings) }

// obtain gets a certificate for warm.example.net, and returns a function that opens what is
// then in dir.
func (s *acmeServer) obtain(t *testing.T, dir string, settings certs.ACME) func() *certs.Manager {
	t.Helper()
	root, key, err := ca.New("warm", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	a, err := ca.Open(root, key)
	if err != nil {
		t.Fatal(err)
	}
	open := func() *certs.Manager {
		m, err := certs.Open(certs.Options{Dir: dir, Names: []string{"warm.example.net"}, Authority: func() (*ca.Authority, error) { return a, nil },
			Root: func() string { return root }, ACME: func() certs.ACME { return settings }, Changed: func() <-chan struct{} { return nil }, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	m := open()
	lookup := s.lookup
	s.lookup = func(name string) ([]string, error) { return m.TXT(name), nil }
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { m.Run(ctx) })
	for end := time.Now().Add(10 * time.Second); m.List()[0].Source != "ACME"; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no certificate: %+v, %q", m.List(), s.faults)
		}
	}
	cancel()
	wg.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lookup = lookup
	if len(s.faults) > 0 {
		t.Errorf("faults: %q", s.faults)
	}
	return open
}

// What was obtained is served from the start: nobody sees another certificate right after
// a restart.
func TestServedFromTheStart(t *testing.T) {
	t.Parallel()
	s := newACME(t, 90*24*time.Hour)
	open := s.obtain(t, t.TempDir(), certs.ACME{Directory: s.URL + "/dir", Roots: s.roots()})
	s.Close()
	m := open()
	if l := m.List(); l[0].Source != "ACME" || !l[0].Served {
		t.Errorf("before it runs: %+v", l)
	}
	// What it says of itself: both certificates have one key, so that TLSA records hold.
	if keys := m.Keys(); len(keys) != 1 || len(keys[0]) != 64 {
		t.Errorf("keys %q", keys)
	}
	if now := time.Now(); !m.Trusted(now) || m.Trusted(now.Add(91*24*time.Hour)) {
		t.Error("a certificate is trusted while it is in force")
	}
	if uri := m.Account(t.Context()); !strings.HasPrefix(uri, s.URL+"/account/") {
		t.Errorf("account %q", uri)
	}
}
