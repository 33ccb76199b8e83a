package dnsplugin

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// signed is z signed with one new key.
func signed(t testing.TB, z *Zone) *Zone {
	z.Keys = []Key{{Signer: newKey(t), Signs: true, Parent: true}}
	return z
}

func secure(q *dns.Msg, co bool) *dns.Msg {
	q.SetEdns0(4096, true)
	if co {
		q.IsEdns0().SetCo()
	}
	return q
}

// dnskeys asks for the keys of a zone and checks that the set is signed by each of them.
func dnskeys(t testing.TB, h *Handler, zone string) map[uint16]*dns.DNSKEY {
	t.Helper()
	m, _ := h.reply(secure(question(zone, "DNSKEY"), false), cookie{})
	keys := map[uint16]*dns.DNSKEY{}
	for _, rr := range m.Answer {
		if k, ok := rr.(*dns.DNSKEY); ok {
			if k.Flags != 257 || k.Protocol != 3 || k.Algorithm != 13 {
				t.Errorf("key %v", k)
			}
			keys[k.KeyTag()] = k
		}
	}
	for tag := range keys {
		if !slices.ContainsFunc(m.Answer, func(rr dns.RR) bool { s, ok := rr.(*dns.RRSIG); return ok && s.KeyTag == tag }) {
			t.Errorf("DNSKEY set is not signed by %d", tag)
		}
	}
	return keys
}

// verify checks the signatures of a section: each set that must be signed is, with its own
// TTL, by a key of the zone; nothing else is. It returns the records without them.
func verify(section []dns.RR, zone string, keys map[uint16]*dns.DNSKEY, mustBeSigned func(name string, rrtype uint16) bool) ([]dns.RR, error) {
	type id struct {
		name   string
		rrtype uint16
	}
	var rest []dns.RR
	sets, sigs := map[id][]dns.RR{}, map[id][]*dns.RRSIG{}
	for _, rr := range section {
		h := rr.Header()
		if s, ok := rr.(*dns.RRSIG); ok {
			sigs[id{h.Name, s.TypeCovered}] = append(sigs[id{h.Name, s.TypeCovered}], s)
			continue
		}
		rest = append(rest, rr)
		if h.Rrtype != dns.TypeOPT {
			k := id{h.Name, h.Rrtype}
			if !slices.ContainsFunc(sets[k], func(o dns.RR) bool { return dns.IsDuplicate(o, rr) }) {
				sets[k] = append(sets[k], rr)
			}
		}
	}
	for k, set := range sets {
		if want := mustBeSigned(dns.CanonicalName(k.name), k.rrtype); want != (len(sigs[k]) > 0) {
			return nil, fmt.Errorf("%s %s has %d signatures, must be signed: %v", k.name, dns.TypeToString[k.rrtype], len(sigs[k]), want)
		}
		for _, s := range sigs[k] {
			key := keys[s.KeyTag]
			switch {
			case key == nil:
				return nil, fmt.Errorf("%v: no such key", s)
			case s.OrigTtl != set[0].Header().Ttl || s.Hdr.Ttl != s.OrigTtl:
				return nil, fmt.Errorf("%v: TTL of the set is %d", s, set[0].Header().Ttl)
			case s.SignerName != zone || int(s.Labels) != dns.CountLabel(strings.TrimPrefix(k.name, "*.")): // RFC 4034 section 3.1.3
				return nil, fmt.Errorf("%v: signer or labels", s)
			case !s.ValidityPeriod(time.Now()) || !s.ValidityPeriod(time.Now().Add(-3*time.Hour)) || !s.ValidityPeriod(time.Now().Add(5*24*time.Hour-time.Second)):
				return nil, fmt.Errorf("%v: validity", s)
			}
			if err := s.Verify(key, set); err != nil {
				return nil, fmt.Errorf("%v: %w", s, err)
			}
		}
		delete(sigs, k)
	}
	if len(sigs) > 0 {
		return nil, fmt.Errorf("signatures of what is not there: %v", sigs)
	}
	return rest, nil
}

