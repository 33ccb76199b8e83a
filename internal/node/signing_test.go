package node

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"filippo.io/age"
	"github.com/miekg/dns"
	"msgw/dnsplugin/plugintest"

	"msgw/dnsplugin"
	"msgw/internal/admin"
	"msgw/internal/backup"
	"msgw/internal/delegation"
	"msgw/raftstore"
)

// parentZone is the zone above, of which the test changes the DS.
type parentZone struct {
	mu sync.Mutex
	ds []*dns.DS
}

const dsTTL = 600

func (p *parentZone) set(ds ...*dns.DS) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ds = ds
}

// look is what delegation.Looker.Look would see.
func (p *parentZone) look(context.Context, string, []string) (delegation.View, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := delegation.Server{Name: "ns.example.com", Address: "192.0.2.53:53", Delegated: true, NS: []string{"msgw1.msgw.example.com.", "msgw2.msgw.example.com."},
		Glue: []string{"msgw1.msgw.example.com. 192.0.2.1", "msgw2.msgw.example.com. 192.0.2.2"}}
	for _, ds := range p.ds {
		s.DS, s.DSTTL = append(s.DS, delegation.DS(ds)), dsTTL
	}
	return delegation.View{Parent: "example.com", Servers: []delegation.Server{s}}, nil
}

// validator is a resolver that validates and keeps everything for as long as it may.
type validator struct {
	random *rand.Rand
	parent *parentZone
	sites  []*answers
	cache  map[uint16]cached
	proofs int // answers that were proved
}

type cached struct {
	rrs   []dns.RR
	until time.Time
}

// get returns a set with its signatures, from the cache or from one of the sites.
func (v *validator) get(qtype uint16) ([]dns.RR, error) {
	if c, ok := v.cache[qtype]; ok && time.Now().Before(c.until) {
		return c.rrs, nil
	}
	var c cached
	if qtype == dns.TypeDS {
		v.parent.mu.Lock()
		for _, ds := range v.parent.ds {
			c.rrs = append(c.rrs, ds)
		}
		v.parent.mu.Unlock()
		c.until = time.Now().Add(dsTTL * time.Second)
	} else {
		rec := &plugintest.Recorder{}
		q := new(dns.Msg).SetQuestion("msgw.example.com.", qtype).SetEdns0(1232, true)
		if _, err := v.sites[v.random.IntN(len(v.sites))].ServeDNS(context.Background(), rec, q); err != nil {
			return nil, err
		}
		if rec.Msg == nil || rec.Msg.Rcode != dns.RcodeSuccess || len(rec.Msg.Answer) == 0 {
			return nil, fmt.Errorf("%s: %v", dns.TypeToString[qtype], rec.Msg)
		}
		c.rrs = rec.Msg.Answer
		c.until = time.Now().Add(time.Duration(c.rrs[0].Header().Ttl) * time.Second)
	}
	v.cache[qtype] = c
	return c.rrs, nil
}

// proved looks for a signature of a set by one of the keys.
func proved(rrs []dns.RR, keys []*dns.DNSKEY) error {
	var set []dns.RR
	for _, rr := range rrs {
		if rr.Header().Rrtype != dns.TypeRRSIG {
			set = append(set, rr)
		}
	}
	for _, rr := range rrs {
		sig, ok := rr.(*dns.RRSIG)
		for _, k := range keys {
			if ok && k.KeyTag() == sig.KeyTag && sig.ValidityPeriod(time.Now()) && sig.Verify(k, set) == nil {
				return nil
			}
		}
	}
	return fmt.Errorf("no signature of %v is by one of %v", rrs, keys)
}

// resolve asks for the MX records and validates them (RFC 4035 section 5).
func (v *validator) resolve() error {
	ds, err := v.get(dns.TypeDS)
	if err != nil {
		return err
	}
	mx, err := v.get(dns.TypeMX)
	if err != nil || len(ds) == 0 {
		return err
	}
	dnskey, err := v.get(dns.TypeDNSKEY)
	if err != nil {
		return err
	}
	var trusted, all []*dns.DNSKEY
	for _, rr := range dnskey {
		if k, ok := rr.(*dns.DNSKEY); ok {
			all = append(all, k)
			if slices.ContainsFunc(ds, func(d dns.RR) bool { return strings.EqualFold(d.(*dns.DS).Digest, k.ToDS(dns.SHA256).Digest) }) {
				trusted = append(trusted, k)
			}
		}
	}
	if err := proved(dnskey, trusted); err != nil {
		return fmt.Errorf("keys: %w", err)
	}
	if err := proved(mx, all); err != nil {
		return fmt.Errorf("MX: %w", err)
	}
	v.proofs++
	return nil
}

