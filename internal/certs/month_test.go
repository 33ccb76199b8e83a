package certs_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"msgw/internal/ca"
	"msgw/internal/certs"
	"msgw/internal/certs/acmetest"
)

const (
	day  = 24 * time.Hour
	name = "msgw1.example.net"
)

// memoryDir is a directory in memory, where there is one: months have thousands of writes, and
// each is synced.
func memoryDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "msgw-certs-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// farAway is a window that no certificate is renewed in.
var farAway = acmetest.Window{Start: time.Now().AddDate(1, 0, 0), End: time.Now().AddDate(1, 0, 1), Retry: day}

// inVirtualTime plays a story of a host and a CA that lives outside of virtual time. window
// is what the CA says of renewals from the beginning: certmagic asks only once whether it does.
func inVirtualTime(t *testing.T, life time.Duration, window *acmetest.Window, story func(t *testing.T, h *host, s *acmetest.Server)) {
	t.Helper()
	outside := newHost(t)
	s := outside.use(life)
	s.Suggest(window)
	s.Warm(t, outside.acme)
	dir := memoryDir(t)
	synctest.Test(t, func(t *testing.T) {
		h := newHostIn(t, dir)
		h.ca, h.acme = s, outside.acme
		s.Lookup = func(name string) ([]string, error) { return h.m.TXT(name), nil }
		s.At(time.Now())
		story(t, h, s)
	})
}

// virtual plays one from the moment at which the first certificate is held.
func virtual(t *testing.T, life time.Duration, window *acmetest.Window, story func(t *testing.T, h *host, s *acmetest.Server)) {
	t.Helper()
	inVirtualTime(t, life, window, func(t *testing.T, h *host, s *acmetest.Server) {
		h.run()
		defer func() { h.stop() }()
		h.live(time.Minute)
		if !h.public() {
			t.Fatalf("no certificate: %+v, %q", h.m.List(), s.Faults())
		}
		story(t, h, s)
	})
}

// live lets time pass, also for the CA.
func (h *host) live(d time.Duration) {
	h.t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); {
		time.Sleep(min(10*time.Minute, time.Until(end)))
		h.ca.At(time.Now())
	}
	synctest.Wait()
}

// A CA that is down for a month, from right before a certificate is due until after its end:
// it is served on, loudly, the CA is not pestered, and the certificate is renewed once the CA
// is back.
func TestCADownForAMonth(t *testing.T) {
	t.Parallel()
	virtual(t, 90*day, nil, func(t *testing.T, h *host, s *acmetest.Server) {
		first := h.leaf(name)
		h.live(59 * day)
		s.Down(true)
		h.live(14 * day)
		if tr := h.m.List()[0]; tr.Trouble != "" && tr.Error == "" {
			t.Errorf("a week late: %+v", tr)
		}
		h.live(17*day + time.Hour)
		i := h.m.List()[0]
		if !h.leaf(name).Equal(first) || !i.Served || !strings.Contains(i.Trouble, "it ended") || i.Error == "" {
			t.Errorf("after its end: %+v", i)
		}
		// Six attempts a day; the client connects up to three times in each.
		if n := s.Dropped(); n < 31*5 || n > 31*8*3 {
			t.Errorf("%d connections in a month", n)
		}
		log := h.logged()
		if n := strings.Count(log, "level=ERROR"); n != 2 || !strings.Contains(log, "could not be renewed") || !strings.Contains(log, "has ended and is served on") {
			t.Errorf("%d alerts:\n%s", n, log)
		}
		if next := i.Next; !next.After(time.Now()) || next.After(time.Now().Add(5*time.Hour)) {
			t.Errorf("next order %v, now %v", next, time.Now())
		}
		s.Down(false)
		h.live(5 * time.Hour)
		if i := h.m.List()[0]; h.leaf(name).Equal(first) || i.Trouble != "" || i.Error != "" || !bytes.Equal(h.leaf(name).RawSubjectPublicKeyInfo, first.RawSubjectPublicKeyInfo) {
			t.Errorf("after the CA is back: %+v", i)
		}
	})
}

