package dnsplugin

import (
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/pkg/edns"
	"github.com/coredns/coredns/plugin/test"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"
)

// wireWriter is a ResponseWriter that keeps what would be on the wire.
type wireWriter struct {
	test.ResponseWriter
	wires [][]byte
	err   error
}

func (w *wireWriter) WriteMsg(m *dns.Msg) error {
	wire, err := m.Pack()
	w.err = err
	w.wires = append(w.wires, wire)
	return err
}

// FuzzQuery feeds what a stranger sends to the handler, the way CoreDNS does.
func FuzzQuery(f *testing.F) {
	z := fullZone(f)
	z.Hosts[1].Weight = 2
	h := handler(f, Options{Source: sourceOf(z), Self: "gw1.gw.example.org.", NSID: "gw1",
		CookieSecrets: func() []CookieSecret { return []CookieSecret{{1}} },
		Challenges:    challenges{"_acme-challenge.gw1.gw.example.org.": {"v"}, "_acme-challenge.new.gw.example.org.": {"w"}}})
	for _, tc := range answers {
		for _, q := range []*dns.Msg{askType(tc.name, tc.qtype), askType(tc.name, tc.qtype).SetEdns0(4096, true)} {
			wire, err := q.Pack()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(wire)
		}
	}
	// Two OPT records, an update, an EDNS option.
	q := question("gw.example.org.", "MX").SetEdns0(512, false).SetEdns0(512, false)
	q.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_NSID{Code: dns.EDNS0NSID}, &dns.EDNS0_PADDING{Padding: make([]byte, 20)}}
	wire, _ := q.Pack()
	f.Add(wire)
	q.Opcode = dns.OpcodeUpdate
	wire, _ = q.Pack()
	f.Add(wire)

	f.Fuzz(func(t *testing.T, wire []byte) {
		r := new(dns.Msg)
		if r.Unpack(wire) != nil || r.Response {
			return // the library answers these, or does not
		}
		if _, err := edns.Version(r); err != nil {
			return // CoreDNS answers these
		}
		question := slices.Clone(r.Question)
		limit := dns.MinMsgSize
		if o := r.IsEdns0(); o != nil {
			limit = min(maxUDP, max(limit, int(o.UDPSize())))
		}
		hasOPT := r.IsEdns0() != nil
		w := &wireWriter{}
		rcode, err := h.ServeDNS(t.Context(), request.NewScrubWriter(r, w), r)
		if err != nil || w.err != nil || len(w.wires) != 1 || !plugin.ClientWrite(rcode) {
			t.Fatalf("%d replies, rcode %d, errors %v, %v", len(w.wires), rcode, err, w.err)
		}
		m := new(dns.Msg)
		if err := m.Unpack(w.wires[0]); err != nil {
			t.Fatal(err)
		}
		if len(w.wires[0]) > limit {
			t.Errorf("%d octets, %d are allowed", len(w.wires[0]), limit)
		}
		if m.Id != binary.BigEndian.Uint16(wire) || !m.Response || m.Opcode != r.Opcode || m.RecursionAvailable || m.AuthenticatedData || m.Zero {
			t.Errorf("header %+v", m.MsgHdr)
		}
		if m.Rcode == dns.RcodeServerFailure {
			t.Errorf("SERVFAIL, a panic below: %s", text(m))
		}
		if (m.IsEdns0() != nil) != hasOPT {
			t.Errorf("OPT asked %v, answered %v", hasOPT, m.IsEdns0())
		}
		if len(question) != 1 {
			if m.Rcode != dns.RcodeFormatError {
				t.Errorf("%d questions: %s", len(question), text(m))
			}
			return
		}
		if len(m.Question) != 1 || m.Question[0] != question[0] {
			t.Errorf("question %v came back as %v", question, m.Question)
		}
		isDelegated := !m.Authoritative && len(m.Ns) > 0
		if (m.Rcode == dns.RcodeSuccess || m.Rcode == dns.RcodeNameError) && len(m.Answer) == 0 && !m.Truncated && !isDelegated {
			if len(m.Ns) != 1 || m.Ns[0].Header().Rrtype != dns.TypeSOA || m.Ns[0].Header().Ttl != 60 || !m.Authoritative {
				t.Errorf("nothing is not proved: %s", text(m))
			}
		}
		if m.Rcode == dns.RcodeSuccess && question[0].Qtype == dns.TypeMX && dns.CanonicalName(question[0].Name) == z.Name && !m.Truncated {
			if len(m.Answer) != len(z.Hosts) {
				t.Errorf("lost a host: %s", text(m))
			}
			for _, host := range z.Hosts {
				if !slices.ContainsFunc(m.Answer, func(rr dns.RR) bool { return rr.(*dns.MX).Mx == host.Name }) {
					t.Errorf("lost %s: %s", host.Name, text(m))
				}
			}
		}
	})
}