// TestRollover signs a zone of two sites, changes its key and goes back to unsigned, in
// virtual time. Twenty resolvers that validate and cache look on, each at its own moments,
// and nothing that they see is ever in doubt. Steps come as early as they are let.
func TestRollover(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 1))
	sites := []*answers{newAnswers(t, "msgw1.msgw.example.com."), newAnswers(t, "msgw2.msgw.example.com.")}
	synctest.Test(t, func(t *testing.T) {
		w := &wires{listeners: map[string]*pipeListener{}}
		one, two := siteConfig(dir, 1), siteConfig(dir, 2)
		if err := Init(one, InitOptions{Zone: "msgw.example.com", MXMode: "tier"}); err != nil {
			t.Fatal(err)
		}
		parent := &parentZone{}
		a := startSite(t, w, one)
		defer func() { a.stop() }()
		a.lookParent = parent.look
		sites[0].node.Store(a)
		within(t, time.Hour, "it leads", func() error { _, err := a.store.Confirm(); return err })
		op := operator{a.Node}
		sign := func(s admin.Sign) (admin.Signing, error) { return op.Sign(t.Context(), s) }
		if _, err := sign(admin.Sign{Want: "rollover"}); err == nil || !strings.Contains(err.Error(), "not signed") {
			t.Fatal(err)
		}
		if _, err := sign(admin.Sign{Want: "on", MaxTTL: 600}); err != nil {
			t.Fatal(err)
		}
		// The second site joins a zone that is signed already, and has its keys.
		if err := joinSite(a, two); err != nil {
			t.Fatal(err)
		}
		b := startSite(t, w, two)
		defer func() { b.stop() }()
		b.lookParent = parent.look
		sites[1].node.Store(b)
		within(t, time.Hour, "both vote", func() error {
			if v := b.store.Status().Voters; !slices.Equal(v, []string{"msgw1", "msgw2"}) {
				return fmt.Errorf("%q", v)
			}
			return nil
		})

		var resolvers []*validator
		for range 20 {
			resolvers = append(resolvers, &validator{random: random, parent: parent, sites: sites, cache: map[uint16]cached{}})
		}
		// pass lets time pass, in which the resolvers are asked now and then.
		pass := func(d time.Duration) {
			t.Helper()
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(time.Minute) {
				for i, v := range resolvers {
					if random.IntN(5) > 0 {
						continue
					}
					if err := v.resolve(); err != nil {
						t.Fatalf("seed %d: resolver %d in %s, %v after its begin: %v", seed, i, a.store.State().Signing.Phase, time.Since(a.store.State().Signing.Since), err)
					}
				}
			}
		}
		// until takes a step as soon as it is let.
		until := func(want string, phase raftstore.SigningPhase) {
			t.Helper()
			for range 2000 {
				_, err := sign(admin.Sign{Want: want})
				var refused *admin.Error
				if err != nil && !errors.As(err, &refused) {
					t.Fatal(err)
				}
				if a.store.State().Signing.Phase == phase {
					return
				}
				if err == nil {
					t.Fatalf("%s led to %s", want, a.store.State().Signing.Phase)
				}
				pass(3 * time.Minute)
			}
			t.Fatalf("%s is not let", phase)
		}
		ds := func() *dns.DS {
			g := a.store.State().Signing
			return dnskeyOf("msgw.example.com", g.Keys[g.Active()]).ToDS(dns.SHA256)
		}
		began := time.Now()
		for !a.store.State().Signing.WantsDS(time.Now()) {
			pass(3 * time.Minute)
			if r, err := op.ParentRecords(t.Context()); err != nil || slices.ContainsFunc(r.Records, func(r admin.ParentRecord) bool { return r.Type == "DS" }) != a.store.State().Signing.WantsDS(time.Now()) {
				t.Fatalf("%+v, %v", r, err)
			}
		}
		parent.set(ds())
		pass(time.Hour)
		if c, err := op.CheckParent(t.Context()); err != nil || !c.OK || len(c.Nodes) != 2 {
			t.Errorf("%+v, %v", c, err)
		}

		// A site that is cut off does not have the new key: nothing goes on until it has.
		b.stop()
		sites[1].node.Store(nil)
		resolvers = nil
		if _, err := sign(admin.Sign{Want: "rollover"}); err == nil {
			t.Error("a step without a quorum")
		}
		b = startSite(t, w, two)
		b.lookParent = parent.look
		sites[1].node.Store(b)
		within(t, time.Hour, "quorum", func() error {
			if !a.store.Status().Quorum {
				return errors.New("none")
			}
			return nil
		})
		for range 20 {
			resolvers = append(resolvers, &validator{random: random, parent: parent, sites: sites, cache: map[uint16]cached{}})
		}

		pass(20 * time.Minute) // caches fill
		old := ds()
		until("rollover", raftstore.NewKey)
		until("rollover", raftstore.NewDS)
		pass(time.Hour)
		if _, err := sign(admin.Sign{Want: "rollover"}); err == nil || !strings.Contains(err.Error(), "does not belong there") {
			t.Errorf("with the old DS: %v", err)
		}
		parent.set(old, ds())
		pass(time.Hour)
		if _, err := sign(admin.Sign{Want: "rollover"}); err == nil || !strings.Contains(err.Error(), "does not belong there") {
			t.Errorf("with both: %v", err)
		}
		parent.set(ds())
		until("rollover", raftstore.Signed)
		pass(time.Hour)
		proofs := 0
		for _, v := range resolvers {
			proofs += v.proofs
		}
		if proofs < 500 {
			t.Errorf("only %d answers were proved", proofs)
		}
		t.Logf("%d answers proved, the rollover was over after %v", proofs, time.Since(began))

		// Sealed for the sites without msgw2, the keys are not for msgw2 to read, nor ever for
		// a witness.
		s := a.store.State()
		sealed, err := a.resealSigning(s, raftstore.Node{Name: "w", Role: raftstore.Witness}, "msgw2")
		if err != nil || !slices.Equal(sealed.SealedTo, []string{"msgw1"}) || sealed.Version != s.Signing.Version {
			t.Fatalf("%+v, %v", sealed, err)
		}
		g := s.Signing
		g.Secret = sealed.Secret
		if _, err := openKeys(a.id, g); err != nil {
			t.Error(err)
		}
		if _, err := openKeys(b.id, g); err == nil {
			t.Error("a site that goes can read the keys")
		}

		if _, err := sign(admin.Sign{Want: "off"}); err != nil {
			t.Fatal(err)
		}
		pass(time.Hour)
		if _, err := sign(admin.Sign{Want: "off"}); err == nil || !strings.Contains(err.Error(), "does not belong there") {
			t.Errorf("unsigned with a DS: %v", err)
		}
		parent.set()
		until("off", raftstore.Unsigned)
		pass(time.Hour)
		for _, site := range sites {
			site.node.Store(nil)
		}
	})
}