// It is renewed when a third of its life is left, once, also over restarts.
func TestRenewedInTime(t *testing.T) {
	t.Parallel()
	virtual(t, 90*day, nil, func(t *testing.T, h *host, s *acmetest.Server) {
		first := h.leaf(name)
		h.live(59 * day)
		h.restart()
		h.live(time.Hour)
		if !h.leaf(name).Equal(first) || s.Orders() != 1 {
			t.Error("renewed too early")
		}
		h.live(2 * day)
		if h.leaf(name).Equal(first) || s.Orders() != 2 || s.Replaced() != 1 {
			t.Errorf("%d orders, of which %d say what they replace", s.Orders(), s.Replaced())
		}
	})
}

// A node that is restarted again and again does not order more often.
func TestRestartsCount(t *testing.T) {
	t.Parallel()
	virtual(t, 90*day, nil, func(t *testing.T, h *host, s *acmetest.Server) {
		s.Refuse(&acmetest.Problem{Status: 400, Type: "malformed", Detail: "no"})
		h.live(61 * day)
		before := s.Orders()
		for range 100 {
			h.restart()
			h.live(time.Minute)
		}
		if n := s.Orders() - before; n > 1 {
			t.Errorf("%d orders in 100 minutes of restarts", n)
		}
	})
}

// An order in which the node dies counts as one that failed: one that dies in each of them
// does not use up what the CA allows.
func TestDiesInOrders(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	s := h.use(90 * day)
	h.run()
	h.within("a certificate", h.public)
	h.stop()
	path := filepath.Join(h.dir, "state.json")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// As it is left by a node that dies in its first order.
	died := strings.Replace(string(b), `"last":`, `"begun": true, "last":`, 1)
	if died == string(b) {
		t.Fatalf("no order in %s", b)
	}
	if err := os.WriteFile(path, []byte(died), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"acme", "public"} {
		if err := os.RemoveAll(filepath.Join(h.dir, dir)); err != nil {
			t.Fatal(err)
		}
	}
	i := h.open().List()[0]
	if i.Error != "the node ended during the order" || time.Until(i.Next) < time.Minute || s.Orders() != 1 {
		t.Errorf("%d orders, %+v", s.Orders(), i)
	}
}

// The CA's word of when to renew counts (RFC 9773), within what is safe.
func TestRenewalInformation(t *testing.T) {
	t.Parallel()
	then := time.Date(2000, 2, 29, 0, 0, 0, 0, time.UTC)
	virtual(t, 90*day, &acmetest.Window{Start: then, End: then.Add(day), Retry: 6 * time.Hour}, func(t *testing.T, h *host, s *acmetest.Server) {
		now := time.Now()
		s.Suggest(&acmetest.Window{Start: now.Add(20 * day), End: now.Add(21 * day), Retry: 6 * time.Hour})
		h.live(19 * day)
		if next := h.m.List()[0].Next; next.Before(now.Add(20*day)) || next.After(now.Add(21*day)) {
			t.Errorf("next order %v, window from %v", next, now.Add(20*day))
		}
		// It has to be replaced at once: revoked, perhaps.
		s.Suggest(&acmetest.Window{Start: now, End: now.Add(day), Retry: 6 * time.Hour})
		h.live(7 * time.Hour)
		if s.Orders() < 2 || s.Replaced() < 1 {
			t.Errorf("%d orders, of which %d say what they replace", s.Orders(), s.Replaced())
		}
		// Never is too late, and always too often.
		s.Suggest(&acmetest.Window{Start: now.Add(400 * day), End: now.Add(401 * day), Retry: 6 * time.Hour})
		h.live(7 * time.Hour)
		leaf, orders := h.leaf(name), s.Orders()
		h.live(time.Until(leaf.NotAfter.Add(-16 * day)))
		if s.Orders() != orders {
			t.Errorf("%d orders more before its time", s.Orders()-orders)
		}
		h.live(2 * day)
		if h.leaf(name).Equal(leaf) {
			t.Error("not renewed with a sixth of its life left")
		}
	})
}

// A CA's rate limits are waited for, as long as it says.
func TestRateLimited(t *testing.T) {
	t.Parallel()
	virtual(t, 90*day, nil, func(t *testing.T, h *host, s *acmetest.Server) {
		h.live(59 * day)
		until := time.Now().Add(day + 20*time.Hour)
		s.Refuse(&acmetest.Problem{Status: 429, Type: "rateLimited", Detail: "too many certificates (5) already issued, retry after " + until.UTC().Format(time.DateTime) + " UTC: see the documentation"})
		before := s.Orders()
		h.live(time.Until(until) - time.Minute)
		if n := s.Orders() - before; n != 1 {
			t.Errorf("%d orders while rate limited", n)
		}
		s.Refuse(nil)
		h.live(10 * time.Minute)
		if n := s.Orders() - before; n != 2 || h.m.List()[0].Error != "" {
			t.Errorf("%d orders, %+v", n, h.m.List()[0])
		}
	})
}

