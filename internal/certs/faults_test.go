package certs_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"msgw/internal/certs"
	"msgw/internal/certs/acmetest"
)

// virtual runs a test in virtual time, with a CA that lives outside of it.
func virtual(t *testing.T, life time.Duration, test func(h *host, s *acmetest.Server)) {
	t.Helper()
	s := acmetest.New(t, life)
	settings := certs.ACME{Directory: s.URL + "/dir", Roots: s.Roots()}
	// certmagic keeps the directory, which is to have renewalInfo.
	s.Suggest(&acmetest.Window{Start: time.Now().AddDate(1, 0, 0), End: time.Now().AddDate(1, 0, 1), Retry: 24 * time.Hour})
	s.Warm(t, settings)
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.ca, h.acme = s, settings
		s.Lookup = func(name string) ([]string, error) { return h.m.TXT(name), nil }
		s.At(time.Now())
		test(h, s)
	})
}

// stored finds a file of certmagic's.
func (h *host) stored(suffix string) string {
	h.t.Helper()
	found := ""
	err := filepath.WalkDir(filepath.Join(h.dir, "acme", "certificates"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, suffix) {
			found = path
		}
		return err
	})
	if err != nil || found == "" {
		h.t.Fatalf("no %s: %v", suffix, err)
	}
	return found
}

// What is stored of an order may be damaged: the next order stands by itself.
func TestDamagedStorage(t *testing.T) {
	t.Parallel()
	for _, suffix := range []string{".crt", ".json", ".key"} {
		t.Run(suffix, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			s := h.use(90 * 24 * time.Hour)
			h.run()
			defer func() { h.stop() }()
			h.within("a certificate", h.public)
			for _, damage := range []func(path string) error{
				func(path string) error { return os.WriteFile(path, make([]byte, 300), 0o600) },
				os.Remove,
			} {
				if err := damage(h.stored(suffix)); err != nil {
					t.Fatal(err)
				}
				before := h.leaf("")
				if err := h.m.Renew(t.Context(), ""); err != nil {
					t.Errorf("after damage: %v", err)
				}
				if h.leaf("").Equal(before) {
					t.Error("not renewed")
				}
			}
			if f := s.Faults(); len(f) > 0 {
				t.Errorf("faults: %q", f)
			}
		})
	}
}

// A CA whose windows are always past (RFC 9773 section 4.2) is not asked in a loop.
func TestWindowAlwaysPast(t *testing.T) {
	t.Parallel()
	virtual(t, 90*24*time.Hour, func(h *host, s *acmetest.Server) {
		now := time.Now()
		s.Suggest(&acmetest.Window{Start: now.Add(-48 * time.Hour), End: now.Add(-24 * time.Hour), Retry: time.Hour})
		h.run()
		time.Sleep(10 * time.Minute)
		if n := s.Orders(); n != 1 {
			h.stop()
			t.Fatalf("%d orders in ten minutes", n)
		}
		time.Sleep(12 * time.Hour)
		s.At(time.Now())
		if n := s.Orders(); n != 1 {
			t.Errorf("%d orders in half a day", n)
		}
		time.Sleep(36 * time.Hour)
		if n := s.Orders(); n < 2 || n > 3 {
			t.Errorf("%d orders in two days", n)
		}
		h.stop()
	})
}

// A CA that issues what has ended already does not take away what is in force.
func TestIssuedEnded(t *testing.T) {
	t.Parallel()
	virtual(t, 30*24*time.Hour, func(h *host, s *acmetest.Server) {
		h.run()
		time.Sleep(time.Minute)
		good := h.leaf("")
		s.At(time.Now().AddDate(-1, 0, 0))
		if err := h.m.Renew(t.Context(), ""); err == nil || !strings.Contains(err.Error(), "ended") {
			t.Errorf("renewed: %v", err)
		}
		if !h.leaf("").Equal(good) {
			t.Error("what has ended is served")
		}
		s.At(time.Now())
		if err := h.m.Renew(t.Context(), ""); err != nil {
			t.Error(err)
		}
		if l := h.m.List()[0]; l.Error != "" || h.leaf("").Equal(good) {
			t.Errorf("not healed: %+v", l)
		}
		h.stop()
	})
}