// A site that has the configuration but cannot open the keys answers unsigned: nothing may
// depend on its signatures.
func TestSitesThatCannotSign(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := &wires{listeners: map[string]*pipeListener{}}
		one, two := siteConfig(dir, 1), siteConfig(dir, 2)
		if err := Init(one, InitOptions{Zone: "msgw.example.com", MXMode: "tier"}); err != nil {
			t.Fatal(err)
		}
		a := startSite(t, w, one)
		defer a.stop()
		within(t, time.Hour, "it leads", func() error { _, err := a.store.Confirm(); return err })
		if err := joinSite(a, two); err != nil {
			t.Fatal(err)
		}
		b := startSite(t, w, two)
		defer b.stop()
		within(t, time.Hour, "both have all", func() error {
			if c := a.awaitSites(a.store.State().Index); len(c.Missing) > 0 {
				return fmt.Errorf("not %q", c.Missing)
			}
			return nil
		})
		op := operator{a.Node}
		public, key, err := raftstore.NewSigningKey(time.Now())
		if err != nil {
			t.Fatal(err)
		}
		names, to := recipients(a.store.State(), raftstore.Node{}, "")
		for _, whole := range []bool{false, true} {
			g := a.store.State().Signing
			if g.Phase != raftstore.Unsigned {
				if _, err := op.change(t.Context(), raftstore.SignStep{From: g.Phase, To: raftstore.Unsigned, Version: g.Version, Force: true}); err != nil {
					t.Fatal(err)
				}
				g = a.store.State().Signing
			}
			step := raftstore.SignStep{From: g.Phase, To: raftstore.Signed, Version: g.Version, MaxTTL: 600, Keys: []raftstore.SigningKey{public}}
			recipients := to[:1]
			if whole {
				recipients = to
			}
			if step.Sealed, err = sealKeys([]*ecdsa.PrivateKey{key}, g.Version+1, names, recipients); err != nil {
				t.Fatal(err)
			}
			if _, err := op.change(t.Context(), step); err != nil {
				t.Fatal(err)
			}
			if err := op.settle(t.Context()); err != nil {
				t.Fatal(err)
			}
			if reached := !a.store.State().Signing.Reached.IsZero(); reached != whole {
				t.Errorf("the other site can open the keys: %v; the phase is reached: %v", whole, reached)
			}
		}
	})
}

