package node

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"msgw/internal/admin"
	"msgw/internal/ca"
	"msgw/internal/certs"
	"msgw/internal/certs/acmetest"
	"msgw/internal/health"
	journaled "msgw/internal/lab/report"
	"msgw/internal/shadow"
	"msgw/raftstore"
)

// TestThirtyDaysAlone lives 30 days of one site without the other, in virtual time, with a
// restart in the middle: mail comes in and is fetched, the DNS answers, certificates are
// renewed, the public ones by an ACME server; only the configuration cannot be changed.
// Then the other site is back, and all is as it should be.
func TestThirtyDaysAlone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	public := acmetest.New(t, 12*24*time.Hour)
	settings := certs.ACME{Directory: public.URL + "/dir", Email: "admin@example.com", Roots: public.Roots()}
	public.Warm(t, settings)
	answers := map[string]*answers{}
	for _, name := range []string{"msgw1", "msgw2"} {
		answers[name] = newAnswers(t, name+".msgw.example.com.")
	}
	// Each host answers the challenges for its own name.
	public.Lookup = func(name string) ([]string, error) {
		host, _, _ := strings.Cut(strings.TrimPrefix(name, "_acme-challenge."), ".")
		txt, err := answers[host].ask(name, dns.TypeTXT)
		for i := range txt {
			txt[i] = strings.Trim(txt[i], `"`)
		}
		return txt, err
	}
	synctest.Test(t, func(t *testing.T) {
		m := &month{t: t, w: &wires{listeners: map[string]*pipeListener{}}, answers: answers, public: public, acme: settings}
		defer m.end()
		m.begin(dir)
		m.live(30 * 24)
		m.reunite()
	})
}

// month is the story of a site and the month that it is alone.
type month struct {
	t       *testing.T
	w       *wires
	answers map[string]*answers
	public  *acmetest.Server
	acme    certs.ACME
	a, b    *site
	box     admin.Credentials
	roots   *x509.CertPool
	sent    map[int][]byte // not fetched yet, by number
	next    int
	state   *raftstore.State // of the beginning
}

// start starts a node. The ACME server lives outside and has to be told the time.
func (m *month) start(cfg *Config) *site {
	m.t.Helper()
	m.public.At(time.Now())
	s := startSite(m.t, m.w, cfg)
	m.answers[cfg.Name].node.Store(s)
	return s
}

// hour lets an hour pass.
func (m *month) hour() {
	time.Sleep(time.Hour)
	m.public.At(time.Now())
}

func (m *month) end() {
	for _, s := range []*site{m.a, m.b} {
		s.stop()
	}
	for _, a := range m.answers {
		a.node.Store(nil)
	}
}

// begin makes two sites in SYNC and lets the other one go, when the certificates of both
// are 45 days old.
func (m *month) begin(dir string) {
	t := m.t
	t.Helper()
	one, two := siteConfig(dir, 1), siteConfig(dir, 2)
	if err := Init(one, InitOptions{Zone: "msgw.example.com", MXMode: "tier", ACME: raftstore.ACME(m.acme)}); err != nil {
		t.Fatal(err)
	}
	m.a = m.start(one)
	within(t, time.Hour, "it leads", func() error {
		_, err := m.a.store.Confirm()
		return err
	})
	// The longest times that there are, as a site redials eight times in the first of them.
	if _, err := m.a.store.Propose(t.Context(), raftstore.SetCopies{Copies: raftstore.Copies{Refused: time.Minute, Silent: 10 * time.Minute, Wait: 9 * time.Minute}}); err != nil {
		t.Fatal(err)
	}
	if err := joinSite(m.a, two); err != nil {
		t.Fatal(err)
	}
	m.b = m.start(two)
	within(t, time.Hour, "both vote", func() error {
		if v := m.b.store.Status().Voters; !slices.Equal(v, []string{"msgw1", "msgw2"}) {
			return fmt.Errorf("%v", v)
		}
		return nil
	})
	var err error
	if m.box, err = (operator{m.a.Node}).CreateMailbox(t.Context(), admin.CreateMailbox{}); err != nil {
		t.Fatal(err)
	}
	if _, err := (operator{m.a.Node}).Sign(t.Context(), admin.Sign{Want: "on"}); err != nil {
		t.Fatal(err)
	}
	if m.roots, err = rootsOf(m.a, m.public.Root); err != nil {
		t.Fatal(err)
	}
	m.sync()
	m.sent = map[int][]byte{}
	for range 2 { // msgw1 has copies of these, and hands them over in the end
		m.give(m.b, 3000)
	}
	m.sync()
	m.a.stop()
	m.b.stop()
	time.Sleep(45 * 24 * time.Hour)
	m.a = m.start(one)
	m.state = m.a.store.State()
}

