package certs_test

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"msgw/internal/ca"
	"msgw/internal/certs"
	"msgw/internal/certs/acmetest"
)

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
	inVirtualTime(t, 90*day, &farAway, func(t *testing.T, h *host, s *acmetest.Server) {
		now := time.Now()
		s.Suggest(&acmetest.Window{Start: now.Add(-48 * time.Hour), End: now.Add(-24 * time.Hour), Retry: time.Hour})
		h.run()
		time.Sleep(10 * time.Minute)
		if n := s.Orders(); n != 2 { // one may have to be replaced at once
			h.stop()
			t.Fatalf("%d orders in ten minutes", n)
		}
		time.Sleep(12 * time.Hour)
		s.At(time.Now())
		if n := s.Orders(); n != 2 {
			t.Errorf("%d orders in half a day", n)
		}
		time.Sleep(36 * time.Hour)
		if n := s.Orders(); n < 3 || n > 4 {
			t.Errorf("%d orders in two days", n)
		}
		h.stop()
	})
}

// A CA that issues what has ended already does not take away what is in force.
func TestIssuedEnded(t *testing.T) {
	t.Parallel()
	inVirtualTime(t, 30*day, &farAway, func(t *testing.T, h *host, s *acmetest.Server) {
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

// bring writes a certificate of the cluster's CA for names into an operator's files.
func (h *host) bring(f certs.File, names ...string) (key string) {
	h.t.Helper()
	k, err := ca.NewKey()
	if err != nil {
		h.t.Fatal(err)
	}
	chain, err := h.authority.IssueHost(names, k.Public(), time.Now())
	if err != nil {
		h.t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		h.t.Fatal(err)
	}
	for path, b := range map[string][]byte{f.Chain: []byte(chain), f.Key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			h.t.Fatal(err)
		}
	}
	der, err = x509.MarshalPKIXPublicKey(k.Public())
	if err != nil {
		h.t.Fatal(err)
	}
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// A fault of a file is over once the file is as it was, or once its name is wanted.
func TestFileHeals(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		one, two := certs.File{Chain: filepath.Join(h.dir, "a.crt"), Key: filepath.Join(h.dir, "a.key")}, certs.File{Chain: filepath.Join(h.dir, "b.crt"), Key: filepath.Join(h.dir, "b.key")}
		h.bring(one, "msgw1.example.net")
		h.bring(two, "mta-sts.example.net")
		var shared atomic.Pointer[[]string]
		shared.Store(&[]string{})
		h.opt.Files, h.opt.Shared = []certs.File{one, two}, func() []string { return *shared.Load() }
		h.run()
		defer h.stop()
		time.Sleep(time.Minute)
		if l := h.m.List(); l[1].Served || l[1].Trouble == "" {
			t.Errorf("of a name that is not wanted: %+v", l[1])
		}
		shared.Store(&[]string{"mta-sts.example.net"})
		if err := os.Rename(one.Key, one.Key+"~"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if l := h.m.List(); !l[0].Served || l[0].Trouble == "" || !l[1].Served || l[1].Trouble != "" {
			t.Errorf("key away, name wanted: %+v", l)
		}
		if err := os.Rename(one.Key+"~", one.Key); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if l := h.m.List(); !l[0].Served || l[0].Trouble != "" {
			t.Errorf("all is well again: %+v", l[0])
		}
	})
}

// A host that the DNS does not answer for yet is waited for without being busy.
func TestUnknownHostIsWaitedFor(t *testing.T) {
	t.Parallel()
	inVirtualTime(t, 90*day, &farAway, func(t *testing.T, h *host, s *acmetest.Server) {
		var asked atomic.Int64
		h.opt.Known = func(string) bool { asked.Add(1); return false }
		h.run()
		time.Sleep(time.Hour)
		if n := asked.Load(); n > 100 || s.Orders() != 0 {
			t.Errorf("looked at %d times in an hour, %d orders", n, s.Orders())
		}
		h.stop()
	})
}

// The key of a file is announced before it is served, also if it was served some time before.
func TestFileComesBack(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	f := certs.File{Chain: filepath.Join(h.dir, "a.crt"), Key: filepath.Join(h.dir, "a.key")}
	key := h.bring(f, "msgw1.example.net")
	var waits error
	h.opt.Files, h.opt.Announced = []certs.File{f}, func(string) error { return waits }
	served := func(m *certs.Manager) bool { return m.List()[0].Served }
	if !served(h.open()) {
		t.Fatal("not served")
	}
	// A restart while it cannot be read, and one after it.
	waits = errors.New("not announced")
	if err := os.Rename(f.Chain, f.Chain+"~"); err != nil {
		t.Fatal(err)
	}
	if m := h.open(); !served(m) || !slices.Contains(m.Keys(), key) {
		t.Errorf("away, not served on: %+v, keys %q lack %s", m.List(), m.Keys(), key)
	}
	if err := os.Rename(f.Chain+"~", f.Chain); err != nil {
		t.Fatal(err)
	}
	if !served(h.open()) {
		t.Error("announced all the time, and not served")
	}
	// Starts without it, and with it again.
	h.opt.Files = nil
	if m := h.open(); slices.Contains(m.Keys(), key) {
		t.Error("announced although it is not configured")
	}
	h.opt.Files = []certs.File{f}
	if m := h.open(); served(m) || !slices.Contains(m.Keys(), key) {
		t.Error("served before it was announced")
	}
}

// While no directory is set a rollover replaces the key of the cluster's CA alone. What was
// obtained before has the old key, which nobody knows once the directory is set again.
func TestRolloverWithoutDirectory(t *testing.T) {
	t.Parallel()
	inVirtualTime(t, 90*day, &farAway, func(t *testing.T, h *host, _ *acmetest.Server) {
		var directory atomic.Pointer[certs.ACME]
		directory.Store(&h.acme)
		opt := certs.Options{Dir: h.dir, Names: []string{"msgw1.example.net"}, Authority: func() (*ca.Authority, error) { return h.authority, nil }, Root: func() string { return h.root },
			ACME: func() certs.ACME { return *directory.Load() }, Changed: func() <-chan struct{} { return nil }, Log: slog.New(slog.DiscardHandler)}
		var err error
		if h.m, err = certs.Open(opt); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { h.m.Run(ctx) })
		defer wg.Wait()
		defer cancel()
		time.Sleep(2 * time.Minute)
		if !h.public() {
			t.Fatalf("%+v", h.m.List())
		}
		directory.Store(&certs.ACME{})
		time.Sleep(2 * time.Minute)
		if err := h.m.RollOver(""); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		known := h.m.Keys()
		if len(known) != 1 || h.m.Rollover().Key != "" {
			t.Fatalf("not rolled over: %q, %+v", known, h.m.Rollover())
		}
		directory.Store(&h.acme)
		for range 300 {
			time.Sleep(time.Second)
			sum := sha256.Sum256(h.leaf("").RawSubjectPublicKeyInfo)
			if !slices.Contains(known, hex.EncodeToString(sum[:])) {
				t.Fatal("a key is served that is not announced")
			}
		}
		if !h.public() {
			t.Errorf("%+v", h.m.List())
		}
	})
}

// While the CA takes its time over an order the commands of an operator do not hang.
func TestCommandsDuringOrder(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	s := h.use(90 * 24 * time.Hour)
	asked, answer := make(chan struct{}), make(chan struct{})
	s.Lookup = func(name string) ([]string, error) {
		close(asked)
		<-answer
		return h.m.TXT(name), nil
	}
	h.run()
	defer func() { h.stop() }()
	<-asked
	done := make(chan error, 1)
	go func() {
		err := h.m.RollOver("")
		if gone, aerr := h.m.Abandon(); err == nil && (aerr != nil || !gone) {
			err = fmt.Errorf("not abandoned: %w", aerr)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		if rerr := h.m.Renew(ctx, ""); err == nil && !errors.Is(rerr, context.DeadlineExceeded) {
			err = fmt.Errorf("renewed: %w", rerr)
		}
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("it hangs")
	}
	close(answer)
	h.within("a certificate", h.public)
}

// A key that was taken back while it was looked whether it may be used is not used.
func TestAbandonedMeanwhile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.opt.Announced = func(string) error {
			if gone, err := h.m.Abandon(); err != nil || !gone {
				t.Errorf("abandoned: %v, %v", gone, err)
			}
			return nil
		}
		h.run()
		defer h.stop()
		keys := h.m.Keys()
		if err := h.m.RollOver(""); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		if got := h.m.Keys(); !slices.Equal(got, keys) {
			t.Errorf("keys %q, expected %q", got, keys)
		}
	})
}

