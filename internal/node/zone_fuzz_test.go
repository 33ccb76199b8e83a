package node

import (
	"encoding/json"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/coredns/coredns/plugin/test"
	"github.com/miekg/dns"
	"msgw/dnsplugin/plugintest"

	"msgw/dnsplugin"
	"msgw/internal/health"
	"msgw/raftstore"
)

// zoneSource is a dnsplugin.Source of one zone.
type zoneSource struct{ z *dnsplugin.Zone }

func (s zoneSource) Zone() *dnsplugin.Zone { return s.z }

// FuzzZone builds the zone of any settings that the store accepts, with one record more, in
// any state of the hosts, and asks for everything in it. Nothing that was accepted may be
// left out, and every mail host is in every MX answer.
func FuzzZone(f *testing.F) {
	f.Add([]byte(`{}`), "www A 192.0.2.80", uint8(0))
	f.Add([]byte(`{"name_servers":[{"name":"ns1.msgw.example.com","site":"msgw1"},{"name":"ns.example.net"}],"apex":["sites"],"tlsa":true}`), `@ TXT "v=spf1 -all"`, uint8(1))
	f.Add([]byte(`{"caa":{"issue":["auto","example.net"],"deny_wildcards":true,"iodef":"mailto:a@example.com","accounts":true},"tls_reports":["mailto:a@example.com"]}`), "sub NS ns.sub", uint8(2))
	f.Add([]byte(`{"mta_sts":{"mode":"testing","max_age":300},"exchanges":[{"host":"old.msgw.example.com","weight":3,"addresses":["192.0.2.7","2001:db8::7"]},{"host":"gw.example.net","weight":0}]}`), "a CNAME b", uint8(255))
	f.Add([]byte(`{"records":["sub.msgw.example.com.\t3600\tIN\tNS\tns.example.net."]}`), "sub DS 1 13 2 "+strings.Repeat("ab", 32), uint8(3))
	f.Add([]byte(`{"records":["a.msgw.example.com.\t3600\tIN\tCNAME\tb.msgw.example.com.","b.msgw.example.com.\t5\tIN\tCNAME\ta.msgw.example.com."],"mta_sts":{"mode":"none"}}`), "_25._tcp.msgw1 TLSA 3 1 1 "+strings.Repeat("ab", 32), uint8(9))
	f.Fuzz(func(t *testing.T, settings []byte, record string, knobs uint8) {
		var c raftstore.Content
		if err := json.Unmarshal(settings, &c); err != nil {
			return
		}
		if _, text, err := raftstore.ParseRecord("msgw.example.com", record); err == nil {
			c.Records = append(c.Records, text)
		}
		serveAll(t, c, knobs)
	})
}

// TestZones does what FuzzZone does with settings that were drawn, most of which are accepted.
func TestZones(t *testing.T) {
	t.Parallel()
	names := []string{"@", "www", "sub", "ns.sub", "x.y.sub", "msgw1", "_tcp.msgw1", "_25._tcp.msgw1", "_acme-challenge.msgw1", "mta-sts", "_mta-sts", "_tls", "old", "ns1"}
	data := []string{"A 192.0.2.80", "AAAA 2001:db8::80", "TXT x", "CNAME www", "NS ns.sub", "NS ns.example.net.", "MX 10 www", "DS 1 13 2 " + strings.Repeat("ab", 32),
		"CAA 0 issue example.net", "TLSA 3 1 1 " + strings.Repeat("ab", 32), "SRV 1 2 3 www", "HTTPS 1 . alpn=h2"}
	hosts := []string{"old.msgw.example.com", "ns1.msgw.example.com", "sub.msgw.example.com", "gw.example.net", "mx2.example.net", "msgw1.msgw.example.com"}
	seed, accepted := uint64(1), 0
	for ; seed <= 1500; seed++ {
		r := rand.New(rand.NewPCG(seed, 7))
		pick := func(list []string) string { return list[r.IntN(len(list))] }
		var c raftstore.Content
		for range r.IntN(5) {
			_, text, err := raftstore.ParseRecord("msgw.example.com", pick(names)+" "+pick(data))
			if err != nil {
				t.Fatal(err)
			}
			c.Records = append(c.Records, text)
		}
		if r.IntN(3) == 0 {
			c.Exchanges = append(c.Exchanges, raftstore.Exchange{Host: pick(hosts), Weight: uint32(r.IntN(4)), Addresses: []string{"192.0.2.7"}})
		}
		if r.IntN(3) == 0 {
			c.NameServers = append(c.NameServers, raftstore.NameServer{Name: pick(hosts), Site: pick([]string{"", "msgw1", "msgw2"})})
		}
		if r.IntN(3) == 0 {
			c.MTASTS.Mode = raftstore.STSTesting
		}
		if r.IntN(3) == 0 {
			c.TLSReports, c.Apex = []string{"mailto:a@example.com"}, []string{raftstore.ApexSites}
		}
		c.TLSA = r.IntN(3) == 0
		if serveAll(t, c, uint8(r.Uint32())) {
			accepted++
		}
		if t.Failed() {
			t.Fatalf("seed %d: %+v", seed, c)
		}
	}
	if accepted < 250 {
		t.Errorf("%d of %d settings are accepted: too few to say anything", accepted, seed-1)
	}
}

