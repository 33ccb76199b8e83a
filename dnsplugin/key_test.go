package dnsplugin

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

// The keys, what they ask of the parent, and the request to remove it.
func TestKeys(t *testing.T) {
	t.Parallel()
	z := twoHosts()
	z.Keys = []Key{{Signer: newKey(t), Signs: true}, {Signer: newKey(t), Parent: true}}
	h := handler(t, Options{Source: sourceOf(z)})
	keys := dnskeys(t, h, z.Name)
	if len(keys) != 2 {
		t.Fatalf("%d keys", len(keys))
	}
	second, err := z.Keys[1].DNSKEY(z.Name)
	if err != nil {
		t.Fatal(err)
	}
	sigs := func(qtype string) (tags []uint16, m *dns.Msg) {
		m, _ = h.reply(secure(question(z.Name, qtype), false), cookie{})
		for _, rr := range m.Answer {
			if s, ok := rr.(*dns.RRSIG); ok {
				tags = append(tags, s.KeyTag)
			}
		}
		return tags, m
	}
	for qtype, want := range map[string]int{"DNSKEY": 2, "CDS": 2, "CDNSKEY": 2, "MX": 1, "SOA": 1} {
		tags, m := sigs(qtype)
		if len(tags) != want || want == 1 && tags[0] == second.KeyTag() {
			t.Errorf("%s is signed by %v\n%s", qtype, tags, text(m))
		}
		if _, err := verify(m.Answer, z.Name, keys, func(string, uint16) bool { return true }); err != nil {
			t.Error(err)
		}
	}
	_, m := sigs("CDS")
	if cds := m.Answer[0].(*dns.CDS); cds.DS.Digest != second.ToDS(dns.SHA256).Digest || cds.DigestType != dns.SHA256 {
		t.Errorf("%v, expected the second key's", cds)
	}
	off := *z
	off.Unsigning = true
	h = handler(t, Options{Source: sourceOf(&off)})
	for qtype, want := range map[string]string{"CDS": "0 0 0 00", "CDNSKEY": "0 3 0 AA=="} {
		_, m := sigs(qtype)
		if !strings.HasSuffix(m.Answer[0].String(), want) || len(m.Answer) != 3 {
			t.Errorf("%s, expected %s", text(m), want)
		}
		if _, err := m.Pack(); err != nil {
			t.Error(err)
		}
		if _, err := verify(m.Answer, z.Name, keys, func(string, uint16) bool { return true }); err != nil {
			t.Error(err)
		}
	}
}

// No TTL is above the zone's own highest, those of the answers made for a query included.
func TestMaxTTL(t *testing.T) {
	t.Parallel()
	z := signed(t, fullZone(t))
	z.MaxTTL = 7
	h := handler(t, Options{Source: sourceOf(z), Self: "gw1.gw.example.org."})
	for _, tc := range answers {
		m, _ := h.reply(secure(askType(tc.name, tc.qtype), false), cookie{})
		for _, rr := range slices.Concat(m.Answer, m.Ns, m.Extra) {
			if h := rr.Header(); h.Rrtype != dns.TypeOPT && h.Ttl > 7 {
				t.Errorf("%s %s: %v", tc.name, tc.qtype, rr)
			}
		}
	}
}

// faultyKey fails when it is told to.
type faultyKey struct {
	crypto.Signer
	mu    sync.Mutex
	fails bool
	calls int
}

func (f *faultyKey) Sign(r io.Reader, digest []byte, o crypto.SignerOpts) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	if f.fails {
		return nil, errors.New("no luck")
	}
	return f.Signer.Sign(r, digest, o)
}

// A signature that was made for a client's spelling of a name is good for every other.
func TestSpellings(t *testing.T) {
	t.Parallel()
	h := handler(t, Options{Source: sourceOf(signed(t, fullZone(t))), Self: "gw1.gw.example.org."})
	keys := dnskeys(t, h, "gw.example.org.")
	for _, spelling := range []string{"MTA-sts.gw.example.org.", "mta-sts.gw.example.org.", "mta-sts.gw.example.org.", "mta-sts.GW.example.org."} {
		for _, name := range []string{spelling, "No." + spelling} {
			m, _ := h.reply(secure(question(name, "A"), false), cookie{})
			for _, section := range [][]dns.RR{m.Answer, m.Ns} {
				if _, err := verify(section, "gw.example.org.", keys, func(string, uint16) bool { return true }); err != nil {
					t.Errorf("%v\n%s", err, text(m))
				}
			}
		}
	}
}