// inChild reports whether a set of fullZone is a delegated zone's.
func inChild(name string, rrtype uint16) bool {
	for _, cut := range []string{"lab.gw.example.org.", "_acme-challenge.gw1.gw.example.org.", "_acme-challenge.gw2.gw.example.org."} {
		if dns.IsSubDomain(cut, name) && !(name == cut && (rrtype == dns.TypeDS || rrtype == dns.TypeNSEC)) {
			return true
		}
	}
	return false
}

// checkSigned compares a signed answer with what the same zone answers unsigned, and
// checks each of its signatures and proofs.
func checkSigned(t *testing.T, plain, got *dns.Msg, zone string, keys map[uint16]*dns.DNSKEY, co bool, inChild func(string, uint16) bool) {
	t.Helper()
	q := plain.Question[0]
	fail := func(format string, a ...any) {
		t.Helper()
		t.Errorf("%s %s: %s\n%s", q.Name, dns.TypeToString[q.Qtype], fmt.Sprintf(format, a...), text(got))
	}
	bare := got.Copy()
	var err error
	authentic := func(name string, rrtype uint16) bool { return !inChild(name, rrtype) }
	if bare.Answer, err = verify(got.Answer, zone, keys, authentic); err != nil {
		fail("answer: %v", err)
		return
	}
	if bare.Ns, err = verify(got.Ns, zone, keys, func(name string, rrtype uint16) bool { return rrtype != dns.TypeNS && authentic(name, rrtype) }); err != nil {
		fail("authority: %v", err)
		return
	}
	referral := len(plain.Ns) > 0 && plain.Ns[0].Header().Rrtype == dns.TypeNS
	if bare.Extra, err = verify(got.Extra, zone, keys, func(name string, rrtype uint16) bool { return !referral && authentic(name, rrtype) }); err != nil {
		fail("additional: %v", err)
		return
	}
	// What is denied, and by what.
	var nsec *dns.NSEC
	bare.Ns = slices.DeleteFunc(bare.Ns, func(rr dns.RR) bool {
		n, ok := rr.(*dns.NSEC)
		if ok {
			nsec = n
		}
		return ok || referral && rr.Header().Rrtype == dns.TypeDS
	})
	denied := q.Name
	for _, rr := range plain.Answer {
		if alias, ok := rr.(*dns.CNAME); ok {
			denied = alias.Target
		}
	}
	negative := len(plain.Ns) > 0 && plain.Ns[0].Header().Rrtype == dns.TypeSOA && !inChild(dns.CanonicalName(denied), q.Qtype)
	switch {
	case negative && nsec == nil:
		fail("no proof")
	case negative:
		switch {
		case nsec.Hdr.Name != denied || nsec.Hdr.Ttl != plain.Ns[0].Header().Ttl:
			fail("proof of another name or TTL")
		case nsec.NextDomain != `\000.`+dns.CanonicalName(denied):
			fail("the proof is about more than one name")
		case slices.Contains(nsec.TypeBitMap, q.Qtype), slices.Contains(nsec.TypeBitMap, dns.TypeCNAME):
			fail("the type is not denied")
		case slices.Contains(nsec.TypeBitMap, dns.TypeNXNAME) != (plain.Rcode == dns.RcodeNameError):
			fail("NXNAME")
		case plain.Rcode == dns.RcodeNameError && len(nsec.TypeBitMap) != 3:
			fail("a name that does not exist has types")
		}
		if plain.Rcode == dns.RcodeNameError && !co {
			if got.Rcode != dns.RcodeSuccess {
				fail("rcode")
			}
			bare.Rcode = dns.RcodeNameError
		}
	case referral:
		cut := plain.Ns[0].Header().Name
		switch hasDS := slices.ContainsFunc(got.Ns, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeDS }); {
		case hasDS == (nsec != nil):
			fail("neither DS nor proof that there is none, or both")
		case nsec != nil && (nsec.Hdr.Name != cut || !slices.Equal(nsec.TypeBitMap, []uint16{dns.TypeNS, dns.TypeRRSIG, dns.TypeNSEC})):
			fail("proof of an insecure delegation")
		}
	case nsec != nil:
		fail("a proof of nothing")
	}
	bare.Extra = slices.DeleteFunc(bare.Extra, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeOPT })
	if text(bare) != text(plain) {
		fail("without signatures this is\n%s\nand unsigned it was\n%s", text(bare), text(plain))
	}
}