func (m *month) sync() {
	m.t.Helper()
	within(m.t, time.Hour, "SYNC", func() error {
		for _, s := range []*site{m.a, m.b} {
			if r := s.shipper.Report(); r.State != shadow.Sync {
				return fmt.Errorf("%s is %s, %d single", s.id.Name, r.State, r.Single)
			}
		}
		return nil
	})
}

// give hands a message in at a site.
func (m *month) give(s *site, size int) *x509.Certificate {
	m.t.Helper()
	msg := journaled.New(30, m.next, size)
	leaf, err := s.give(m.roots, m.box.Address, msg)
	if err != nil {
		m.t.Fatalf("message %d at %v: %v", m.next, time.Now(), err)
	}
	m.sent[m.next] = msg
	m.next++
	return leaf
}

// fetch lets the archive come by at the site that is left.
func (m *month) fetch() {
	m.t.Helper()
	msgs, err := m.a.fetch(m.roots, m.box.ID, m.box.Password)
	if err != nil {
		m.t.Fatalf("fetch at %v: %v", time.Now(), err)
	}
	for _, msg := range msgs {
		_, i, ok := journaled.Identify(msg)
		if !ok || !bytes.Equal(msg, m.sent[i]) {
			m.t.Fatalf("message %d: %d octets that are not what was sent", i, len(msg))
		}
		delete(m.sent, i)
	}
}

// live lets so many hours pass.
func (m *month) live(hours int) {
	t := m.t
	t.Helper()
	peerUntil := m.a.members.Certificate().Leaf.NotAfter
	hostUntil := m.hostCertificate().NotAfter
	peerRenewed, hostRenewed, publics := 0, 0, map[string]bool{}
	for hour := 1; hour <= hours; hour++ {
		m.hour()
		size := 2000 + hour%7*1000
		if hour%100 == 50 {
			size = 1 << 20
		}
		leaf := m.give(m.a, size)
		if leaf.Issuer.CommonName != m.public.Root.Subject.CommonName {
			t.Fatalf("hour %d: a certificate of %s is served", hour, leaf.Issuer)
		}
		publics[leaf.SerialNumber.String()] = true
		m.checkDNS()
		if r := m.a.shipper.Report(); r.State != shadow.Degraded || m.a.refusal() != "" {
			t.Fatalf("hour %d: copies are %s, and it refuses: %q", hour, r.State, m.a.refusal())
		}
		if hour%12 == 0 {
			m.fetch()
			if len(m.sent) > 0 {
				t.Fatalf("hour %d: %d messages were not handed over", hour, len(m.sent))
			}
		}
		if hour%24 == 0 {
			m.refusesChanges()
		}
		if hour == hours/3 { // no certificate is due then
			m.a.stop()
			m.a = m.start(m.a.cfg)
			m.hour() // until it has looked around, and waited for the other site
		}
		if got := m.a.members.Certificate().Leaf; got.NotAfter.After(peerUntil) {
			peerRenewed, peerUntil = peerRenewed+1, got.NotAfter
		} else if time.Until(got.NotAfter) < ca.RenewBefore-time.Hour {
			t.Fatalf("hour %d: the peer certificate ends %v and was not renewed", hour, got.NotAfter)
		}
		if got := m.hostCertificate(); got.NotAfter.After(hostUntil) {
			hostRenewed, hostUntil = hostRenewed+1, got.NotAfter
		} else if time.Until(got.NotAfter) < ca.RenewBefore-time.Hour {
			t.Fatalf("hour %d: the host's certificate of the own CA ends %v and was not renewed", hour, got.NotAfter)
		}
	}
	if peerRenewed != 1 || hostRenewed != 1 {
		t.Errorf("renewed: peer certificate %d times, host certificate of the own CA %d times; expected once each", peerRenewed, hostRenewed)
	}
	if len(publics) != 4 { // of 12 days each, renewed after 8
		t.Errorf("%d public certificates were served, expected 4", len(publics))
	}
	if faults := m.public.Faults(); len(faults) > 0 {
		t.Errorf("the ACME server complains: %q", faults)
	}
}

