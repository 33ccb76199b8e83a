package dnsplugin

import (
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// Each fault is reported, and the mail hosts are answered all the same.
func TestFaults(t *testing.T) {
	t.Parallel()
	record := func(line string) func(*Zone) {
		return func(z *Zone) { z.Records = append(z.Records, records(t, line)...) }
	}
	for _, tc := range []struct {
		edit func(*Zone)
		want string
	}{
		{func(z *Zone) { z.Contact = "nobody" }, `contact "nobody" is not a mailbox`},
		{func(z *Zone) { z.Contact = strings.Repeat("x", 64) + "@example.org" }, "cannot be written as a domain name"},
		{func(z *Zone) { z.Hosts = append(z.Hosts, z.Hosts[0]) }, "1 of 3 hosts are left out"},
		{func(z *Zone) { z.Hosts = append(z.Hosts, Host{Name: "a..b."}) }, "1 of 3 hosts are left out"},
		{func(z *Zone) { z.Hosts = append(z.Hosts, Host{Name: "gw3.gw.example.org."}) }, "host gw3.gw.example.org. has no address"},
		{func(z *Zone) { z.Hosts[0].V4 = addrs("2001:db8::1") }, "not of the family"},
		{func(z *Zone) { z.Hosts[0].V6 = addrs("::ffff:192.0.2.1") }, "not of the family"},
		{func(z *Zone) { z.Hosts[0].V6 = addrs("fe80::1%eth0") }, "not of the family"},
		{func(z *Zone) { z.Hosts[0].NameServer, z.Hosts[1].NameServer = false, false }, "no host is a name server"},
		{func(z *Zone) { z.Records = []dns.RR{nil} }, "record 0 is nil"},
		{func(z *Zone) { z.Records = []dns.RR{&dns.TXT{Hdr: header("x", dns.TypeTXT, 1)}} }, "must be fully qualified"},
		{func(z *Zone) { z.Records = []dns.RR{&dns.A{Hdr: header("x.gw.example.org.", dns.TypeA, 1)}} }, "has no data"},
		{record("gw.example.org. 60 IN MX 10 gw1.gw.example.org."), "follow from its hosts"},
		{record("gw.example.org. 60 IN NS gw1.gw.example.org."), "follow from its hosts"},
		{record("gw.example.org. 60 IN CNAME x.example.org."), "cannot be an alias"},
		{record("a.gw.example.org. 60 IN SOA a. b. 1 2 3 4 5"), "SOA is made by the server"},
		{record("a.gw.example.org. 60 IN DNAME example.net."), "DNAME is not supported"},
		{record("a.gw.example.org. 60 IN NSEC b.gw.example.org. A"), "signatures cannot be static"},
		{record("a.gw.example.org. 60 CH TXT x"), "class is not IN"},
		{record(`a.gw.example.org. 60 IN TYPE250 \# 1 00`), "not a record of a zone"},
		{record("a.example.net. 60 IN A 192.0.2.1"), "it is outside of gw.example.org."},
		{record("*.gw.example.org. 60 IN A 192.0.2.1"), "wildcards are not supported"},
		{record("gw1.gw.example.org. 60 IN CNAME x.example.org."), "is an alias and has other records"},
		{func(z *Zone) {
			z.Records = records(t, "a.gw.example.org. 60 IN CNAME x.", "a.gw.example.org. 60 IN CNAME y.")
		}, "has 2 aliases"},
		{func(z *Zone) {
			z.Records = records(t, "a.gw.example.org. 60 IN NS ns.example.net.", "b.a.gw.example.org. 60 IN TXT x")
		}, "hidden by the delegation of a.gw.example.org."},
		{func(z *Zone) {
			for i := range 30000 { // what is bounded is the work, too
				z.Records = append(z.Records, &dns.TXT{Hdr: header("a.gw.example.org.", dns.TypeTXT, 1), Txt: []string{strconv.Itoa(i)}})
			}
		}, "a.gw.example.org. has more than 100 records of one type"},
	} {
		z := twoHosts()
		tc.edit(z)
		if err := z.Check(); err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("got %v, want %q", err, tc.want)
		}
		var said logBuffer
		h := handler(t, Options{Source: sourceOf(z), Log: slog.New(slog.NewTextHandler(&said, nil))})
		m, _ := h.reply(question("gw.example.org.", "MX"), cookie{})
		if len(m.Answer) < 2 {
			t.Errorf("%s: answer is\n%s", tc.want, text(m))
		}
		if _, err := m.Pack(); err != nil {
			t.Errorf("%s: %v", tc.want, err)
		}
		if n := strings.Count(said.String(), "level=WARN"); n != 1 {
			t.Errorf("%s: %d warnings", tc.want, n)
		}
	}
	if err := (&Zone{Name: "gw.example.org."}).Check(); err == nil || !strings.Contains(err.Error(), "no mail host") {
		t.Error(err)
	}
	if err := twoHosts().Check(); err != nil {
		t.Error(err)
	}
}

