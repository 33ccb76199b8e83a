package node

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"msgw/dnsplugin"
	"msgw/internal/health"

	"msgw/raftstore"
)

// zoneOf is a configuration with a site inside the zone and one outside.
func zoneOf(c raftstore.Content) *raftstore.State {
	return &raftstore.State{Revision: 7, Zone: raftstore.Zone{Name: "msgw.example.com", MXMode: "tier"}, Content: c,
		ACME: raftstore.ACME{Directory: "https://acme-v02.api.letsencrypt.org/directory"},
		Nodes: map[string]raftstore.Node{
			"msgw1": {Name: "msgw1", Role: raftstore.Site, Host: "msgw1.msgw.example.com", V4: []string{"192.0.2.1"}, V6: []string{"2001:db8::1"}, Weight: 1},
			"msgw2": {Name: "msgw2", Role: raftstore.Site, Host: "mx2.example.net", V4: []string{"198.51.100.1"}, Weight: 1},
			"wit":   {Name: "wit", Role: raftstore.Witness},
		}}
}

// published returns the records of a snapshot that settings made, in short form.
func published(s *snapshot) []string {
	var out []string
	for _, rr := range s.zone.Records {
		if rr.Header().Rrtype != dns.TypeNS { // the delegations of challenge names
			out = append(out, strings.ReplaceAll(rr.String(), "\t", " "))
		}
	}
	slices.Sort(out)
	return out
}

