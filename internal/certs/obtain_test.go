package certs_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"msgw/internal/ca"
	"msgw/internal/certs"
	"msgw/internal/certs/acmetest"
)

// host is a node as its certificates see it.
type host struct {
	t         *testing.T
	ca        *acmetest.Server
	dir       string
	authority *ca.Authority
	root      string
	acme      certs.ACME
	opt       certs.Options // what differs from the default
	m         *certs.Manager
	stop      func()
	log       logBuffer
}

// logBuffer keeps what was logged.
type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (h *host) logged() string {
	h.log.mu.Lock()
	defer h.log.mu.Unlock()
	return h.log.b.String()
}

// restart stops what runs, and starts it again.
func (h *host) restart() {
	h.stop()
	h.run()
}

// newHost makes a host without a directory to order from.
func newHost(t *testing.T) *host {
	t.Helper()
	return newHostIn(t, t.TempDir())
}

// newHostIn makes one in a directory.
func newHostIn(t *testing.T, dir string) *host {
	t.Helper()
	h := &host{t: t, dir: dir}
	root, key, err := ca.New("warm", time.Now())
	if err == nil {
		h.root = root
		h.authority, err = ca.Open(root, key)
	}
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// open opens the certificates as a start does.
func (h *host) open() *certs.Manager {
	h.t.Helper()
	opt := h.opt
	opt.Dir, opt.Log = h.dir, slog.New(slog.NewTextHandler(&h.log, nil))
	if opt.Names == nil {
		opt.Names = []string{"msgw1.example.net"}
	}
	opt.Authority = func() (*ca.Authority, error) { return h.authority, nil }
	opt.Root, opt.ACME = func() string { return h.root }, func() certs.ACME { return h.acme }
	if opt.Changed == nil {
		opt.Changed = func() <-chan struct{} { return nil }
	}
	m, err := certs.Open(opt)
	if err != nil {
		h.t.Fatal(err)
	}
	h.m = m
	return m
}

// run opens them and lets them run until stop.
func (h *host) run() *certs.Manager {
	m := h.open()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { m.Run(ctx) })
	h.stop = func() { cancel(); wg.Wait() }
	return m
}

// use orders from a server of the test, whose challenges the host answers.
func (h *host) use(life time.Duration) *acmetest.Server {
	h.ca = acmetest.New(h.t, life)
	h.acme = certs.ACME{Directory: h.ca.URL + "/dir", Roots: h.ca.Roots()}
	h.ca.Lookup = func(name string) ([]string, error) { return h.m.TXT(name), nil }
	return h.ca
}

// leaf is what is shown to who asks for a name.
func (h *host) leaf(name string) *x509.Certificate {
	h.t.Helper()
	c, err := h.m.TLS().GetCertificate(&tls.ClientHelloInfo{ServerName: name})
	if err != nil {
		h.t.Fatal(err)
	}
	return c.Leaf
}

// within waits for something in the machine's time.
func (h *host) within(what string, ok func() bool) {
	h.t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			h.t.Fatalf("not in time: %s; %+v, %q", what, h.m.List(), h.ca.Faults())
		}
	}
}

func (h *host) public() bool { return h.m.List()[0].Source == certs.FromACME && h.m.List()[0].Served }

// What was obtained is served from the start: nobody sees another certificate right after
// a restart.
func TestServedFromTheStart(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	s := h.use(90 * 24 * time.Hour)
	h.run()
	h.within("a certificate", h.public)
	h.stop()
	s.Close()
	m := h.open()
	if l := m.List(); l[0].Source != "ACME" || !l[0].Served {
		t.Errorf("before it runs: %+v", l)
	}
	// What it says of itself: both certificates have one key, so that TLSA records hold.
	if keys := m.Keys(); len(keys) != 1 || len(keys[0]) != 64 {
		t.Errorf("keys %q", keys)
	}
	if now := time.Now(); !m.Trusted("msgw1.example.net", now) || m.Trusted("msgw1.example.net", now.Add(91*24*time.Hour)) {
		t.Error("a certificate is trusted while it is in force")
	}
	if uri := m.Account(t.Context()); !strings.HasPrefix(uri, s.URL+"/account/") {
		t.Errorf("account %q", uri)
	}
	if f := s.Faults(); len(f) > 0 {
		t.Errorf("faults: %q", f)
	}
}

// A host that gets another name orders none for it before the DNS answers for it, where it
// could only fail, and from then on none for the old one.
func TestRenamedHost(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	s := h.use(90 * 24 * time.Hour)
	var mu sync.Mutex
	known := "old.example.net"
	changed := make(chan struct{})
	h.opt.Names = []string{"new.example.org", "old.example.net"}
	h.opt.Known = func(name string) bool {
		mu.Lock()
		defer mu.Unlock()
		return name == known
	}
	h.opt.Changed = func() <-chan struct{} {
		mu.Lock()
		defer mu.Unlock()
		return changed
	}
	m := h.run()
	h.within("a certificate for the old name", h.public)
	if c := h.leaf("new.example.org"); c.VerifyHostname("new.example.org") != nil {
		t.Errorf("for the new name that of %q is served", c.DNSNames)
	}
	if err := m.Renew(t.Context(), "new.example.org"); !errors.Is(err, certs.ErrNotOrdered) {
		t.Errorf("the new name is ordered: %v", err)
	}
	mu.Lock()
	known = "new.example.org"
	close(changed)
	changed = make(chan struct{})
	mu.Unlock()
	h.within("a certificate for the new name", func() bool { return m.Trusted("new.example.org", time.Now()) })
	if err := m.Renew(t.Context(), "old.example.net"); !errors.Is(err, certs.ErrNotOrdered) {
		t.Errorf("the old name is ordered: %v", err)
	}
	if got := s.Issued(); !slices.Equal(got, []string{"old.example.net", "new.example.org"}) || s.Orders() != 2 {
		t.Errorf("issued %q in %d orders", got, s.Orders())
	}
	// The new key replaces that of the new name; nothing waits for the old one.
	if err := m.RollOver(""); err != nil {
		t.Fatal(err)
	}
	h.within("the rollover", func() bool { return m.Rollover().Key == "" })
	h.stop()
	if f := s.Faults(); len(f) > 0 {
		t.Errorf("faults: %q", f)
	}
}

// An order that another site has to know of waits while it cannot be told, and says just
// that; the host's own certificate does not.
func TestOrderWaits(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	s := h.use(90 * 24 * time.Hour)
	h.opt.Shared = func() []string { return []string{"mta-sts.example.net"} }
	h.opt.Others = func(context.Context, string, []string) error { return errors.New("msgw2 cannot be told of it") }
	m := h.run()
	h.within("a certificate for the host", h.public)
	err := m.Renew(t.Context(), "mta-sts.example.net")
	if want := "mta-sts.example.net: the order waits: msgw2 cannot be told of it"; err == nil || err.Error() != want {
		t.Errorf("%v, expected %s", err, want)
	}
	defer h.stop()
	if i := slices.IndexFunc(m.List(), func(i certs.Info) bool { return slices.Equal(i.Names, []string{"mta-sts.example.net"}) }); i < 0 || m.List()[i].Error != "the order waits: msgw2 cannot be told of it" {
		t.Errorf("list %+v", m.List())
	}
	if got := s.Issued(); !slices.Equal(got, []string{"msgw1.example.net"}) {
		t.Errorf("issued %q", got)
	}
}