// FuzzRecords feeds records of a configuration to the index: whatever it lets in,
// answers with it go on the wire.
func FuzzRecords(f *testing.F) {
	for _, rr := range fullZone(f).Records {
		f.Add(rr.String(), rr.Header().Name)
	}
	f.Add("a.gw.example.org. 1 IN CNAME b.gw.example.org.\nb.gw.example.org. 1 IN CNAME a.gw.example.org.", "a.gw.example.org.")
	f.Fuzz(func(t *testing.T, zone, name string) {
		z := twoHosts()
		p := dns.NewZoneParser(strings.NewReader(zone), "gw.example.org.", "")
		for rr, ok := p.Next(); ok; rr, ok = p.Next() {
			z.Records = append(z.Records, rr)
		}
		if !validName(name) {
			name = z.Name
		}
		h := handler(t, Options{Source: sourceOf(z), Self: "gw1.gw.example.org."})
		for _, qtype := range []string{"MX", "TXT", "DS", "ANY", "NS"} {
			for _, n := range []string{name, z.Name} {
				m, _ := h.reply(question(n, qtype), cookie{})
				if m.Rcode == dns.RcodeServerFailure {
					t.Fatalf("%s %s: SERVFAIL", n, qtype)
				}
				if n == z.Name && qtype == "MX" && len(m.Answer) != 2 {
					t.Fatalf("%s %s: %s", n, qtype, text(m))
				}
				fit(m, dns.MaxMsgSize)
				if _, err := m.Pack(); err != nil {
					t.Fatalf("%s %s: %v", n, qtype, err)
				}
			}
		}
	})
}

// FuzzSigned compares a signed zone of any records with the same unsigned: it says the
// same, and proves it.
func FuzzSigned(f *testing.F) {
	for _, rr := range fullZone(f).Records {
		f.Add(rr.String(), rr.Header().Name, rr.Header().Rrtype, true)
		f.Add(rr.String(), "x."+rr.Header().Name, dns.TypeA, false)
	}
	f.Add("a.gw.example.org. 1 IN CNAME b.gw.example.org.\nb.gw.example.org. 1 IN CNAME A.gw.example.org.", "A.gw.example.org.", dns.TypeMX, true)
	f.Add("a.gw.example.org. 1 IN NS b.a.gw.example.org.\nb.gw.example.org. 1 IN DS 1 13 2 00", "x.a.gw.example.org.", dns.TypeDS, true)
	f.Add("a.gw.example.org. 1 IN TXT a\na.gw.example.org. 2 IN TXT b", "gw.example.org.", dns.TypeANY, true)
	key := newKey(f)
	f.Fuzz(func(t *testing.T, zone, name string, qtype uint16, co bool) {
		switch qtype {
		case dns.TypeAXFR, dns.TypeIXFR, dns.TypeNSEC, dns.TypeRRSIG, dns.TypeNXNAME, dns.TypeDNSKEY, dns.TypeCDS, dns.TypeCDNSKEY, dns.TypeOPT:
			return
		}
		if !validName(name) || !dns.IsSubDomain("gw.example.org.", name) {
			return
		}
		z := twoHosts()
		p := dns.NewZoneParser(strings.NewReader(zone), "gw.example.org.", "")
		for rr, ok := p.Next(); ok; rr, ok = p.Next() {
			switch rr.Header().Rrtype {
			case dns.TypeDNSKEY, dns.TypeCDS, dns.TypeCDNSKEY:
			default:
				z.Records = append(z.Records, rr)
			}
		}
		s := *z
		s.Keys = []Key{{Signer: key, Signs: true}}
		plain, h := handler(t, Options{Source: sourceOf(z)}), handler(t, Options{Source: sourceOf(&s)})
		ix := plain.index()
		q := question(name, "A")
		q.Question[0].Qtype = qtype
		want, _ := plain.reply(q.Copy(), cookie{})
		got, _ := h.reply(secure(q.Copy(), co), cookie{})
		checkSigned(t, want, got, "gw.example.org.", dnskeys(t, h, "gw.example.org."), co, func(name string, rrtype uint16) bool {
			c := ix.cutAt(name)
			return c != nil && !(name == c.name && (rrtype == dns.TypeDS || rrtype == dns.TypeNSEC))
		})
		for _, size := range []int{maxUDP, dns.MinMsgSize} {
			fit(got, size)
			if wire, err := got.Pack(); err != nil || len(wire) > size {
				t.Fatalf("%d octets, %d are allowed, %v", len(wire), size, err)
			}
		}
	})
}