func TestContent(t *testing.T) {
	t.Parallel()
	key1, key2 := strings.Repeat("01", 32), strings.Repeat("02", 32)
	known := map[string]served{"msgw1": {Keys: []string{key1, key2}, Trusted: true, Account: "https://ca.example/acct/1", Policy: true, PolicyTrusted: true},
		"msgw2": {Keys: []string{key1}, Trusted: true, Account: "https://ca.example/acct/2", Policy: true, PolicyTrusted: true}}
	without := func(change func(s *served)) map[string]served {
		m := maps.Clone(known)
		s := m["msgw1"]
		change(&s)
		m["msgw1"] = s
		return m
	}
	auto := raftstore.CAA{Issue: []string{raftstore.CAAuto}}
	bound := raftstore.CAA{Issue: []string{raftstore.CAAuto, "example.org"}, Accounts: true}
	sts := raftstore.Content{MTASTS: raftstore.MTASTS{Mode: raftstore.STSEnforce}}
	for name, tc := range map[string]struct {
		content raftstore.Content
		serves  map[string]served
		want    []string
		notes   string // within; empty: none
	}{
		"nothing": {raftstore.Content{}, known, nil, ""},
		"apex":    {raftstore.Content{Apex: []string{raftstore.ApexSites}}, known, []string{"msgw.example.com. 300 IN A 192.0.2.1", "msgw.example.com. 300 IN A 198.51.100.1", "msgw.example.com. 300 IN AAAA 2001:db8::1"}, ""},
		"caa": {raftstore.Content{CAA: raftstore.CAA{Issue: []string{raftstore.CAAuto}, DenyWildcards: true, Iodef: "mailto:a@example.com"}}, nil,
			[]string{`msgw.example.com. 3600 IN CAA 0 iodef "mailto:a@example.com"`, `msgw.example.com. 3600 IN CAA 0 issue "letsencrypt.org; validationmethods=dns-01"`,
				`msgw.example.com. 3600 IN CAA 0 issuewild ";"`}, ""},
		"caa, bound to accounts": {raftstore.Content{CAA: bound}, known,
			[]string{`msgw.example.com. 3600 IN CAA 0 issue "example.org; validationmethods=dns-01"`,
				`msgw.example.com. 3600 IN CAA 0 issue "letsencrypt.org; validationmethods=dns-01; accounturi=https://ca.example/acct/1"`,
				`msgw.example.com. 3600 IN CAA 0 issue "letsencrypt.org; validationmethods=dns-01; accounturi=https://ca.example/acct/2"`}, ""},
		"caa, an account unknown": {raftstore.Content{CAA: bound}, without(func(s *served) { s.Account = "" }),
			[]string{`msgw.example.com. 3600 IN CAA 0 issue "example.org; validationmethods=dns-01"`, `msgw.example.com. 3600 IN CAA 0 issue "letsencrypt.org; validationmethods=dns-01"`},
			"the ACME account of msgw1 is not known"},
		"caa, an account that breaks the record": {raftstore.Content{CAA: raftstore.CAA{Issue: auto.Issue, Accounts: true}}, without(func(s *served) { s.Account = "https://x/;validationmethods=http-01" }),
			[]string{`msgw.example.com. 3600 IN CAA 0 issue "letsencrypt.org; validationmethods=dns-01"`}, "the ACME account of msgw1 is not known"},
		"caa, names proven over HTTP": {raftstore.Content{CAA: auto}, without(func(s *served) { s.Method = "http-01" }),
			[]string{`msgw.example.com. 3600 IN CAA 0 issue "letsencrypt.org; validationmethods=dns-01,http-01"`}, ""},
		"caa without the CA that is used": {raftstore.Content{CAA: raftstore.CAA{Issue: []string{"example.org"}}}, known,
			[]string{`msgw.example.com. 3600 IN CAA 0 issue "example.org; validationmethods=dns-01"`}, "CAA forbids letsencrypt.org, the CA of the ACME directory"},
		"tlsa": {raftstore.Content{TLSA: true}, known,
			[]string{"_25._tcp.msgw1.msgw.example.com. 300 IN TLSA 3 1 1 " + key1, "_25._tcp.msgw1.msgw.example.com. 300 IN TLSA 3 1 1 " + key2}, "no TLSA records for msgw2: its host name is outside the zone"},
		"tlsa, unknown": {raftstore.Content{TLSA: true}, nil, nil, "no TLSA records for msgw1: it is not known which keys it serves"},
		"reports": {raftstore.Content{TLSReports: []string{"mailto:a@example.com", "https://example.com/" + strings.Repeat("x", 180), "https://example.com/" + strings.Repeat("y", 180)}}, nil,
			[]string{`_smtp._tls.msgw.example.com. 3600 IN TXT "v=TLSRPTv1; rua=mailto:a@example.com,https://example.com/` + strings.Repeat("x", 180) + `,https://example.c" "om/` + strings.Repeat("y", 180) + `"`}, ""},
		"a record": {raftstore.Content{Records: []string{"www.msgw.example.com.\t60\tIN\tA\t192.0.2.80"}}, nil, []string{"www.msgw.example.com. 60 IN A 192.0.2.80"}, ""},
		"mta-sts": {sts, known, []string{"_mta-sts.msgw.example.com. 3600 IN TXT \"v=STSv1; id=" + stsPolicy(zoneOf(sts)).ID() + ";\"",
			"mta-sts.msgw.example.com. 300 IN A 192.0.2.1", "mta-sts.msgw.example.com. 300 IN A 198.51.100.1", "mta-sts.msgw.example.com. 300 IN AAAA 2001:db8::1"}, ""},
	} {
		s := buildZone(zoneOf(tc.content), tc.serves, nil, true, false)
		if got := published(s); !slices.Equal(got, tc.want) {
			t.Errorf("%s:\n%s\nwant\n%s", name, strings.Join(got, "\n"), strings.Join(tc.want, "\n"))
		}
		if got := strings.Join(s.notes, "\n"); !strings.Contains(got, tc.notes) || (tc.notes == "") != (got == "") {
			t.Errorf("%s: notes %q, want %q", name, got, tc.notes)
		}
		if err := s.zone.Check(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for want, serves := range map[string]map[string]served{
		"it is not known whether msgw1 serves the policy":                nil,
		"msgw1 does not serve the policy: listen.https is not set":       without(func(s *served) { s.Policy = false }),
		"msgw1 serves the policy with a certificate that senders do not": without(func(s *served) { s.PolicyTrusted = false }),
		"msgw1 is not known to serve a publicly trusted certificate; se": without(func(s *served) { s.Trusted = false }),
	} {
		if s := buildZone(zoneOf(sts), serves, nil, true, false); !strings.Contains(strings.Join(s.notes, "\n"), want) {
			t.Errorf("%q, want %q", s.notes, want)
		}
	}
	unknown := zoneOf(raftstore.Content{CAA: raftstore.CAA{Issue: []string{"example.org", raftstore.CAAuto}}})
	unknown.ACME.Directory = "https://ca.example.com/directory"
	if s := buildZone(unknown, nil, nil, true, false); len(published(s)) != 0 || !strings.Contains(strings.Join(s.notes, ""), `the CA of the ACME directory "https://ca.example.com/directory" is not known`) {
		t.Errorf("an ACME directory of nobody: %q, %q", published(s), s.notes)
	}
}

// Health changes preferences of exchanges, and neither the policy nor the name servers.
func TestContentAndHealth(t *testing.T) {
	t.Parallel()
	state := zoneOf(raftstore.Content{MTASTS: raftstore.MTASTS{Mode: raftstore.STSTesting, MaxAge: 300},
		NameServers: []raftstore.NameServer{{Name: "ns1.example.com"}, {Name: "ns2.msgw.example.com", Site: "msgw1"}},
		Exchanges:   []raftstore.Exchange{{Host: "old.msgw.example.com", Weight: 2, Addresses: []string{"192.0.2.7"}}, {Host: "gone.example.com", Weight: 2}}})
	well := buildZone(state, nil, nil, true, true)
	ill := buildZone(state, nil, []health.Verdict{{Name: "msgw1", State: health.Down}, {Name: "gone.example.com", State: health.Down}, {Name: "old.msgw.example.com", State: health.Up}}, true, true)
	if !slices.Equal(published(well), published(ill)) {
		t.Errorf("%q\n%q", published(well), published(ill))
	}
	if p := stsPolicy(state).Text(); p != "version: STSv1\r\nmode: testing\r\nmx: msgw1.msgw.example.com\r\nmx: mx2.example.net\r\nmx: gone.example.com\r\nmx: old.msgw.example.com\r\nmax_age: 300\r\n" {
		t.Errorf("%q", p)
	}
	var got []string
	for _, m := range ill.mx() {
		got = append(got, m.Host+" "+m.State+" "+m.Class)
		if m.External != (m.Node == "") || m.External != slices.Contains([]string{"gone.example.com", "old.msgw.example.com"}, m.Host) {
			t.Errorf("%+v", m)
		}
	}
	if want := []string{"msgw1.msgw.example.com down demoted", "mx2.example.net up preferred", "gone.example.com down demoted", "old.msgw.example.com up preferred"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if ns := ill.zone.NameServers; len(ns) != 2 || ns[0].Name != "ns1.example.com." || len(ns[1].V4) != 1 || len(ns[1].V6) != 1 {
		t.Errorf("%+v", ns)
	}
	if stale := buildZone(state, nil, []health.Verdict{{Name: "gone.example.com", State: health.Down}}, true, false); stale.zone.Hosts[2].State != dnsplugin.Up {
		t.Error("a stale verdict counts")
	}
}

// What a site said counts for an hour, and for a minute where it is about harm.
func TestToldServed(t *testing.T) {
	t.Parallel()
	key := strings.Repeat("ab", 32)
	var told toldServed
	told.note("msgw2", "", &served{Keys: []string{key}})
	if got := told.within(servedNear); len(got) != 1 || got["msgw2"].Keys[0] != key {
		t.Errorf("%+v", got)
	}
	told.note("msgw2", "", &served{Keys: []string{"abcd"}})
	if got := told.within(servedFor); len(got) != 0 {
		t.Errorf("a key that is none: %+v", got)
	}
	told.note("msgw2", "", &served{})
	told.note("msgw2", "", nil)
	if got := told.within(servedFor); len(got) != 0 {
		t.Errorf("an older version: %+v", got)
	}
	told.note("msgw2", "", &served{})
	at := told.last["msgw2"]
	at.at = at.at.Add(-2 * servedNear)
	told.last["msgw2"] = at
	if near, far := told.within(servedNear), told.within(servedFor); len(near) != 0 || len(far) != 1 {
		t.Errorf("after two minutes: %+v, %+v", near, far)
	}
}

// A machine that takes a site's place has keys of its own: those of the one before are not
// published for it.
func TestToldByAMachineThatWasReplaced(t *testing.T) {
	t.Parallel()
	state := zoneOf(raftstore.Content{TLSA: true})
	site := state.Nodes["msgw1"]
	site.SealTo = "old"
	state.Nodes["msgw1"] = site
	var told toldServed
	told.note("msgw1", "old", &served{Keys: []string{strings.Repeat("01", 32)}})
	if got := published(buildZone(state, told.within(servedFor), nil, true, false)); len(got) != 1 {
		t.Errorf("%q", got)
	}
	site.SealTo = "new"
	state.Nodes["msgw1"] = site
	if s := buildZone(state, told.within(servedFor), nil, true, false); len(published(s)) != 0 || !strings.Contains(strings.Join(s.notes, ""), "it is not known which keys it serves") {
		t.Errorf("%q, %q", published(s), s.notes)
	}
}

// A node that is restored alone keeps the name servers that it can have.
func TestKeepNameServers(t *testing.T) {
	t.Parallel()
	s := zoneOf(raftstore.Content{NameServers: []raftstore.NameServer{{Name: "ns1.msgw.example.com", Site: "msgw1"}, {Name: "ns2.msgw.example.com", Site: "msgw2"},
		{Name: "msgw1.msgw.example.com"}, {Name: "mx2.example.net"}, {Name: "old.msgw.example.com"}}})
	delete(s.Nodes, "msgw2")
	var got []string
	for _, ns := range keepNameServers(s) {
		got = append(got, ns.Name)
	}
	if want := []string{"ns1.msgw.example.com", "msgw1.msgw.example.com", "mx2.example.net"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if s.Content.NameServers = keepNameServers(s); raftstore.CheckContent(s) != nil || buildZone(s, nil, nil, true, false).zone.Check() != nil {
		t.Error("what is kept cannot be served")
	}
}

// enforce waits until every site has told lately that senders can check its certificate;
// what was set before may stay, whoever is away.
func TestEnforce(t *testing.T) {
	t.Parallel()
	n := &Node{id: &identity{Name: "wit"}}
	enforce := raftstore.Content{MTASTS: raftstore.MTASTS{Mode: raftstore.STSEnforce}}
	check := func(before raftstore.Content, want string) {
		t.Helper()
		if err := n.checkContent(zoneOf(before), enforce); (err == nil) != (want == "") || err != nil && !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	check(raftstore.Content{}, "served by msgw1, msgw2")
	n.told.note("msgw1", "", &served{Trusted: true})
	n.told.note("msgw2", "", &served{})
	check(raftstore.Content{}, "served by msgw2")
	check(enforce, "")
	n.told.note("msgw2", "", &served{Trusted: true})
	check(raftstore.Content{}, "")
	at := n.told.last["msgw1"]
	at.at = at.at.Add(-2 * servedNear)
	n.told.last["msgw1"] = at
	check(raftstore.Content{}, "served by msgw1")
}

// Neither CAA records nor another directory end the renewal of certificates, and a policy that
// is enforced needs those that there are.
func TestContentAndACME(t *testing.T) {
	t.Parallel()
	n := &Node{id: &identity{Name: "msgw1"}}
	caa := func(issue ...string) raftstore.Content { return raftstore.Content{CAA: raftstore.CAA{Issue: issue}} }
	text := func(err error) string {
		if err == nil {
			return ""
		}
		return err.Error()
	}
	for _, tc := range []struct {
		before, after raftstore.Content
		want          string
	}{
		{caa(), caa("example.org"), "forbids letsencrypt.org"}, {caa(), caa("example.org", "letsencrypt.org"), ""}, {caa(), caa("auto"), ""},
		{caa("example.org"), caa("example.org", "example.net"), ""}, // it does so already
	} {
		if got := text(n.checkContent(zoneOf(tc.before), tc.after)); tc.want == "" && got != "" || !strings.Contains(got, tc.want) {
			t.Errorf("%q after %q: %q, want %q", tc.after.CAA.Issue, tc.before.CAA.Issue, got, tc.want)
		}
	}
	enforce := raftstore.Content{MTASTS: raftstore.MTASTS{Mode: raftstore.STSEnforce}}
	for _, tc := range []struct {
		content   raftstore.Content
		directory string
		want      string
	}{
		{caa("letsencrypt.org"), "https://acme.zerossl.com/v2/DV90", "forbid sectigo.com"}, {caa("auto"), "https://acme.zerossl.com/v2/DV90", ""},
		{caa("letsencrypt.org"), "", ""}, {enforce, "", "enforce"}, {enforce, "https://acme.zerossl.com/v2/DV90", "enforce"}, {enforce, zoneOf(enforce).ACME.Directory, ""},
	} {
		if got := text(checkACME(zoneOf(tc.content), raftstore.ACME{Directory: tc.directory})); tc.want == "" && got != "" || !strings.Contains(got, tc.want) {
			t.Errorf("%q with %+v: %q, want %q", tc.directory, tc.content, got, tc.want)
		}
	}
}