// Many faults are counted, not listed, and told once however many versions have them.
func TestManyFaults(t *testing.T) {
	t.Parallel()
	bad := func() *Zone {
		z := twoHosts()
		for range 30000 {
			z.Records = append(z.Records, nil)
		}
		return z
	}
	err := bad().Check()
	if err == nil || strings.Count(err.Error(), "is nil") != maxFaults || !strings.HasSuffix(err.Error(), "and 29980 more") {
		t.Errorf("got %v", err)
	}
	var said logBuffer
	src := sourceOf(bad())
	h := handler(t, Options{Source: src, Log: slog.New(slog.NewTextHandler(&said, nil))})
	for _, z := range []*Zone{bad(), bad(), twoHosts(), bad()} {
		h.reply(question("gw.example.org.", "MX"), cookie{})
		src.p.Store(z)
	}
	h.reply(question("gw.example.org.", "MX"), cookie{})
	if n := strings.Count(said.String(), "level=WARN"); n != 2 {
		t.Errorf("%d warnings:\n%s", n, said.String())
	}
}

// A zone without a usable name or without hosts is no reason to fall over.
func TestUnusableZones(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		z    *Zone
		want string
	}{
		{nil, "SERVFAIL"},
		{&Zone{}, "SERVFAIL"},
		{&Zone{Name: "."}, "SERVFAIL"},
		{&Zone{Name: "a..b."}, "SERVFAIL"},
		{&Zone{Name: "GW.example.org"}, "NOERROR aa\nns gw.example.org. 60 SOA gw.example.org. hostmaster.gw.example.org. 0 14400 3600 604800 60"},
	} {
		h := handler(t, Options{Source: sourceOf(tc.z)})
		if m, _ := h.reply(question("gw.example.org.", "MX"), cookie{}); text(m) != tc.want {
			t.Errorf("%+v: %s", tc.z, text(m))
		}
		if h.Ready() == (tc.want == "SERVFAIL") {
			t.Errorf("%+v: ready %v", tc.z, h.Ready())
		}
	}
}

// A record the caller still holds is not the one that is served.
func TestRecordsAreCopied(t *testing.T) {
	t.Parallel()
	z := fullZone(t)
	h := handler(t, Options{Source: sourceOf(z)})
	before, _ := h.reply(question("gw.example.org.", "TXT"), cookie{})
	z.Records[0].(*dns.TXT).Txt[0] = "changed"
	after, _ := h.reply(question("gw.example.org.", "TXT"), cookie{})
	if text(before) != text(after) {
		t.Errorf("%s\nbecame\n%s", text(before), text(after))
	}
}

// Name servers of their own stand in the place of the hosts, with glue where they need it.
func TestNameServers(t *testing.T) {
	t.Parallel()
	z := twoHosts()
	z.NameServers = []NameServer{{Name: "NS1.example.net."}, {Name: "ns2.gw.example.org.", V4: []netip.Addr{netip.MustParseAddr("192.0.2.53")}, V6: []netip.Addr{netip.MustParseAddr("2001:db8::53")}},
		{Name: "gw1.gw.example.org."}}
	if err := z.Check(); err != nil {
		t.Error(err)
	}
	h := handler(t, Options{Source: sourceOf(z)})
	want := `NOERROR aa
an gw.example.org. 3600 NS ns1.example.net.
an gw.example.org. 3600 NS ns2.gw.example.org.
an gw.example.org. 3600 NS gw1.gw.example.org.
ar ns2.gw.example.org. 300 A 192.0.2.53
ar ns2.gw.example.org. 300 AAAA 2001:db8::53
ar gw1.gw.example.org. 300 A 192.0.2.1
ar gw1.gw.example.org. 300 AAAA 2001:db8::1`
	if m, _ := h.reply(question("gw.example.org.", "NS"), cookie{}); text(m) != want {
		t.Errorf("got\n%s\nwant\n%s", text(m), want)
	}
	if m, _ := h.reply(question("gw.example.org.", "SOA"), cookie{}); !strings.Contains(text(m), " SOA ns1.example.net. ") {
		t.Errorf("the SOA names another server: %s", text(m))
	}
	if m, _ := h.reply(question("gw.example.org.", "MX"), cookie{}); strings.Contains(text(m), "ns2") {
		t.Errorf("a name server takes mail: %s", text(m))
	}
	for _, bad := range []NameServer{{Name: "ns3.gw.example.org."}, {Name: "a..b."}, {Name: "ns4.gw.example.org.", V4: []netip.Addr{netip.MustParseAddr("2001:db8::1")}}} {
		z := twoHosts()
		z.NameServers = []NameServer{bad}
		if z.Check() == nil {
			t.Errorf("%+v has no fault", bad)
		}
	}
}