// One certificate is this host's, and not that of a name that the sites share.
func TestWhichIsTheHosts(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	f := certs.File{Chain: filepath.Join(h.dir, "a.crt"), Key: filepath.Join(h.dir, "a.key")}
	h.opt.Shared = func() []string { return []string{"mta-sts.example.net"} }
	h.opt.Files = []certs.File{f}
	for _, name := range []string{"mta-sts.example.net", "msgw1.example.net"} {
		h.bring(f, name)
		m := h.open()
		n := 0
		for _, i := range m.List() {
			if !i.Host {
				continue
			}
			if n++; !i.Served || !i.NotAfter.Equal(h.leaf("").NotAfter) || !slices.Contains(i.Names, "msgw1.example.net") {
				t.Errorf("with a file for %s: %+v", name, i)
			}
		}
		if n != 1 {
			t.Errorf("with a file for %s: %d are the host's: %+v", name, n, m.List())
		}
	}
}

// What could not be stored is stored once it can be, without another order.
func TestStoredLater(t *testing.T) {
	t.Parallel()
	inVirtualTime(t, 90*day, &farAway, func(t *testing.T, h *host, s *acmetest.Server) {
		public := filepath.Join(h.dir, "public")
		if err := os.WriteFile(public, nil, 0o600); err != nil { // no directory can be made there
			t.Fatal(err)
		}
		h.run()
		time.Sleep(2 * time.Minute)
		if l := h.m.List()[0]; !l.Served || l.Error == "" {
			t.Errorf("while it cannot be stored: %+v", l)
		}
		if err := os.Remove(public); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		if l := h.m.List()[0]; !l.Served || l.Error != "" {
			t.Errorf("once it can be: %+v", l)
		}
		if n := s.Orders(); n != 1 {
			t.Errorf("%d orders", n)
		}
		if files, err := os.ReadDir(public); err != nil || len(files) != 1 {
			t.Errorf("stored: %v, %v", files, err)
		}
		h.stop()
	})
}
