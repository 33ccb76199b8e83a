//go:build faults

package faults

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"msgw/internal/admin"
	"msgw/test/labtest"
)

const zone = "msgw.example.com"

// times that stories use, so that they are short. The settings need a quorum.
var times = []string{"--silent", "3s", "--adopt", "20s", "--adopt-confirmed", "6s", "--wait", "20s", "--return", "10s"}

// appliance is two sites and a witness, with senders and an archive.
type appliance struct {
	t       *testing.T
	net     *network
	sites   [2]*machine
	witness *machine
	boxes   []box
	tls     *tls.Config
	led     *ledger
	load    *load
	archive [2]*archives
	watch   *watch
}

// box is a mailbox.
type box struct {
	id, address, password string
	strict                bool
}

// plan is what may differ between appliances.
type plan struct {
	times   []string                                 // for `msgw copies`; none: the defaults
	public  func(w *network, site int) string        // more of a site's configuration, under [public]
	witness string                                   // the same of the witness
	site    func(t *testing.T, site int, m *machine) // called before the node is made
	calm    bool                                     // senders and archives begin paused
}

// newAppliance installs all nodes as docs/install.md says and lets mail flow.
func newAppliance(t *testing.T, p plan) *appliance {
	t.Helper()
	began := time.Now()
	a := &appliance{t: t, net: newNetwork(t)}
	for i := range a.sites {
		public := ""
		if p.public != nil {
			public = p.public(a.net, i)
		}
		a.sites[i] = a.net.newMachine(fmt.Sprintf("msgw%d", i+1), i+1, public)
		if p.site != nil {
			p.site(t, i, a.sites[i])
		}
	}
	a.witness = a.net.newMachine("witness", 3, p.witness)
	one := a.sites[0]
	one.must("init", "--config", one.config, "--zone", zone)
	one.start()
	labtest.Within(t, 30*time.Second, "a quorum of one", func() error {
		s, err := one.status()
		if err == nil && !s.Quorum {
			err = errors.New("none")
		}
		return err
	})
	for _, m := range []*machine{a.sites[1], a.witness} {
		role := "site"
		if m == a.witness {
			role = "witness"
		}
		token := strings.TrimSpace(one.must("invite", "--role", role, "--dir", one.dir))
		m.must("join", token, "--config", m.config)
		m.start()
	}
	a.well(60 * time.Second)
	if len(p.times) > 0 {
		one.must(append([]string{"copies", "--dir", one.dir}, p.times...)...)
	}
	for i := range 3 {
		c, err := one.admin().CreateMailbox(t.Context(), admin.CreateMailbox{Description: "of the story"})
		if err != nil {
			t.Fatal(err)
		}
		b := box{c.ID, c.Address, c.Password, i == 2}
		if b.strict {
			one.must("mailbox", "policy", b.id, "strict", "--dir", one.dir)
		}
		a.boxes = append(a.boxes, b)
	}
	pem, err := one.admin().CA(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(pem)) {
		t.Fatal("no CA")
	}
	a.tls = &tls.Config{RootCAs: pool}
	for site := range a.sites {
		a.becomes(site, 30*time.Second, "SYNC")
	}
	a.led = newLedger()
	t.Cleanup(func() { a.led.verdict(t) }) // once everything has ended
	a.load = newLoad(a, p.calm)
	for i := range a.archive {
		a.archive[i] = newArchives(a, i, p.calm)
	}
	a.watch = newWatch(a)
	t.Logf("the appliance is up after %.1f s", time.Since(began).Seconds())
	return a
}

func (a *appliance) machines() []*machine { return []*machine{a.sites[0], a.sites[1], a.witness} }

// well waits until all nodes vote and take mail.
func (a *appliance) well(d time.Duration) {
	a.t.Helper()
	labtest.Within(a.t, d, "all is well", func() error {
		for _, m := range a.machines() {
			s, err := m.status()
			switch {
			case err != nil:
				return err
			case !s.Quorum || len(s.Voters) < 3:
				return fmt.Errorf("%s: quorum %v, voters %v", m.name, s.Quorum, s.Voters)
			case m != a.witness && !s.Accepting:
				return fmt.Errorf("%s takes no mail: %s", m.name, s.Reason)
			}
		}
		return nil
	})
}

// becomes waits until a site's copies are in a state and returns since when.
func (a *appliance) becomes(site int, d time.Duration, state string) time.Time {
	a.t.Helper()
	var since time.Time
	labtest.Within(a.t, d, a.sites[site].name+" is "+state, func() error {
		s, err := a.sites[site].status()
		if err == nil && s.Copies.State != state {
			err = fmt.Errorf("it is %s, %d single, compared %v, %d lost, %d conflicts, %d damaged, trouble %q", s.Copies.State, s.Copies.Single,
				s.Copies.Compared, s.Copies.Lost, s.Copies.Conflicts, s.Copies.Damaged, s.Copies.Trouble)
		}
		if err == nil {
			since = s.Copies.Since
		}
		return err
	})
	return since
}

// cut cuts the line between the sites, for what goes to each of those named.
func (a *appliance) cut(how string, to ...int) time.Time {
	a.t.Helper()
	began := time.Now()
	for _, i := range to {
		a.sites[i].cut(a.sites[1-i], how)
	}
	return began
}

// repair ends everything that keeps the nodes from each other.
func (a *appliance) repair(sites ...int) {
	a.t.Helper()
	for _, m := range a.machines() {
		m.heal()
		m.signal(syscall.SIGCONT)
	}
	for _, i := range sites {
		if !a.sites[i].running() {
			a.sites[i].start()
		}
	}
	if !a.witness.running() {
		a.witness.start()
	}
}

// flow waits until more messages were acknowledged, and so many fetched.
func (a *appliance) flow(acked, fetched int) {
	a.t.Helper()
	wantAcked, wantFetched := a.led.counts()
	wantAcked, wantFetched = wantAcked+acked, wantFetched+fetched
	labtest.Within(a.t, 60*time.Second, fmt.Sprintf("%d more are acknowledged and %d fetched", acked, fetched), func() error {
		if n, f := a.led.counts(); n < wantAcked || f < wantFetched {
			return fmt.Errorf("%d acknowledged, %d fetched to go; last refusal: %v", max(0, wantAcked-n), max(0, wantFetched-f), a.load.last())
		}
		return nil
	})
}