// Every answer of TestAnswers and some more, signed, says the same and proves it; and to
// who does not ask for signatures nothing changes, not an octet.
func TestSignedAnswers(t *testing.T) {
	t.Parallel()
	c := challenges{
		"_acme-challenge.gw1.gw.example.org.": {"one", "two"},
		"_acme-challenge.gw2.gw.example.org.": {"moved"},
		"_acme-challenge.gw.example.org.":     {"apex"},
		"_acme-challenge.new.gw.example.org.": {`back\slash`},
	}
	for _, c := range []challenges{nil, c} {
		plain := handler(t, Options{Source: sourceOf(fullZone(t)), Self: "gw1.gw.example.org.", Challenges: c})
		h := handler(t, Options{Source: sourceOf(signed(t, fullZone(t))), Self: "gw1.gw.example.org.", Challenges: c})
		keys := dnskeys(t, h, "gw.example.org.")
		if len(keys) != 1 {
			t.Fatalf("%d keys", len(keys))
		}
		questions := slices.Clone(answers)
		for _, name := range []string{"_Acme-challenge.gw.example.org.", "_acme-challenge.new.gw.example.org.", "new.gw.example.org.", "_acme-challenge.gw2.gw.example.org."} {
			for _, qtype := range []string{"TXT", "A", "DS", "ANY"} {
				questions = append(questions, struct{ name, qtype, want string }{name: name, qtype: qtype})
			}
		}
		for range 2 { // the second time from what is kept
			for _, tc := range questions {
				q := askType(tc.name, tc.qtype)
				want, _ := plain.reply(q.Copy(), cookie{})
				if got, _ := h.reply(q.Copy(), cookie{}); text(got) != text(want) {
					t.Errorf("%s %s without DO\n%s\nwant\n%s", tc.name, tc.qtype, text(got), text(want))
				}
				if want.Rcode == dns.RcodeRefused {
					continue
				}
				for _, co := range []bool{false, true} {
					got, _ := h.reply(secure(q.Copy(), co), cookie{})
					checkSigned(t, want, got, "gw.example.org.", keys, co, inChild)
				}
			}
		}
	}
}

// Without keys there is no trace of signing.
func TestUnsigned(t *testing.T) {
	t.Parallel()
	h := handler(t, Options{Source: sourceOf(fullZone(t)), Self: "gw1.gw.example.org."})
	for _, tc := range answers {
		q := askType(tc.name, tc.qtype)
		want, _ := h.reply(q.Copy(), cookie{})
		got, _ := h.reply(secure(q.Copy(), true), cookie{})
		got.Extra = got.Extra[:len(got.Extra)-1]
		if text(got) != text(want) {
			t.Errorf("%s %s\n%s\nwant\n%s", tc.name, tc.qtype, text(got), text(want))
		}
	}
	if m, _ := h.reply(question("gw.example.org.", "DNSKEY"), cookie{}); len(m.Answer) != 0 {
		t.Error(text(m))
	}
}

