package dnsplugin

import (
	"fmt"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

const (
	soaLine   = "gw.example.org. 60 SOA gw1.gw.example.org. post\\.master.example.org. 7 14400 3600 604800 60"
	addrLines = "ar gw1.gw.example.org. 300 A 192.0.2.1\nar gw1.gw.example.org. 300 AAAA 2001:db8::1\n" +
		"ar gw2.gw.example.org. 300 A 192.0.2.2\nar gw2.gw.example.org. 300 AAAA 2001:db8::2"
)

// fullZone has something of everything.
func fullZone(t testing.TB) *Zone {
	z := twoHosts()
	z.Hosts = append(z.Hosts, Host{Name: "old.example.net.", V4: addrs("198.51.100.1"), State: Down})
	z.Records = records(t,
		`gw.example.org. 3600 IN TXT "v=spf1 -all"`,
		`gw.example.org. 3600 IN CAA 0 issue "letsencrypt.org"`,
		`_25._tcp.gw1.gw.example.org. 300 IN TLSA 3 1 1 00ff`,
		`mta-sts.gw.example.org. 600 IN A 192.0.2.1`,
		`mta-sts.gw.example.org. 300 IN A 192.0.2.2`,
		`mta-sts.gw.example.org. 300 IN A 192.0.2.2`,
		`Gw1.gw.example.org. 200 IN A 192.0.2.11`,
		`_smtp._tls.gw.example.org. 3600 IN TXT "v=TLSRPTv1; rua=mailto:x@example.org"`,
		`sub.gw.example.org. 3600 IN MX 5 gw2.gw.example.org.`,
		`_x._tcp.gw.example.org. 3600 IN SRV 0 0 25 mta-sts.gw.example.org.`,
		`www.gw.example.org. 3600 IN CNAME mta-STS.gw.example.org.`,
		`mail.gw.example.org. 3600 IN CNAME gw.example.org.`,
		`out.gw.example.org. 3600 IN CNAME www.example.net.`,
		`dead.gw.example.org. 3600 IN CNAME nowhere.gw.example.org.`,
		`loop.gw.example.org. 3600 IN CNAME loop.gw.example.org.`,
		`gone.gw.example.org. 3600 IN CNAME x.lab.gw.example.org.`,
		`type.gw.example.org. 3600 IN TYPE65280 \# 2 abcd`,
		`_acme-challenge.gw1.gw.example.org. 3600 IN NS gw1.gw.example.org.`,
		`_acme-challenge.gw2.gw.example.org. 3600 IN NS gw2.gw.example.org.`,
		`lab.gw.example.org. 3600 IN NS ns.lab.gw.example.org.`,
		`lab.gw.example.org. 3600 IN NS ns.example.net.`,
		`deep.lab.gw.example.org. 3600 IN NS ns.example.com.`,
		`lab.gw.example.org. 3600 IN DS 1 13 2 00ff`,
		`ns.lab.gw.example.org. 3600 IN A 192.0.2.53`,
	)
	return z
}

var answers = []struct{ name, qtype, want string }{
	{"gw.example.org.", "SOA", "NOERROR aa\nan " + strings.Replace(soaLine, " 60 SOA", " 3600 SOA", 1)},
	{"gw.example.org.", "NS", "NOERROR aa\nan gw.example.org. 3600 NS gw1.gw.example.org.\nan gw.example.org. 3600 NS gw2.gw.example.org.\n" + glueLines},
	{"gw.example.org.", "MX", "NOERROR aa\nan gw.example.org. 60 MX 10 gw1.gw.example.org.\nan gw.example.org. 60 MX 20 gw2.gw.example.org.\n" +
		"an gw.example.org. 60 MX 100 old.example.net.\n" + glueLines},
	{"Gw.eXample.oRG.", "MX", "NOERROR aa\nan Gw.eXample.oRG. 60 MX 10 gw1.gw.example.org.\nan Gw.eXample.oRG. 60 MX 20 gw2.gw.example.org.\n" +
		"an Gw.eXample.oRG. 60 MX 100 old.example.net.\n" + glueLines},
	{"gw.example.org.", "A", "NOERROR aa\nns " + soaLine},
	{"gw.example.org.", "TXT", "NOERROR aa\nan gw.example.org. 3600 TXT \"v=spf1 -all\""},
	{"gw.example.org.", "CAA", "NOERROR aa\nan gw.example.org. 3600 CAA 0 issue \"letsencrypt.org\""},
	{"gw.example.org.", "DS", "NOERROR aa\nns " + soaLine},
	{"gw.example.org.", "ANY", "NOERROR aa\nan gw.example.org. 3600 HINFO \"RFC8482\" \"\""},

	{"gw1.gw.example.org.", "A", "NOERROR aa\nan gw1.gw.example.org. 200 A 192.0.2.1\nan gw1.gw.example.org. 200 A 192.0.2.11"},
	{"GW2.gw.example.org.", "AAAA", "NOERROR aa\nan GW2.gw.example.org. 300 AAAA 2001:db8::2"},
	{"gw1.gw.example.org.", "MX", "NOERROR aa\nns " + soaLine},
	{"gw1.gw.example.org.", "TYPE4711", "NOERROR aa\nns " + soaLine},
	{"gw1.gw.example.org.", "ANY", "NOERROR aa\nan gw1.gw.example.org. 3600 HINFO \"RFC8482\" \"\""},
	{"type.gw.example.org.", "TYPE65280", "NOERROR aa\nan type.gw.example.org. 3600 CLASS1 TYPE65280 \\# 2 abcd"},
	{"_25._tcp.gw1.gw.example.org.", "TLSA", "NOERROR aa\nan _25._tcp.gw1.gw.example.org. 300 TLSA 3 1 1 00ff"},
	{"mta-sts.gw.example.org.", "A", "NOERROR aa\nan mta-sts.gw.example.org. 300 A 192.0.2.1\nan mta-sts.gw.example.org. 300 A 192.0.2.2"},
	{"sub.gw.example.org.", "MX", "NOERROR aa\nan sub.gw.example.org. 3600 MX 5 gw2.gw.example.org.\n" +
		"ar gw2.gw.example.org. 300 A 192.0.2.2\nar gw2.gw.example.org. 300 AAAA 2001:db8::2"},
	{"_x._tcp.gw.example.org.", "SRV", "NOERROR aa\nan _x._tcp.gw.example.org. 3600 SRV 0 0 25 mta-sts.gw.example.org.\n" +
		"ar mta-sts.gw.example.org. 300 A 192.0.2.1\nar mta-sts.gw.example.org. 300 A 192.0.2.2"},

	// Empty non-terminals, and what does not exist.
	{"_tcp.gw1.gw.example.org.", "TXT", "NOERROR aa\nns " + soaLine},
	{"_tls.gw.example.org.", "A", "NOERROR aa\nns " + soaLine},
	{"_tls.gw.example.org.", "ANY", "NOERROR aa\nns " + soaLine},
	{"no.gw.example.org.", "MX", "NXDOMAIN aa\nns " + soaLine},
	{"no.gw.example.org.", "ANY", "NXDOMAIN aa\nns " + soaLine},
	{"a.b.mta-sts.gw.example.org.", "A", "NXDOMAIN aa\nns " + soaLine},
	{"xgw.example.org.", "A", "REFUSED"},
	{"example.org.", "SOA", "REFUSED"},
	{"old.example.net.", "A", "REFUSED"},
	{".", "NS", "REFUSED"},

	// Aliases.
	{"www.gw.example.org.", "A", "NOERROR aa\nan www.gw.example.org. 3600 CNAME mta-STS.gw.example.org.\n" +
		"an mta-STS.gw.example.org. 300 A 192.0.2.1\nan mta-STS.gw.example.org. 300 A 192.0.2.2"},
	{"www.gw.example.org.", "CNAME", "NOERROR aa\nan www.gw.example.org. 3600 CNAME mta-STS.gw.example.org."},
	{"www.gw.example.org.", "ANY", "NOERROR aa\nan www.gw.example.org. 3600 CNAME mta-STS.gw.example.org."},
	{"www.gw.example.org.", "AAAA", "NOERROR aa\nan www.gw.example.org. 3600 CNAME mta-STS.gw.example.org.\nns " + soaLine},
	{"mail.gw.example.org.", "MX", "NOERROR aa\nan mail.gw.example.org. 3600 CNAME gw.example.org.\nan gw.example.org. 60 MX 10 gw1.gw.example.org.\n" +
		"an gw.example.org. 60 MX 20 gw2.gw.example.org.\nan gw.example.org. 60 MX 100 old.example.net.\n" + glueLines},
	{"out.gw.example.org.", "A", "NOERROR aa\nan out.gw.example.org. 3600 CNAME www.example.net."},
	{"dead.gw.example.org.", "A", "NXDOMAIN aa\nan dead.gw.example.org. 3600 CNAME nowhere.gw.example.org.\nns " + soaLine},
	{"loop.gw.example.org.", "A", "NOERROR aa" + strings.Repeat("\nan loop.gw.example.org. 3600 CNAME loop.gw.example.org.", maxChain)},
	{"gone.gw.example.org.", "A", "NOERROR aa\nan gone.gw.example.org. 3600 CNAME x.lab.gw.example.org.\n" + labReferral},

	// Delegations.
	{"lab.gw.example.org.", "A", "NOERROR\n" + labReferral},
	{"lab.gw.example.org.", "NS", "NOERROR\n" + labReferral},
	{"ns.lab.gw.example.org.", "A", "NOERROR\n" + labReferral},
	{"x.deep.lab.gw.example.org.", "A", "NOERROR\n" + labReferral},
	{"A.b.Lab.gw.example.org.", "ANY", "NOERROR\n" + labReferral},
	{"lab.gw.example.org.", "DS", "NOERROR aa\nan lab.gw.example.org. 3600 DS 1 13 2 00FF"},
	{"x.lab.gw.example.org.", "DS", "NOERROR\n" + labReferral},
	{"_acme-challenge.gw2.gw.example.org.", "TXT", "NOERROR\nns _acme-challenge.gw2.gw.example.org. 3600 NS gw2.gw.example.org.\n" +
		"ar gw2.gw.example.org. 300 A 192.0.2.2\nar gw2.gw.example.org. 300 AAAA 2001:db8::2"},
	{"_acme-challenge.gw2.gw.example.org.", "DS", "NOERROR aa\nns " + soaLine},

	// What is delegated to this very server, with and without a challenge.
	{"_acme-challenge.gw1.gw.example.org.", "TXT", "NOERROR aa\nns " + childSOA},
	{"_acme-challenge.gw1.gw.example.org.", "NS", "NOERROR aa\nan _acme-challenge.gw1.gw.example.org. 3600 NS gw1.gw.example.org.\n" +
		"ar gw1.gw.example.org. 200 A 192.0.2.1\nar gw1.gw.example.org. 200 A 192.0.2.11\nar gw1.gw.example.org. 300 AAAA 2001:db8::1"},
	{"_acme-challenge.gw1.gw.example.org.", "SOA", "NOERROR aa\nan " + strings.Replace(childSOA, " 60 SOA", " 3600 SOA", 1)},
	{"_acme-challenge.gw1.gw.example.org.", "DS", "NOERROR aa\nns " + soaLine},
	{"x._acme-challenge.gw1.gw.example.org.", "TXT", "NXDOMAIN aa\nns " + childSOA},
}

const (
	glueLines = "ar gw1.gw.example.org. 200 A 192.0.2.1\nar gw1.gw.example.org. 200 A 192.0.2.11\nar gw1.gw.example.org. 300 AAAA 2001:db8::1\n" +
		"ar gw2.gw.example.org. 300 A 192.0.2.2\nar gw2.gw.example.org. 300 AAAA 2001:db8::2"
	labReferral = "ns lab.gw.example.org. 3600 NS ns.lab.gw.example.org.\nns lab.gw.example.org. 3600 NS ns.example.net.\nar ns.lab.gw.example.org. 3600 A 192.0.2.53"
	childSOA    = "_acme-challenge.gw1.gw.example.org. 60 SOA gw1.gw.example.org. post\\.master.example.org. 7 14400 3600 604800 60"
)

func askType(name, qtype string) *dns.Msg {
	q := question(name, qtype)
	if q.Question[0].Qtype == 0 {
		fmt.Sscanf(qtype, "TYPE%d", &q.Question[0].Qtype)
	}
	return q
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	z := fullZone(t)
	if err := z.Check(); err != nil {
		t.Fatal(err)
	}
	addr := serve(t, handler(t, Options{Source: sourceOf(z), Self: "GW1.gw.example.org"}))
	for _, tc := range answers {
		for _, network := range []string{"udp", "tcp"} {
			q := askType(tc.name, tc.qtype)
			m := ask(t, network, addr, q)
			if got := text(m); got != tc.want {
				t.Errorf("%s %s over %s\n%s\nwant\n%s", tc.name, tc.qtype, network, got, tc.want)
			}
			if len(m.Question) != 1 || m.Question[0] != q.Question[0] {
				t.Errorf("%s %s: question came back as %v", tc.name, tc.qtype, m.Question)
			}
		}
	}
}

func TestChallenges(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 300)
	z := fullZone(t)
	z.Records = append(z.Records, records(t, `_acme-challenge.gw.example.org. 300 IN TXT "static"`,
		`_acme-challenge.www.gw.example.org. 300 IN CNAME elsewhere.example.net.`)...)
	c := challenges{
		"_acme-challenge.gw1.gw.example.org.":   {"one", "two"},
		"_acme-challenge.gw2.gw.example.org.":   {"moved"},
		"_acme-challenge.gw.example.org.":       {"apex"},
		"_acme-challenge.new.gw.example.org.":   {`back\slash`, long},
		"_acme-challenge.www.gw.example.org.":   {"ours"},
		"_acme-challenge.out.side.example.org.": {"never"},
	}
	self := serve(t, handler(t, Options{Source: sourceOf(z), Self: "gw1.gw.example.org.", Challenges: c}))
	other := serve(t, handler(t, Options{Source: sourceOf(z), Challenges: c}))
	for _, tc := range []struct{ name, qtype, want string }{
		{"_Acme-challenge.gw1.gw.example.org.", "TXT", "NOERROR aa\nan _Acme-challenge.gw1.gw.example.org. 0 TXT \"one\"\nan _Acme-challenge.gw1.gw.example.org. 0 TXT \"two\""},
		{"_acme-challenge.gw1.gw.example.org.", "CAA", "NOERROR aa\nns " + childSOA},
		{"_acme-challenge.gw1.gw.example.org.", "ANY", "NOERROR aa\nan _acme-challenge.gw1.gw.example.org. 3600 HINFO \"RFC8482\" \"\""},
		// Delegated to another host, but served here: with authority.
		{"_acme-challenge.gw2.gw.example.org.", "TXT", "NOERROR aa\nan _acme-challenge.gw2.gw.example.org. 0 TXT \"moved\""},
		{"_acme-challenge.gw2.gw.example.org.", "A", "NOERROR aa\nns " + strings.ReplaceAll(childSOA, "gw1", "gw2")},
		// One set has one TTL.
		{"_acme-challenge.gw.example.org.", "TXT", "NOERROR aa\nan _acme-challenge.gw.example.org. 0 TXT \"apex\"\nan _acme-challenge.gw.example.org. 0 TXT \"static\""},
		{"_acme-challenge.new.gw.example.org.", "TXT", "NOERROR aa\nan _acme-challenge.new.gw.example.org. 0 TXT \"back\\\\slash\"\n" +
			"an _acme-challenge.new.gw.example.org. 0 TXT \"" + long[:255] + "\" \"" + long[255:] + "\""},
		{"_acme-challenge.new.gw.example.org.", "A", "NOERROR aa\nns " + soaLine},
		{"new.gw.example.org.", "A", "NOERROR aa\nns " + soaLine},
		{"newer.gw.example.org.", "A", "NXDOMAIN aa\nns " + soaLine},
		{"_acme-challenge.www.gw.example.org.", "TXT", "NOERROR aa\nan _acme-challenge.www.gw.example.org. 0 TXT \"ours\""},
		{"_acme-challenge.out.side.example.org.", "TXT", "REFUSED"},
	} {
		for _, addr := range []string{self, other} {
			if got := text(ask(t, "tcp", addr, question(tc.name, tc.qtype))); got != tc.want {
				t.Errorf("%s %s\n%s\nwant\n%s", tc.name, tc.qtype, got, tc.want)
			}
		}
	}
}