// A clock that is off by a day, in either direction, costs no certificate.
func TestClockOff(t *testing.T) {
	t.Parallel()
	for _, off := range []time.Duration{-day, day} {
		t.Run(off.String(), func(t *testing.T) {
			t.Parallel()
			virtual(t, 90*day, nil, func(t *testing.T, h *host, s *acmetest.Server) {
				first := h.leaf(name)
				for range 62 * 6 { // the CA's clock is off, as seen from here
					time.Sleep(4 * time.Hour)
					s.At(time.Now().Add(off))
				}
				synctest.Wait()
				i := h.m.List()[0]
				if h.leaf(name).Equal(first) || !i.Served || i.Error != "" || i.Trouble != "" || s.Orders() != 2 {
					t.Errorf("%d orders, %+v", s.Orders(), i)
				}
				if got, want := h.leaf(name).NotAfter, time.Now().Add(off+87*day); got.Before(want) {
					t.Errorf("served until %v, expected at least %v", got, want)
				}
			})
		})
	}
}

// What an operator has to mend is said in words.
func TestRefused(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	s := h.use(90 * day)
	for problem, want := range map[acmetest.Problem]string{
		{Status: 403, Type: "caa", Detail: "CAA record for msgw1.example.net prevents issuance"}: "the CA says caa: CAA record for msgw1.example.net prevents issuance (see `msgw dns set --caa`",
		{Status: 403, Type: "externalAccountRequired", Detail: "no binding"}:                     "(set acme.key_id and acme.mac_file in the configuration file)",
		{Status: 400, Type: "rejectedIdentifier", Detail: "two\nlines"}:                          "rejectedIdentifier: two lines",
	} {
		h.m = nil
		s.Refuse(&problem)
		h.dir = t.TempDir()
		m := h.run()
		h.within(want, func() bool { return strings.Contains(m.List()[0].Error, want) })
		if i := m.List(); i[0].Issuer != "" || !strings.Contains(i[0].Trouble, "none obtained yet") || i[0].Next.Before(time.Now()) || !i[1].Served {
			t.Errorf("%+v", i)
		}
		if err := m.Renew(t.Context(), name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ordered by hand: %v", err)
		}
		h.stop()
	}
}