// An NSEC record lists the types that its name answers, and no others, whatever they are.
func TestBitmapsAreTrue(t *testing.T) {
	t.Parallel()
	z := signed(t, fullZone(t))
	z.Records = append(z.Records, records(t, `odd.gw.example.org. 60 IN SSHFP 1 1 00ff`, `odd.gw.example.org. 60 IN HTTPS 1 . alpn=h2`,
		`odd.gw.example.org. 60 IN TYPE1234 \# 1 00`, `odd.gw.example.org. 60 IN HINFO a b`)...)
	c := challenges{"_acme-challenge.gw1.gw.example.org.": {"one"}, "_acme-challenge.odd.gw.example.org.": {"two"}, "odd.gw.example.org.": {"three"},
		"_acme-challenge.way.up.gw.example.org.": {"four"}}
	h := handler(t, Options{Source: sourceOf(z), Self: "gw1.gw.example.org.", Challenges: c})
	ix := h.index()
	names := slices.Collect(maps.Keys(ix.names))
	names = append(names, "_acme-challenge.odd.gw.example.org.", "_acme-challenge.way.up.gw.example.org.", "way.up.gw.example.org.")
	types := []uint16{1234, 65280, 32768, 61, 249}
	for i := uint16(1); i < 70; i++ {
		types = append(types, i)
	}
	types = append(types, 99, 108, 256, 257, 258, 261)
	asked := 0
	for _, name := range names {
		if ix.names[name][dns.TypeCNAME] != nil {
			continue // all other types are answered by the alias
		}
		// At a delegation only DS can be asked of this side.
		cut := ix.cuts[name] != nil
		var nsec *dns.NSEC
		qtype := "NSEC"
		if cut {
			if qtype = "DS"; ix.names[name][dns.TypeDS] != nil || ix.cutAt(name).name != name {
				continue // nothing is denied there
			}
		}
		m, _ := h.reply(secure(question(name, qtype), false), cookie{})
		for _, rr := range slices.Concat(m.Answer, m.Ns) {
			if n, ok := rr.(*dns.NSEC); ok {
				nsec = n
			}
		}
		if nsec == nil {
			t.Errorf("%s has no NSEC:\n%s", name, text(m))
			continue
		}
		if !slices.IsSorted(nsec.TypeBitMap) {
			t.Errorf("%v: types in disorder", nsec)
		}
		if cut {
			if !slices.Equal(nsec.TypeBitMap, []uint16{dns.TypeNS, dns.TypeRRSIG, dns.TypeNSEC}) {
				t.Errorf("%v at a delegation", nsec)
			}
			continue
		}
		for _, qtype := range types {
			q := question(name, "A")
			q.Question[0].Qtype = qtype
			m, _ := h.reply(q, cookie{})
			has := m.Rcode == dns.RcodeSuccess && len(m.Answer) > 0
			if m.Authoritative && has != slices.Contains(nsec.TypeBitMap, qtype) {
				t.Errorf("%v\nbut %d is answered\n%s", nsec, qtype, text(m))
			}
			asked++
		}
	}
	if asked < 1000 {
		t.Errorf("only %d questions", asked)
	}
}

// A question for the types of DNSSEC itself is answered, with and without DO; one for the
// type that says that a name does not exist is malformed.
func TestExplicit(t *testing.T) {
	t.Parallel()
	h := handler(t, Options{Source: sourceOf(signed(t, fullZone(t))), Self: "gw1.gw.example.org."})
	for _, tc := range []struct {
		name, qtype string
		do          bool
		want        string // types of the answer
	}{
		{"gw.example.org.", "NSEC", false, "NSEC"},
		{"www.gw.example.org.", "NSEC", true, "NSEC RRSIG"},
		{"_tcp.gw1.gw.example.org.", "NSEC", true, "NSEC RRSIG"},
		{"gw.example.org.", "RRSIG", false, "RRSIG"},
		{"gw.example.org.", "DNSKEY", false, "DNSKEY"},
		{"gw.example.org.", "CDS", true, "CDS RRSIG"},
		{"gw.example.org.", "CDNSKEY", true, "CDNSKEY RRSIG"},
		{"no.gw.example.org.", "NSEC", true, ""},
		{"lab.gw.example.org.", "NSEC", true, ""},
	} {
		q := question(tc.name, tc.qtype)
		if tc.do {
			secure(q, false)
		}
		m, _ := h.reply(q, cookie{})
		var got []string
		for _, rr := range m.Answer {
			got = append(got, dns.TypeToString[rr.Header().Rrtype])
		}
		if strings.Join(got, " ") != tc.want || m.Rcode != dns.RcodeSuccess {
			t.Errorf("%s %s, DO %v:\n%s", tc.name, tc.qtype, tc.do, text(m))
		}
	}
	q := question("gw.example.org.", "A")
	q.Question[0].Qtype = dns.TypeNXNAME
	if m, _ := h.reply(q, cookie{}); text(m) != "FORMERR" {
		t.Error(text(m))
	}
}