// What was at the name before is there again after the challenge.
func TestChallengeEnds(t *testing.T) {
	t.Parallel()
	const name = "_acme-challenge.gw.example.org."
	z := twoHosts()
	z.Records = records(t, name+` 300 IN TXT "static"`)
	c := challenges{name: {"value"}}
	h := handler(t, Options{Source: sourceOf(z), Challenges: c})
	for _, want := range []string{
		"NOERROR aa\nan " + name + " 0 TXT \"value\"\nan " + name + " 0 TXT \"static\"",
		"NOERROR aa\nan " + name + " 300 TXT \"static\"",
	} {
		if m, _ := h.reply(question(name, "TXT"), cookie{}); text(m) != want {
			t.Errorf("%s\nwant\n%s", text(m), want)
		}
		delete(c, name)
	}
}

func TestRejections(t *testing.T) {
	t.Parallel()
	addr := serve(t, handler(t, Options{Source: sourceOf(twoHosts()), NSID: "gw1", Self: "gw1.gw.example.org."}))
	edit := func(f func(q *dns.Msg)) *dns.Msg {
		q := question("gw.example.org.", "MX")
		f(q)
		return q
	}
	opt := func(q *dns.Msg, f func(o *dns.OPT)) {
		o := &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}
		o.SetUDPSize(1400)
		if f != nil {
			f(o)
		}
		q.Extra = append(q.Extra, o)
	}
	mx := "NOERROR aa\nan gw.example.org. 60 MX 10 gw1.gw.example.org.\nan gw.example.org. 60 MX 20 gw2.gw.example.org.\n" + addrLines
	for _, tc := range []struct {
		name string
		q    *dns.Msg
		want string
	}{
		{"rd and cd come back, ad, ra and z do not", edit(func(q *dns.Msg) {
			q.RecursionDesired, q.CheckingDisabled, q.AuthenticatedData, q.RecursionAvailable, q.Zero = true, true, true, true, true
		}), strings.Replace(mx, " aa", " aa rd cd", 1)},
		{"AXFR", edit(func(q *dns.Msg) { q.Question[0].Qtype = dns.TypeAXFR }), "REFUSED"},
		{"IXFR", edit(func(q *dns.Msg) { q.Question[0].Qtype = dns.TypeIXFR }), "REFUSED"},
		{"NOTIFY", edit(func(q *dns.Msg) { q.Opcode = dns.OpcodeNotify }), "NOTIMP"},
		{"UPDATE", edit(func(q *dns.Msg) { q.Opcode = dns.OpcodeUpdate }), "NOTIMP"},
		{"opcode 15", edit(func(q *dns.Msg) { q.Opcode = 15 }), "NOTIMP"},
		{"class CH", edit(func(q *dns.Msg) { q.Question[0].Qclass = dns.ClassCHAOS }), "REFUSED"},
		{"class ANY", edit(func(q *dns.Msg) { q.Question[0].Qclass = dns.ClassANY }), "REFUSED"},
		{"no question", edit(func(q *dns.Msg) { q.Question = nil }), "FORMERR"},
		{"two questions", edit(func(q *dns.Msg) { q.Question = append(q.Question, q.Question[0]) }), "FORMERR"},
		{"EDNS", edit(func(q *dns.Msg) { opt(q, nil) }), mx + "\nar OPT ttl=00000000 size=1232 []"},
		{"EDNS with a small size", edit(func(q *dns.Msg) { opt(q, func(o *dns.OPT) { o.SetUDPSize(100) }) }), mx + "\nar OPT ttl=00000000 size=512 []"},
		{"DO and Z", edit(func(q *dns.Msg) { opt(q, func(o *dns.OPT) { o.Hdr.Ttl = 0xffff }) }), mx + "\nar OPT ttl=00008000 size=1232 []"},
		{"Z alone", edit(func(q *dns.Msg) { opt(q, func(o *dns.OPT) { o.Hdr.Ttl = 0x7fff }) }), mx + "\nar OPT ttl=00000000 size=1232 []"},
		{"Z in a refusal", edit(func(q *dns.Msg) {
			q.Question[0].Name = "example.com."
			opt(q, func(o *dns.OPT) { o.Hdr.Ttl = 0x7fff })
		}), "REFUSED\nar OPT ttl=00000000 size=1232 []"},
		{"NSID, no DO", edit(func(q *dns.Msg) {
			opt(q, func(o *dns.OPT) { o.Option = []dns.EDNS0{&dns.EDNS0_NSID{Code: dns.EDNS0NSID}} })
		}), mx + "\nar OPT ttl=00000000 size=1232 [677731]"},
		{"unknown options and cookies", edit(func(q *dns.Msg) {
			opt(q, func(o *dns.OPT) {
				o.Option = []dns.EDNS0{&dns.EDNS0_LOCAL{Code: 100, Data: []byte("x")}, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0011223344556677"}}
			})
		}), mx + "\nar OPT ttl=00000000 size=1232 []"},
		{"two OPT", edit(func(q *dns.Msg) { opt(q, nil); opt(q, nil) }), "FORMERR\nar OPT ttl=00000000 size=1232 []"},
		{"EDNS version 1 (BADVERS is BADSIG by number)", edit(func(q *dns.Msg) { opt(q, func(o *dns.OPT) { o.SetVersion(1) }) }), "BADSIG\nar OPT ttl=01000000 size=0 []"},
	} {
		for _, network := range []string{"udp", "tcp"} {
			t.Run(network+" "+tc.name, func(t *testing.T) {
				c := dns.Client{Net: network}
				m, _, err := c.Exchange(tc.q, addr)
				if err != nil {
					t.Fatal(err)
				}
				if m.Opcode != tc.q.Opcode {
					t.Errorf("opcode %d", m.Opcode)
				}
				if got := text(m); got != tc.want {
					t.Errorf("%s\nwant\n%s", got, tc.want)
				}
			})
		}
	}
	silent := serve(t, handler(t, Options{Source: sourceOf(twoHosts())}))
	q := edit(func(q *dns.Msg) {
		opt(q, func(o *dns.OPT) { o.Option = []dns.EDNS0{&dns.EDNS0_NSID{Code: dns.EDNS0NSID}} })
	})
	if o := ask(t, "udp", silent, q).IsEdns0(); o == nil || len(o.Option) != 0 {
		t.Errorf("NSID that is not configured: %v", o)
	}
}

