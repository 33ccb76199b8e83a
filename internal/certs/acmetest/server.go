// Package acmetest is an ACME server for tests, which lives outside of virtual time.
package acmetest

import (
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
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"msgw/internal/ca"
)

// Server issues certificates by RFC 8555 with DNS-01. It lives outside of virtual
// time, with sockets of this machine, and keeps no connection open: who talks to it from
// inside waits for an answer, in which no time passes, and for nothing after it.
type Server struct {
	*httptest.Server
	Root   *x509.Certificate
	key    *ecdsa.PrivateKey
	life   time.Duration                       // of what it issues
	Lookup func(name string) ([]string, error) // what the DNS says of a challenge name

	mu       sync.Mutex
	now      time.Time // for what it issues; zero: the machine's
	refuse   *Problem  // what every new order is refused with
	window   *Window   // what it says of every certificate (RFC 9773); nil: it does not know that
	nonces   map[string]bool
	accounts []client
	asked    int // orders
	down     bool
	dropped  int
	orders   []*order
	faults   []string
}

// Problem is an error of RFC 8555 section 6.7.
type Problem struct {
	Status int
	Type   string // without its prefix
	Detail string
}

func (p *Problem) Error() string { return p.Type + ": " + p.Detail }

// Window is when a certificate is to be renewed.
type Window struct {
	Start, End time.Time
	Retry      time.Duration // after which to ask again
}

// Refuse refuses every new order from now on, until it is called with nil.
func (s *Server) Refuse(p *Problem) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = p
}

// Down closes every connection at once from now on, until it is called with false.
func (s *Server) Down(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
}

// Dropped returns how many connections were closed at once.
func (s *Server) Dropped() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dropped
}

// door is the listener of a server.
type door struct {
	net.Listener
	s *Server
}

// Accept returns the next connection that is let in.
func (d *door) Accept() (net.Conn, error) {
	for {
		c, err := d.Listener.Accept()
		if err != nil {
			return nil, err
		}
		d.s.mu.Lock()
		down := d.s.down
		if down {
			d.s.dropped++
		}
		d.s.mu.Unlock()
		if !down {
			return c, nil
		}
		c.Close()
	}
}

// Suggest says when certificates are to be renewed.
func (s *Server) Suggest(w *Window) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.window = w
}

// Faults returns what requests were refused for by themselves.
func (s *Server) Faults() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.faults)
}

// Issued returns the names of the certificates that were issued, in their order.
func (s *Server) Issued() (names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.orders {
		if o.chain != nil {
			names = append(names, o.name)
		}
	}
	return names
}

// Replaced returns how many orders said which certificate they replace.
func (s *Server) Replaced() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.orders {
		if o.replaces != "" {
			n++
		}
	}
	return n
}

// Orders returns how many orders were asked for, those that were refused included.
func (s *Server) Orders() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

type client struct {
	key        *ecdsa.PublicKey
	thumbprint string // RFC 7638
}

type order struct {
	account  int
	name     string
	token    string
	replaces string
	valid    bool // the challenge was met
	failed   bool
	chain    []byte // PEM
}

var b64 = base64.RawURLEncoding

func New(t *testing.T, life time.Duration) *Server {
	t.Helper()
	s := &Server{life: life, nonces: map[string]bool{}}
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
	if s.Root, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /dir", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		s.mu.Lock()
		defer s.mu.Unlock()
		dir := map[string]string{"newNonce": s.URL + "/nonce", "newAccount": s.URL + "/account", "newOrder": s.URL + "/order"}
		if s.window != nil {
			dir["renewalInfo"] = s.URL + "/renewal"
		}
		json.NewEncoder(w).Encode(dir)
	})
	mux.HandleFunc("GET /renewal/{id}", func(w http.ResponseWriter, _ *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Retry-After", strconv.Itoa(int(s.window.Retry/time.Second)))
		json.NewEncoder(w).Encode(map[string]any{"suggestedWindow": map[string]time.Time{"start": s.window.Start, "end": s.window.End}})
	})
	mux.HandleFunc("/nonce", func(w http.ResponseWriter, _ *http.Request) { s.nonce(w) })
	for path, f := range map[string]func(account int, arg string, body []byte) (int, string, any, error){
		"/order": s.newOrder, "/order/{n}": s.showOrder, "/authz/{n}": s.authorization, "/challenge/{n}": s.challenge, "/finalize/{n}": s.finalize, "/cert/{n}": s.certificate,
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
	s.Listener = &door{Listener: s.Listener, s: s}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

// Roots is what the server's own certificate is checked against, in PEM.
func (s *Server) Roots() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
}