// A signed MX answer of two sites with two address families fits in one datagram, glue and
// all signatures included.
func TestSignedMXFits(t *testing.T) {
	t.Parallel()
	z := signed(t, &Zone{Name: "msgw.a-rather-long-company-name.example.", Hosts: []Host{
		{Name: "msgw1.msgw.a-rather-long-company-name.example.", V4: addrs("192.0.2.1"), V6: addrs("2001:db8::1"), Weight: 1, NameServer: true},
		{Name: "msgw2.msgw.a-rather-long-company-name.example.", V4: addrs("192.0.2.2"), V6: addrs("2001:db8::2"), Weight: 1, NameServer: true},
	}})
	h := handler(t, Options{Source: sourceOf(z)})
	m, _ := h.reply(secure(question(z.Name, "MX"), false), cookie{})
	before := len(m.Extra)
	fit(m, maxUDP)
	wire, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Extra) != before || before != 9 || m.Truncated {
		t.Errorf("%d octets, %d of %d additional", len(wire), len(m.Extra), before)
	}
	t.Logf("%d octets", len(wire))
	fit(m, 700) // signatures go before addresses
	if n := len(m.Extra); m.Truncated || n != 7 || m.Extra[3].Header().Rrtype != dns.TypeAAAA {
		t.Errorf("%s", text(m))
	}
}

// The name that follows leaves room for no other one between, also where a name is as long
// as names can be.
func TestSuccessor(t *testing.T) {
	t.Parallel()
	tail := strings.Repeat("a.", 125) // 250 octets, and 1 for the root
	long := strings.Repeat("b", 63)
	for name, want := range map[string]string{
		"gw.example.org.":   `\000.gw.example.org.`,
		"b." + tail:         `\000.b.` + tail, // 253 octets become 255
		"bb." + tail:        `bb\000.` + tail, // 254
		"bbb." + tail:       `bbc.` + tail,    // 255
		"bb@." + tail:       `bb[.` + tail,    // A to Z are a to z
		`bb\255.` + tail:    `bc.` + tail,     // no octet is higher
		`b\255\255.` + tail: `c.` + tail,
		// Nothing follows below the same parent.
		`\255.bbb.` + tail[2:]:           `bbb\000.` + tail[2:],
		`\255.` + long + "." + tail[62:]: long[:62] + "c." + tail[62:],
		`\255\255.a\255.` + tail[2:]:     `a\255\000.` + tail[2:],
	} {
		got := successor(name)
		if got != want {
			t.Errorf("%.12q -> %.12q, expected %.12q", name, got, want)
		}
		if _, err := dns.PackDomainName(got, make([]byte, 255), 0, nil, false); err != nil {
			t.Errorf("%q: %v", got, err)
		}
	}
}

func BenchmarkMX(b *testing.B) {
	for _, bc := range []struct {
		name string
		zone func() *Zone
		do   bool
	}{
		{"unsigned", twoHosts, false},
		{"signed", func() *Zone { return signed(b, twoHosts()) }, true},
		{"signed without DO", func() *Zone { return signed(b, twoHosts()) }, false},
	} {
		b.Run(bc.name, func(b *testing.B) {
			h := handler(b, Options{Source: sourceOf(bc.zone())})
			b.ReportAllocs()
			for b.Loop() {
				q := question("gw.example.org.", "MX").SetEdns0(1232, bc.do)
				m, _ := h.reply(q, cookie{})
				fit(m, maxUDP)
				if _, err := m.Pack(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