// serveAll builds and asks the zone of settings, and returns whether the store accepts them.
func serveAll(t *testing.T, c raftstore.Content, knobs uint8) bool {
	t.Helper()
	state := zoneOf(c)
	if knobs&1 != 0 {
		state.Zone.MXMode = "rank"
	}
	if raftstore.CheckContent(state) != nil {
		return false
	}
	var serves map[string]served
	if key := strings.Repeat("0a", 32); knobs&2 != 0 {
		serves = map[string]served{"msgw1": {Keys: []string{key}, Account: "https://ca.example/1"}, "msgw2": {Account: "https://ca.example/2", Policy: true}}
	}
	verdicts := []health.Verdict{{Name: "msgw1", State: health.Up}, {Name: "msgw2", State: health.Drained}}
	if knobs&4 != 0 {
		verdicts[0].State = health.Down
	}
	for _, e := range c.Exchanges {
		verdicts = append(verdicts, health.Verdict{Name: e.Host, State: health.Down})
	}
	s := buildZone(state, serves, verdicts, knobs&8 == 0, knobs&16 == 0)
	if err := s.zone.Check(); err != nil {
		t.Fatalf("accepted, but cannot be served: %v\n%+v", err, c)
	}
	if len(s.zone.Hosts) != 2+len(c.Exchanges) || len(s.mx()) != len(s.zone.Hosts) {
		t.Errorf("%d hosts, %d explained, of 2 sites and %d exchanges", len(s.zone.Hosts), len(s.mx()), len(c.Exchanges))
	}
	h, err := dnsplugin.New(dnsplugin.Options{Source: zoneSource{s.zone}, Self: "msgw1.msgw.example.com.", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	askAll(t, h, s)
	return true
}

// askAll asks for every name of a zone, and expects every record that was accepted.
func askAll(t *testing.T, h *dnsplugin.Handler, s *snapshot) {
	t.Helper()
	ask := func(name string, qtype uint16) *dns.Msg {
		w := &plugintest.Recorder{ResponseWriter: test.ResponseWriter{TCP: true}}
		if _, err := h.ServeDNS(t.Context(), w, new(dns.Msg).SetQuestion(name, qtype)); err != nil || w.Msg == nil {
			t.Fatalf("%s %s: %v", name, dns.Type(qtype), err)
		}
		if rcode := w.Msg.Rcode; rcode != dns.RcodeSuccess && rcode != dns.RcodeNameError && (rcode != dns.RcodeRefused || dns.IsSubDomain(s.zone.Name, name)) {
			t.Errorf("%s %s: %s", name, dns.Type(qtype), dns.RcodeToString[rcode])
		}
		return w.Msg
	}
	for range 3 { // each is a draw
		if m := ask(s.zone.Name, dns.TypeMX); len(m.Answer) != len(s.zone.Hosts) || slices.ContainsFunc(s.zone.Hosts, func(h dnsplugin.Host) bool {
			return !slices.ContainsFunc(m.Answer, func(rr dns.RR) bool { return rr.(*dns.MX).Mx == h.Name })
		}) {
			t.Errorf("MX answer without a host: %v", m.Answer)
		}
	}
	if m := ask(s.zone.Name, dns.TypeNS); len(m.Answer) == 0 || len(s.zone.NameServers) > 0 && len(m.Answer) != len(s.zone.NameServers) {
		t.Errorf("NS %v", m.Answer)
	}
	names := []string{s.zone.Name, "none." + s.zone.Name, "_tcp.msgw1." + s.zone.Name}
	for _, h := range s.zone.Hosts {
		names = append(names, h.Name)
	}
	for _, rr := range s.zone.Records {
		name := rr.Header().Name
		names = append(names, name)
		m := ask(name, rr.Header().Rrtype)
		sent := slices.Concat(m.Answer, m.Ns, m.Extra)
		if !m.Truncated && !slices.ContainsFunc(sent, func(o dns.RR) bool { return dns.IsDuplicate(o, rr) }) && !referred(m) {
			t.Errorf("%s is not served: %v", rr, m)
		}
	}
	for _, name := range names {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeMX, dns.TypeNS, dns.TypeSOA, dns.TypeTXT, dns.TypeCAA, dns.TypeTLSA, dns.TypeDS, dns.TypeANY} {
			ask(name, qtype)
		}
	}
}

// referred reports whether m hands the client on: what is below a delegation is glue.
func referred(m *dns.Msg) bool { return !m.Authoritative && len(m.Ns) > 0 }