// Signatures are made once, again when they are two days old or the clock was set back,
// and a key that fails leaves the answer unsigned, never unanswered.
func TestSignaturesAge(t *testing.T) {
	t.Parallel()
	key := &faultyKey{Signer: newKey(t)}
	z := twoHosts()
	z.Keys = []Key{{Signer: key, Signs: true}}
	var said logBuffer
	reg := prometheus.NewRegistry()
	src := sourceOf(z)
	h := handler(t, Options{Source: src, Registerer: reg, Log: slog.New(slog.NewTextHandler(&said, nil))})
	clock := time.Now()
	h.signer.now = func() time.Time { return clock }
	rrsig := func() *dns.RRSIG {
		m, _ := h.reply(secure(question("GW1.gw.example.org.", "A"), false), cookie{})
		if len(m.Answer) == 1 {
			return nil
		}
		return m.Answer[1].(*dns.RRSIG)
	}
	made := func() int { key.mu.Lock(); defer key.mu.Unlock(); return key.calls }
	first := rrsig()
	for range 3 {
		again := *z
		src.p.Store(&again) // a new version with the same records
		rrsig()
	}
	if made() != 1 {
		t.Errorf("%d signatures made", made())
	}
	for i, step := range []struct {
		after time.Duration
		fails bool
		calls int
		is    string
	}{
		{47 * time.Hour, false, 1, "old"},
		{2 * time.Hour, false, 2, "new"},
		{-5 * time.Hour, false, 3, "new"}, // the clock was set back
		{3 * 24 * time.Hour, true, 4, "old"},
		{4 * 24 * time.Hour, true, 5, "none"},
		{0, false, 6, "new"},
	} {
		clock = clock.Add(step.after)
		key.mu.Lock()
		key.fails = step.fails
		key.mu.Unlock()
		got := rrsig()
		is := "none"
		if got != nil {
			if is = "old"; got.Inception != first.Inception {
				is = "new"
			}
			if !got.ValidityPeriod(clock) {
				t.Errorf("step %d: not valid", i)
			}
			first = got
		}
		if is != step.is || made() != step.calls {
			t.Errorf("step %d: %s after %d calls, expected %s after %d", i, is, made(), step.is, step.calls)
		}
	}
	if got := gathered(t, reg); !strings.Contains(got, "coredns_dnsplugin_unsigned_total 2") {
		t.Error(got)
	}
	if n := strings.Count(said.String(), "level=ERROR"); n != 1 {
		t.Errorf("%d errors in the log:\n%s", n, said.String())
	}
}

// Keys of another kind are reported; without one that signs the zone is unsigned.
func TestUnusableKeys(t *testing.T) {
	t.Parallel()
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		keys []Key
		want string
	}{
		{[]Key{{Signs: true}}, "no private half"},
		{[]Key{{Signer: p384, Signs: true}}, "expected ECDSA on P-256"},
		{[]Key{{Signer: newKey(t)}}, "no key signs the zone"},
	} {
		z := twoHosts()
		z.Keys = tc.keys
		if err := z.Check(); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("got %v, want %q", err, tc.want)
		}
		h := handler(t, Options{Source: sourceOf(z)})
		m, _ := h.reply(secure(question(z.Name, "MX"), false), cookie{})
		if len(m.Answer) != 2 {
			t.Error(text(m))
		}
	}
	z := signed(t, twoHosts())
	z.Records = records(t, "gw.example.org. 60 IN CDS 0 0 0 00")
	if err := z.Check(); err == nil || !strings.Contains(err.Error(), "made by the server") {
		t.Error(err)
	}
}

// What is kept is bounded, and what is asked for stays.
func TestSignaturesAreBounded(t *testing.T) {
	t.Parallel()
	s := signatures{limit: 10}
	keep := &signature{}
	s.put("keep", keep)
	for i := range 1000 {
		s.put(fmt.Sprint(i), &signature{})
		if s.get([]byte("keep")) != keep {
			t.Fatalf("lost after %d", i)
		}
	}
	if n := len(s.young) + len(s.old); n > 20 {
		t.Errorf("%d kept", n)
	}
}