// At tells what time it is.
func (s *Server) At(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = now
}

func (s *Server) nonce(w http.ResponseWriter) {
	n := rand.Text()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nonces[n] = true
	w.Header().Set("Replay-Nonce", n)
}

func (s *Server) answer(w http.ResponseWriter, code int, location string, out any, err error) {
	s.nonce(w)
	if p := (*Problem)(nil); errors.As(err, &p) {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(p.Status)
		json.NewEncoder(w).Encode(map[string]any{"type": "urn:ietf:params:acme:error:" + p.Type, "detail": p.Detail, "status": p.Status})
		return
	}
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
func (s *Server) verify(r *http.Request) (account int, payload []byte, err error) {
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
		if account = slices.IndexFunc(s.accounts, func(a client) bool { return a.thumbprint == thumb }); account < 0 {
			account = len(s.accounts)
			s.accounts = append(s.accounts, client{pub, thumb})
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

func (s *Server) newOrder(account int, _ string, body []byte) (int, string, any, error) {
	var in struct {
		Identifiers []struct{ Type, Value string }
		Replaces    string
	}
	if err := json.Unmarshal(body, &in); err != nil || len(in.Identifiers) != 1 || in.Identifiers[0].Type != "dns" {
		return 0, "", nil, fmt.Errorf("order: %s, %w", body, err)
	}
	s.mu.Lock()
	s.asked++
	if s.refuse != nil {
		defer s.mu.Unlock()
		return 0, "", nil, s.refuse
	}
	s.orders = append(s.orders, &order{account: account, name: in.Identifiers[0].Value, token: rand.Text(), replaces: in.Replaces})
	n := strconv.Itoa(len(s.orders) - 1)
	s.mu.Unlock()
	_, location, out, err := s.showOrder(account, n, nil)
	return http.StatusCreated, location, out, err
}

// find looks up an order of an account; s.mu is held.
func (s *Server) find(account int, arg string) (*order, error) {
	n, err := strconv.Atoi(arg)
	if err != nil || n < 0 || n >= len(s.orders) || s.orders[n].account != account {
		return nil, fmt.Errorf("order %q is not of this account", arg)
	}
	return s.orders[n], nil
}

func (s *Server) showOrder(account int, arg string, _ []byte) (int, string, any, error) {
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

func (o *order) status(met string) string {
	switch {
	case o.valid:
		return met
	case o.failed:
		return "invalid"
	}
	return "pending"
}

func (s *Server) authorization(account int, arg string, _ []byte) (int, string, any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, err := s.find(account, arg)
	if err != nil {
		return 0, "", nil, err
	}
	return http.StatusOK, "", map[string]any{"status": o.status("valid"), "identifier": map[string]string{"type": "dns", "value": o.name},
		"challenges": []any{o.describe(s.URL + "/challenge/" + arg)}}, nil
}

func (o *order) describe(url string) map[string]string {
	return map[string]string{"type": "dns-01", "url": url, "token": o.token, "status": o.status("valid")}
}

// challenge looks whether the DNS says what it should (RFC 8555 section 8.4).
func (s *Server) challenge(account int, arg string, _ []byte) (int, string, any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, err := s.find(account, arg)
	if err != nil {
		return 0, "", nil, err
	}
	sum := sha256.Sum256([]byte(o.token + "." + s.accounts[account].thumbprint))
	got, err := s.Lookup("_acme-challenge." + o.name + ".")
	if o.valid = slices.Contains(got, b64.EncodeToString(sum[:])); !o.valid {
		o.failed = true
		s.faults = append(s.faults, fmt.Sprintf("challenge for %s: %q, %v", o.name, got, err))
	}
	return http.StatusOK, "", o.describe(s.URL + "/challenge/" + arg), nil
}

func (s *Server) finalize(account int, arg string, body []byte) (int, string, any, error) {
	if err := s.issue(account, arg, body); err != nil {
		return 0, "", nil, err
	}
	return s.showOrder(account, arg, nil)
}

func (s *Server) issue(account int, arg string, body []byte) error {
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
	leaf, err := x509.CreateCertificate(rand.Reader, tmpl, s.Root, csr.PublicKey, s.key)
	if err != nil {
		return err
	}
	for _, der := range [][]byte{leaf, s.Root.Raw} {
		o.chain = append(o.chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return nil
}

func (s *Server) certificate(account int, arg string, _ []byte) (int, string, any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, err := s.find(account, arg)
	if err != nil || o.chain == nil {
		return 0, "", nil, fmt.Errorf("no certificate %s: %w", arg, err)
	}
	return http.StatusOK, "", o.chain, nil
}