// The TTL of the new DS says nothing of how long resolvers keep the old one.
func TestDSLifeIsThatOfTheOldDS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := &wires{listeners: map[string]*pipeListener{}}
		cfg := siteConfig(dir, 1)
		if err := Init(cfg, InitOptions{Zone: "msgw.example.com", MXMode: "tier"}); err != nil {
			t.Fatal(err)
		}
		a := startSite(t, w, cfg)
		defer a.stop()
		var servers []delegation.Server
		a.lookParent = func(context.Context, string, []string) (delegation.View, error) {
			return delegation.View{Parent: "example.com", Servers: servers}, nil
		}
		within(t, time.Hour, "it leads", func() error { _, err := a.store.Confirm(); return err })
		op := operator{a.Node}
		if _, err := op.Sign(t.Context(), admin.Sign{Want: "on", MaxTTL: 600}); err != nil {
			t.Fatal(err)
		}
		g := a.store.State().Signing
		right := delegation.Server{Name: "ns1.example.com", DS: []string{dsOf("msgw.example.com", g.Keys[0])}, DSTTL: 300}
		for _, x := range []struct {
			other delegation.Server
			want  uint32
		}{{delegation.Server{Name: "ns2.example.com", Error: "no answer"}, 0}, {delegation.Server{Name: "ns2.example.com", DS: []string{"1 13 2 AA"}, DSTTL: 7200}, 7200}} {
			servers = []delegation.Server{right, x.other}
			if _, err := op.observeParent(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := a.store.State().Signing.DSTTL; got != x.want {
				t.Errorf("with %+v: %d s, expected %d", x.other, got, x.want)
			}
		}
	})
}

// A backup that is encrypted has the zone's keys; another one has not, and says so.
func TestSigningInBackups(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t, "a")
	if err := Init(cfg, InitOptions{Zone: "msgw.example.com", MXMode: "tier"}); err != nil {
		t.Fatal(err)
	}
	id, err := loadIdentity(cfg.State)
	if err != nil {
		t.Fatal(err)
	}
	s, err := raftstore.LoadState(cfg.State)
	if err != nil {
		t.Fatal(err)
	}
	public, key, err := raftstore.NewSigningKey(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := sealKeys([]*ecdsa.PrivateKey{key}, 1, []string{"a"}, []string{id.node.Recipient()})
	if err != nil {
		t.Fatal(err)
	}
	s.Signing = raftstore.Signing{Phase: raftstore.Signed, Keys: []raftstore.SigningKey{public}, Secret: sealed.Secret, SealedTo: sealed.SealedTo, Version: 1, MaxTTL: 3600}
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(cfg.State, "config.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	k, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	for _, to := range [][]string{{k.Recipient().String()}, nil} {
		file := take(t, cfg, admin.BackupRequest{Recipients: to})
		again := testConfig(t, "b")
		r, err := Restore(t.Context(), again, bytes.NewReader(file), []backup.Identity{k})
		if err != nil {
			t.Fatal(err)
		}
		restored, err := raftstore.LoadState(again.State)
		if err != nil {
			t.Fatal(err)
		}
		g := restored.Signing
		if to == nil {
			if !r.Unsigned || g.Phase != raftstore.Unsigned || g.Secret != nil {
				t.Errorf("unsigned %v, %+v", r.Unsigned, g)
			}
			continue
		}
		other, err := loadIdentity(again.State)
		if err != nil {
			t.Fatal(err)
		}
		keys, err := openKeys(other, g)
		if err != nil || !keys[0].Equal(key) || r.Unsigned || g.Clear != nil || !slices.Equal(g.SealedTo, []string{"b"}) {
			t.Errorf("keys %d, %v, unsigned %v, %+v", len(keys), err, r.Unsigned, g)
		}
		if _, err := openKeys(id, g); err == nil {
			t.Error("the machine of before can still open the keys")
		}
	}
}

// A site that cannot open the keys answers unsigned and says so; it does not fall silent.
func TestKeysThatDoNotOpen(t *testing.T) {
	t.Parallel()
	id, err := newIdentity("c", "a", raftstore.Site)
	if err != nil {
		t.Fatal(err)
	}
	other, err := newIdentity("c", "b", raftstore.Site)
	if err != nil {
		t.Fatal(err)
	}
	public, key, err := raftstore.NewSigningKey(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := sealKeys([]*ecdsa.PrivateKey{key}, 1, []string{"b"}, []string{other.node.Recipient()})
	if err != nil {
		t.Fatal(err)
	}
	g := raftstore.Signing{Phase: raftstore.Signed, Keys: []raftstore.SigningKey{public}, Secret: sealed.Secret, MaxTTL: 60}
	var said bytes.Buffer
	n := &Node{id: id, log: slog.New(slog.NewTextHandler(&said, nil))}
	for range 2 {
		z := &dnsplugin.Zone{Name: "msgw.example.com."}
		if n.signZone(z, g, time.Now()); z.Keys != nil || z.MaxTTL != 0 {
			t.Errorf("%+v", z)
		}
	}
	if trouble := n.signingTrouble(g); len(trouble) != 1 || !strings.Contains(trouble[0], "answered unsigned here") {
		t.Errorf("%q", trouble)
	}
	if strings.Count(said.String(), "level=ERROR") != 1 {
		t.Errorf("log: %s", said.String())
	}
}
