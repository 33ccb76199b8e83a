package acmetest

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"

	"msgw/internal/ca"
	"msgw/internal/certs"
)

// certmagic's own rate limit counts in the machine's time, which virtual time waits for.
func init() { certmagic.RateLimitEvents = 10000 }

// Warm lets certmagic get one certificate in the machine's time. It keeps a goroutine for
// each directory and e-mail address for as long as the process lives, which must not begin
// in virtual time.
func (s *Server) Warm(t *testing.T, settings certs.ACME) {
	t.Helper()
	root, key, err := ca.New("warm", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	a, err := ca.Open(root, key)
	if err != nil {
		t.Fatal(err)
	}
	m, err := certs.Open(certs.Options{Dir: t.TempDir(), Names: []string{"warm.example.net"}, Authority: func() (*ca.Authority, error) { return a, nil },
		Root: func() string { return root }, ACME: func() certs.ACME { return settings }, Changed: func() <-chan struct{} { return nil }, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	lookup := s.Lookup
	s.Lookup = func(name string) ([]string, error) { return m.TXT(name), nil }
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { m.Run(ctx) })
	for end := time.Now().Add(10 * time.Second); m.List()[0].Issuer == ""; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no certificate: %+v, %q", m.List(), s.Faults())
		}
	}
	cancel()
	wg.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Lookup, s.orders, s.asked = lookup, nil, 0
	if len(s.faults) > 0 {
		t.Errorf("faults: %q", s.faults)
	}
}