// hostCertificate is what the appliance's own CA issued for the host.
func (m *month) hostCertificate() admin.Cert {
	m.t.Helper()
	for _, c := range m.a.certificates() {
		if c.Source == "cluster CA" {
			return c
		}
	}
	m.t.Fatal("no certificate of the own CA")
	return admin.Cert{}
}

// checkDNS asks what resolvers ask.
func (m *month) checkDNS() {
	m.t.Helper()
	expect := func(name string, qtype uint16, want ...string) {
		m.t.Helper()
		got, err := m.answers["msgw1"].ask(name, qtype)
		slices.Sort(got)
		if err != nil || !slices.Equal(got, want) {
			m.t.Fatalf("at %v: %s %s: %q, %v, expected %q", time.Now(), name, dns.TypeToString[qtype], got, err, want)
		}
	}
	const zone = "msgw.example.com."
	expect(zone, dns.TypeMX, "10 msgw1."+zone, "100 msgw2."+zone)
	expect(zone, dns.TypeNS, "msgw1."+zone, "msgw2."+zone)
	expect("msgw1."+zone, dns.TypeA, "192.0.2.1")
	expect("msgw2."+zone, dns.TypeA, "192.0.2.2")
	// A resolver that comes for the first time can validate.
	v := &validator{parent: &parentZone{}, sites: []*answers{m.answers["msgw1"]}, random: rand.New(rand.NewPCG(1, 1)), cache: map[uint16]cached{}}
	v.parent.set(dnskeyOf("msgw.example.com", m.state.Signing.Keys[0]).ToDS(dns.SHA256))
	if err := v.resolve(); err != nil || v.proofs != 1 {
		m.t.Fatalf("at %v: %d proofs, %v", time.Now(), v.proofs, err)
	}
}

// refusesChanges tries to change the configuration, and looks whether it is served as ever.
func (m *month) refusesChanges() {
	m.t.Helper()
	_, err := operator{m.a.Node}.SetWeight(m.t.Context(), "msgw1", 7)
	var e *admin.Error
	if !errors.As(err, &e) || e.Status != http.StatusServiceUnavailable {
		m.t.Fatalf("a change without quorum: %v", err)
	}
	if s := m.a.store.State(); s.Hash != m.state.Hash || s.Revision != m.state.Revision {
		m.t.Fatalf("the configuration is another: revision %d, before %d", s.Revision, m.state.Revision)
	}
	if _, err := m.a.store.Confirm(); !errors.Is(err, raftstore.ErrNoQuorum) || m.a.store.Current() || m.a.store.Status().Quorum {
		m.t.Fatalf("it takes itself for up to date: %v", err)
	}
}

// reunite brings the other site back.
func (m *month) reunite() {
	t := m.t
	t.Helper()
	m.give(m.a, 5000) // one copy, until the other site is back
	m.b = m.start(m.b.cfg)
	m.sync()
	within(t, time.Hour, "the configuration can be changed", func() error {
		_, err := operator{m.a.Node}.SetWeight(t.Context(), "msgw1", 7)
		return err
	})
	within(t, time.Hour, "both have the same", func() error {
		if a, b := m.a.store.Position(), m.b.store.Position(); a.Index != b.Index || a.Hash != b.Hash {
			return fmt.Errorf("%+v, %+v", a, b)
		}
		return errors.Join(m.a.store.Status().Err, m.b.store.Status().Err)
	})
	within(t, 6*time.Hour, "both are up", func() error {
		vs, _, _ := m.a.health.Verdicts()
		for _, v := range vs {
			if v.State != health.Up {
				return fmt.Errorf("%s: %s", v.Name, v.Reason)
			}
		}
		return nil
	})
	// What msgw1 handed over in its place does not come again.
	if msgs, err := m.b.fetch(m.roots, m.box.ID, m.box.Password); err != nil || len(msgs) > 0 {
		t.Errorf("msgw2 hands over %d messages, %v", len(msgs), err)
	}
	m.fetch()
	if len(m.sent) > 0 {
		t.Errorf("%d messages were never handed over", len(m.sent))
	}
}