// Answers fit: additional addresses are left out silently, anything else sets TC,
// and TCP has it all.
func TestSizes(t *testing.T) {
	t.Parallel()
	z := &Zone{Name: "gw.example.org."}
	for i := range 12 {
		z.Hosts = append(z.Hosts, Host{Name: fmt.Sprintf("gateway-%02d.gw.example.org.", i), Weight: 1, NameServer: i < 2,
			V4: addrs(fmt.Sprintf("192.0.2.%d", i)), V6: addrs(fmt.Sprintf("2001:db8::%d", i))})
	}
	for i := range 40 {
		z.Records = append(z.Records, records(t, fmt.Sprintf("big.gw.example.org. 300 IN TXT \"%02d %s\"", i, strings.Repeat("y", 60)),
			fmt.Sprintf("lab.gw.example.org. 300 IN NS ns%d.lab.gw.example.org.", i),
			fmt.Sprintf("ns%d.lab.gw.example.org. 300 IN A 192.0.2.%d", i, i))...)
	}
	if err := z.Check(); err != nil {
		t.Fatal(err)
	}
	addr := serve(t, handler(t, Options{Source: sourceOf(z)}))
	for _, tc := range []struct {
		name, qtype string
		edns        uint16
		max         int
		tc          bool
		answers     int // -1: fewer than all
	}{
		{"gw.example.org.", "MX", 0, 512, false, 12},
		{"gw.example.org.", "MX", 600, 600, false, 12},
		{"gw.example.org.", "MX", 4096, 1232, false, 12},
		{"big.gw.example.org.", "TXT", 0, 512, true, -1},
		{"big.gw.example.org.", "TXT", 65535, 1232, true, -1},
		{"lab.gw.example.org.", "A", 1232, 1232, true, 0},
	} {
		q := question(tc.name, tc.qtype)
		if tc.edns > 0 {
			q.SetEdns0(tc.edns, false)
		}
		c := dns.Client{Net: "udp", UDPSize: 65535}
		conn, err := c.Dial(addr)
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.WriteMsg(q); err != nil {
			t.Fatal(err)
		}
		conn.UDPSize = 65535
		wire, err := conn.ReadMsgHeader(nil)
		conn.Close()
		if err != nil {
			t.Fatal(err)
		}
		m := new(dns.Msg)
		if err := m.Unpack(wire); err != nil {
			t.Fatal(err)
		}
		full := ask(t, "tcp", addr, q)
		t.Logf("%s %s, EDNS %d: %d octets, %d of %d additional, tc %v", tc.name, tc.qtype, tc.edns, len(wire), len(m.Extra), len(full.Extra), m.Truncated)
		if len(wire) > tc.max || m.Truncated != tc.tc || full.Truncated {
			t.Errorf("%s %s, EDNS %d: %d octets, tc %v, over TCP %v", tc.name, tc.qtype, tc.edns, len(wire), m.Truncated, full.Truncated)
		}
		if tc.answers >= 0 && len(m.Answer) != tc.answers || tc.answers < 0 && len(m.Answer) >= len(full.Answer) {
			t.Errorf("%s %s, EDNS %d: %d answers of %d", tc.name, tc.qtype, tc.edns, len(m.Answer), len(full.Answer))
		}
		if (m.IsEdns0() != nil) != (tc.edns > 0) {
			t.Errorf("%s %s, EDNS %d: %v", tc.name, tc.qtype, tc.edns, m.IsEdns0())
		}
		if tc.qtype == "MX" && (len(full.Extra) < 24 || len(m.Extra) == 0 && tc.edns == 4096) {
			t.Errorf("%d additional, %d over TCP", len(m.Extra), len(full.Extra))
		}
	}
}