// Nothing can be stored: the CA is not asked, and what is held is served.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	s := h.use(90 * day)
	h.run()
	h.within("a certificate", h.public)
	first, orders := h.leaf(name), s.Orders()
	// As a full disk does, a file where a directory belongs keeps everything from being written.
	acme := filepath.Join(h.dir, "acme")
	move := func(from, to string) {
		t.Helper()
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	move(acme, acme+".away")
	if err := os.WriteFile(acme, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := h.m.Renew(t.Context(), name); err == nil || s.Orders() != orders || !h.leaf(name).Equal(first) {
		t.Errorf("without room for the account: %v, %d orders", err, s.Orders()-orders)
	}
	if err := os.Remove(acme); err != nil {
		t.Fatal(err)
	}
	move(acme+".away", acme)
	// The account has room and the certificate has none: it is served, and not ordered again.
	public := filepath.Join(h.dir, "public")
	move(public, public+".away")
	if err := os.WriteFile(public, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	err := h.m.Renew(t.Context(), name)
	if err == nil || !strings.Contains(err.Error(), "not stored: ") || h.leaf(name).Equal(first) {
		t.Errorf("without room for the certificate: %v", err)
	}
	if next := h.m.List()[0].Next; next.Before(time.Now().Add(50 * day)) {
		t.Errorf("ordered again at %v", next)
	}
	second := h.leaf(name)
	h.stop()
	if err := os.Remove(public); err != nil {
		t.Fatal(err)
	}
	move(public+".away", public)
	if h.open(); !h.leaf(name).Equal(second) {
		t.Error("after a restart another one is served than before")
	}
	if f := s.Faults(); len(f) > 0 {
		t.Errorf("faults: %q", f)
	}
}

// A crash between any two writes, and whatever else may tear a file, leaves a certificate to
// serve, and none is served with a key that is not its own.
func TestTornFiles(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.use(90 * day)
	h.run()
	h.within("a certificate", h.public)
	want := h.leaf(name)
	h.stop()
	var files []string
	err := filepath.WalkDir(h.dir, func(path string, d os.DirEntry, err error) error {
		if fi, ierr := d.Info(); ierr != nil || !d.IsDir() && fi.Mode() != 0o600 {
			t.Errorf("%s: %v, %v", path, fi.Mode(), ierr)
		}
		if err == nil && !d.IsDir() && strings.Contains(path, name) || err == nil && strings.HasSuffix(path, ".json") && !d.IsDir() {
			files = append(files, path)
		}
		return err
	})
	if err != nil || len(files) < 5 {
		t.Fatalf("%q, %v", files, err)
	}
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, torn := range [][]byte{nil, b[:len(b)/2], bytes.Repeat([]byte{0}, len(b))} {
			if err := os.WriteFile(path, torn, 0o600); err != nil {
				t.Fatal(err)
			}
			if h.open(); !h.leaf(name).Equal(want) {
				t.Errorf("%s torn to %d octets: another certificate is served", filepath.Base(path), len(torn))
			}
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	// Both copies of the chain: the cluster's CA stands in, and one is ordered.
	for _, path := range files {
		if strings.HasSuffix(path, ".crt") {
			if err := os.WriteFile(path, []byte("torn"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	h.run()
	defer h.stop()
	h.within("another certificate", h.public)
}

// Another directory takes the place of one: what is held is served until the new one has
// issued.
func TestOtherDirectory(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.use(90 * day)
	h.run()
	h.within("a certificate", h.public)
	first := h.leaf(name)
	h.stop()
	s := h.use(90 * day)
	s.Refuse(&acmetest.Problem{Status: 503, Type: "serverInternal", Detail: "down"})
	h.run()
	defer func() { h.stop() }()
	h.within("an order", func() bool { return h.m.List()[0].Error != "" })
	if !h.leaf(name).Equal(first) {
		t.Error("the certificate of the former directory is not served on")
	}
	s.Refuse(nil)
	if err := h.m.Renew(t.Context(), name); err != nil || h.leaf(name).Equal(first) {
		t.Errorf("the new directory's is not served: %v", err)
	}
	h.stop()
	h.acme = certs.ACME{}
	h.run()
	if i := h.m.List(); len(i) != 1 || i[0].Source != certs.FromCluster || !i[0].Served {
		t.Errorf("without a directory: %+v", i)
	}
}

// A name that the sites share is not ordered while a site that answers cannot be told.
func TestSharedNameWaits(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	s := h.use(90 * day)
	const shared = "mta-sts.example.net"
	var mu sync.Mutex
	var told [][]string
	fault := errors.New("msgw2 cannot be told of it, but its DNS answers")
	h.opt.Shared = func() []string { return []string{shared} }
	h.opt.Others = func(_ context.Context, at string, values []string) error {
		mu.Lock()
		defer mu.Unlock()
		if at != "_acme-challenge."+shared+"." {
			t.Errorf("told of %s", at)
		}
		told = append(told, slices.Clone(values))
		return fault
	}
	h.run()
	defer func() { h.stop() }()
	h.within("an order that waits", func() bool { return len(h.m.List()) > 2 && h.m.List()[1].Error != "" })
	if i := h.m.List()[1]; !strings.Contains(i.Error, "the order waits: msgw2 cannot be told of it") || !h.public() {
		t.Errorf("%+v", i)
	}
	if len(s.Faults()) != 0 {
		t.Errorf("the CA looked: %q", s.Faults())
	}
	mu.Lock()
	fault = nil
	mu.Unlock()
	if err := h.m.Renew(t.Context(), shared); err != nil {
		t.Fatal(err)
	}
	if got := h.leaf(shared); !slices.Equal(got.DNSNames, []string{shared}) || bytes.Equal(got.RawSubjectPublicKeyInfo, h.leaf(name).RawSubjectPublicKeyInfo) {
		t.Errorf("served: %q", got.DNSNames)
	}
	if !h.m.Trusted(shared, time.Now()) || len(h.m.Keys()) != 1 {
		t.Errorf("trusted %v, keys %q", h.m.Trusted(shared, time.Now()), h.m.Keys())
	}
	mu.Lock()
	defer mu.Unlock()
	if last := told[len(told)-1]; len(last) != 0 || len(h.m.TXT("_acme-challenge."+shared+".")) != 0 {
		t.Errorf("left in the DNS: %q", told)
	}
}

// Another site's values are answered beside one's own, for as long as an order takes.
func TestTold(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.opt.Shared = func() []string { return []string{"mta-sts.example.net"} }
	m := h.open()
	const at = "_acme-challenge.mta-sts.example.net."
	if err := m.Tell("msgw2", "_acme-challenge."+name+".", []string{"x"}); err == nil {
		t.Error("another site speaks for this host")
	}
	if err := m.Tell("msgw2", at, make([]string, 17)); err == nil {
		t.Error("17 values")
	}
	for _, values := range [][]string{{"one"}, {"one", "two"}, nil} {
		if err := m.Tell("msgw2", at, values); err != nil || !slices.Equal(m.TXT(at), values) {
			t.Errorf("told %q, answers %q, %v", values, m.TXT(at), err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		if err := m.Tell("msgw2", at, []string{"one"}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if got := m.TXT(at); len(got) != 0 {
			t.Errorf("an hour later: %q", got)
		}
	})
}

// A key is announced, and used only once resolvers can know of it; a restart at any moment
// changes nothing of that.
func TestRollover(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	s := h.use(90 * day)
	ready := errors.New("not yet")
	var mu sync.Mutex
	h.opt.Announced = func(string) error { mu.Lock(); defer mu.Unlock(); return ready }
	h.run()
	defer func() { h.stop() }()
	h.within("a certificate", h.public)
	first, keys := h.leaf(name), h.m.Keys()
	if err := h.m.RollOver("p384"); err != nil {
		t.Fatal(err)
	}
	h.within("what it waits for", func() bool { return h.m.Rollover().Waiting == "not yet" })
	h.stop()
	h.run()
	if got := h.m.Keys(); len(got) != 2 || !slices.Contains(got, keys[0]) || !slices.Equal(h.m.Coming(), []string{h.m.Rollover().Key}) {
		t.Fatalf("announced: %q, coming %q", got, h.m.Coming())
	}
	next := h.m.Rollover().Key
	if err := h.m.RollOver(""); err != nil || h.m.Rollover().Key != next {
		t.Errorf("another rollover at the same time: %v", err)
	}
	if err := h.m.Renew(t.Context(), name); err != nil || !bytes.Equal(h.leaf(name).RawSubjectPublicKeyInfo, first.RawSubjectPublicKeyInfo) {
		t.Errorf("renewed meanwhile, with a new key: %v", err)
	}
	mu.Lock()
	ready = nil
	mu.Unlock()
	h.stop()
	h.run()
	h.within("the new key", func() bool { return slices.Equal(h.m.Keys(), []string{next}) && h.m.Rollover().Key == "" })
	if i := h.m.List(); i[0].Key != next || i[1].Key != next || i[0].Source != certs.FromACME {
		t.Errorf("after it: %+v", i)
	}
	if err := h.m.Renew(t.Context(), name); err != nil || h.m.List()[0].Key != next {
		t.Errorf("renewed after it, with another key: %v", err)
	}
	if f := s.Faults(); len(f) > 0 {
		t.Errorf("faults: %q", f)
	}
	for _, f := range []string{"host.key", "shared.key", "next.key"} {
		if fi, err := os.Stat(filepath.Join(h.dir, f)); err == nil && fi.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", f, fi.Mode())
		}
	}
}

// An operator's files are served, checked, and swapped without a restart; a connection that
// is open goes on.
func TestFiles(t *testing.T) {
	t.Parallel()
	h, other := newHost(t), newHost(t)
	other.opt.Names = []string{name}
	chain, key := filepath.Join(t.TempDir(), "host.pem"), ""
	key = filepath.Join(filepath.Dir(chain), "host.key")
	bring := func(dir string) {
		t.Helper()
		for from, to := range map[string]string{"host.crt": chain, "host.key": key} {
			b, err := os.ReadFile(filepath.Join(dir, from))
			if err == nil {
				err = os.WriteFile(to, b, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	other.open()
	bring(other.dir)
	ready := error(nil)
	var mu sync.Mutex
	h.opt.Announced = func(string) error { mu.Lock(); defer mu.Unlock(); return ready }
	h.opt.Files = []certs.File{{Chain: chain, Key: key}}
	s := h.use(90 * day)
	h.run()
	defer func() { h.stop() }()
	brought := other.leaf(name)
	if !h.leaf(name).Equal(brought) || !h.leaf("").Equal(brought) {
		t.Fatalf("not served: %+v", h.m.List())
	}
	conn := h.connect()
	mu.Lock()
	ready = errors.New("resolvers do not know it")
	mu.Unlock()
	// Torn, for somebody else, and with a key that is not announced: served on.
	for _, b := range []string{"", "-----BEGIN CERTIFICATE-----\n"} {
		if err := os.WriteFile(chain, []byte(b), 0o600); err != nil {
			t.Fatal(err)
		}
		h.within("a fault", func() bool { return h.m.List()[0].Trouble != "" })
		if !h.leaf(name).Equal(brought) {
			t.Error("not served on")
		}
	}
	third := newHost(t)
	third.opt.Names = []string{name}
	third.open()
	bring(third.dir)
	h.within("the announcement", func() bool { return len(h.m.Coming()) == 1 && len(h.m.Keys()) == 3 })
	if i := h.m.List()[0]; !h.leaf(name).Equal(brought) || i.Trouble != "" || !strings.Contains(i.Error, "resolvers do not know it") {
		t.Errorf("%+v", i)
	}
	h.stop()
	h.run()
	if !h.leaf(name).Equal(brought) {
		t.Error("after a restart another one is served than before")
	}
	mu.Lock()
	ready = nil
	mu.Unlock()
	h.within("the swap", func() bool { return h.leaf(name).Equal(third.leaf(name)) })
	if err := conn(); err != nil {
		t.Errorf("a connection that was open: %v", err)
	}
	if s.Orders() != 0 {
		t.Errorf("%d orders for what an operator brings", s.Orders())
	}
	if err := h.m.Renew(t.Context(), name); !errors.Is(err, certs.ErrNotOrdered) {
		t.Errorf("ordered by hand: %v", err)
	}
	if err := h.m.RollOver(""); !errors.Is(err, certs.ErrByFile) {
		t.Errorf("rollover: %v", err)
	}
}

// What is in force is served before what has ended, whoever brought it.
func TestEndedFile(t *testing.T) {
	t.Parallel()
	virtual(t, 90*day, nil, func(t *testing.T, h *host, s *acmetest.Server) {
		public, dir := h.leaf(name), memoryDir(t)
		h.opt.Files = []certs.File{{Chain: filepath.Join(dir, "host.pem"), Key: filepath.Join(dir, "host.pem")}}
		brief(t, h.opt.Files[0].Chain, 4*time.Hour)
		h.restart()
		if i := h.m.List()[0]; i.Source != certs.FromFile || !i.Served || h.leaf(name).Equal(public) {
			t.Fatalf("the file is not served: %+v", i)
		}
		h.live(4*time.Hour - time.Minute)
		if i := h.m.List()[0]; !i.Served || !strings.Contains(i.Trouble, "it ends ") {
			t.Errorf("before it ends: %+v", i)
		}
		h.live(2 * time.Minute)
		if i := h.m.List()[0]; !h.leaf(name).Equal(public) || i.Served || !strings.Contains(i.Trouble, "it ended ") {
			t.Errorf("after it has ended: %+v", i)
		}
	})
}

// brief writes a certificate of a short life, and its key, into one file.
func brief(t *testing.T, path string, life time.Duration) {
	t.Helper()
	key, err := ca.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(7), DNSNames: []string{name}, NotBefore: now, NotAfter: now.Add(life)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err == nil {
		err = os.WriteFile(path, slices.Concat(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
			pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// connect opens a TLS connection to the host, and returns a function that uses it once more.
func (h *host) connect() func() error {
	h.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { l.Close() })
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		s, b := tls.Server(c, h.m.TLS()), make([]byte, 1)
		for {
			if _, err := s.Read(b); err != nil {
				return
			}
			if _, err := s.Write(b); err != nil {
				return
			}
		}
	}()
	c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { c.Close() })
	use := func() error {
		b := []byte("x")
		if _, err := c.Write(b); err != nil {
			return err
		}
		_, err := c.Read(b)
		return err
	}
	if err := use(); err != nil {
		h.t.Fatal(err)
	}
	return use
}
