package node

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"msgw/dnsplugin"
	"msgw/internal/mtasts"
	"msgw/raftstore"
)

// TTLs in seconds of what settings add to the zone. TLSA is short, so that a key can be
// announced and taken into use within an hour.
const (
	ttlSettings  = 3600
	ttlAddresses = 300
	ttlTLSA      = 300
)

// addContent adds what operators put into the zone.
func (s *snapshot) addContent(state *raftstore.State, serves map[string]served) {
	c := state.Content
	for _, e := range c.SortedExchanges() {
		v4, v6 := families(e.Addresses)
		s.add(mailHost{name: e.Host, host: e.Host, weight: e.Weight}, dnsplugin.Host{Name: dns.Fqdn(e.Host), V4: v4, V6: v6, Weight: e.Weight})
	}
	for _, ns := range c.NameServers {
		site := state.Nodes[ns.Site] // of none: no addresses
		s.zone.NameServers = append(s.zone.NameServers, dnsplugin.NameServer{Name: dns.Fqdn(ns.Name), V4: addrs(site.V4), V6: addrs(site.V6)})
	}
	apex := c.Apex
	if len(apex) == 1 && apex[0] == raftstore.ApexSites {
		apex = siteAddresses(state)
	}
	s.addresses("", apex)
	s.caa(state, serves)
	if c.TLSA {
		s.tlsa(state, serves)
	}
	if c.MTASTS.Mode != "" {
		s.mtasts(state, serves)
	}
	if len(c.TLSReports) > 0 { // RFC 8460 section 3
		s.text("_smtp._tls", "v=TLSRPTv1; rua="+strings.Join(c.TLSReports, ","))
	}
	for _, text := range c.Records {
		rr, _, err := raftstore.ParseRecord(state.Zone.Name, text)
		if err != nil { // it was checked before it was replicated, by this version or another
			s.note("record %s: %v", text, err)
			continue
		}
		s.zone.Records = append(s.zone.Records, rr)
	}
}

func (s *snapshot) note(format string, args ...any) {
	s.notes = append(s.notes, fmt.Sprintf(format, args...))
}

// header is that of a record at a name below the apex, or at the apex without a name.
func (s *snapshot) header(name string, rrtype uint16, ttl uint32) dns.RR_Header {
	if name != "" {
		name += "."
	}
	return dns.RR_Header{Name: name + s.zone.Name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: ttl}
}

func (s *snapshot) addresses(name string, list []string) {
	v4, v6 := families(list)
	for _, a := range v4 {
		s.zone.Records = append(s.zone.Records, &dns.A{Hdr: s.header(name, dns.TypeA, ttlAddresses), A: a.AsSlice()})
	}
	for _, a := range v6 {
		s.zone.Records = append(s.zone.Records, &dns.AAAA{Hdr: s.header(name, dns.TypeAAAA, ttlAddresses), AAAA: a.AsSlice()})
	}
}

// text adds a TXT record, in strings of 255 octets (RFC 1035 section 3.3), which readers join.
func (s *snapshot) text(name, text string) {
	rr := &dns.TXT{Hdr: s.header(name, dns.TypeTXT, ttlSettings)}
	for len(text) > 255 {
		rr.Txt, text = append(rr.Txt, text[:255]), text[255:]
	}
	rr.Txt = append(rr.Txt, text)
	s.zone.Records = append(s.zone.Records, rr)
}

// directoryCAs are the domains in CAA records of CAs with an ACME directory, by its host.
var directoryCAs = map[string]string{
	"acme-v02.api.letsencrypt.org":         "letsencrypt.org",
	"acme-staging-v02.api.letsencrypt.org": "letsencrypt.org",
	"dv.acme-v02.api.pki.goog":             "pki.goog",
	"acme.zerossl.com":                     "sectigo.com",
}

// directoryCA is what stands for raftstore.CAAuto, or nothing if that is not known.
func directoryCA(a raftstore.ACME) string {
	host, _, _ := strings.Cut(strings.TrimPrefix(a.Directory, "https://"), "/")
	return directoryCAs[host]
}

// caa adds the CAA records (RFC 8659). They allow the ways by which the sites prove their names,
// and no other: where that is DNS-01 alone, nobody who takes over an address gets a certificate
// (RFC 8657 section 4).
func (s *snapshot) caa(state *raftstore.State, serves map[string]served) {
	c := state.Content.CAA
	var issue []string
	for _, ca := range c.Issue {
		if ca != raftstore.CAAuto {
			issue = append(issue, ca+"; validationmethods="+methods(state, serves))
			continue
		}
		if ca = directoryCA(state.ACME); ca == "" {
			// A set without the CA that is used would end renewal.
			s.note("no CAA records: the CA of the ACME directory %q is not known; name its domain instead of auto", state.ACME.Directory)
			return
		}
		for _, account := range s.accounts(state, serves) {
			issue = append(issue, ca+"; validationmethods="+methods(state, serves)+account)
		}
	}
	if ca := directoryCA(state.ACME); ca != "" && forbids(c, ca) {
		s.note("CAA forbids %s, the CA of the ACME directory: no certificate is renewed; name it as well, or auto", ca)
	}
	add := func(tag, value string) {
		s.zone.Records = append(s.zone.Records, &dns.CAA{Hdr: s.header("", dns.TypeCAA, ttlSettings), Tag: tag, Value: value})
	}
	for _, value := range issue {
		add("issue", value)
	}
	if len(issue) > 0 && c.DenyWildcards {
		add("issuewild", ";")
	}
	if c.Iodef != "" {
		add("iodef", c.Iodef)
	}
}

// methods are the ways by which the sites prove their names.
func methods(state *raftstore.State, serves map[string]served) string {
	all := []string{"dns-01"} // shared names, in any case
	for _, name := range state.Sites() {
		if m := serves[name].Method; m != "" && !slices.Contains(all, m) {
			all = append(all, m)
		}
	}
	return strings.Join(all, ",")
}

// accounts returns one parameter for each account that may order certificates (RFC 8657
// section 3). If the account of any site is not known it is one that binds to none: the
// CA would refuse that site its renewal otherwise.
func (s *snapshot) accounts(state *raftstore.State, serves map[string]served) []string {
	if !state.Content.CAA.Accounts {
		return []string{""}
	}
	var out []string
	for _, name := range state.Sites() {
		uri := serves[name].Account
		if !accountURI(uri) {
			s.note("CAA without accounturi: the ACME account of %s is not known", name)
			return []string{""}
		}
		out = append(out, "; accounturi="+uri)
	}
	return out
}

// accountURI reports whether a URI can stand in a parameter (RFC 8657 section 3).
func accountURI(uri string) bool {
	return strings.HasPrefix(uri, "https://") && len(uri) <= 200 &&
		!strings.ContainsFunc(uri, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`;"\`, r) })
}

// tlsa adds a record for each key that a host inside the zone says that it serves (RFC 7672
// section 3.1).
func (s *snapshot) tlsa(state *raftstore.State, serves map[string]served) {
	for _, name := range state.Sites() {
		host := dns.Fqdn(state.Nodes[name].Host)
		if !strings.HasSuffix(host, "."+s.zone.Name) {
			s.note("no TLSA records for %s: its host name is outside the zone", name)
			continue
		}
		keys := serves[name].Keys
		if len(keys) == 0 {
			s.note("no TLSA records for %s: it is not known which keys it serves", name)
		}
		for _, key := range keys {
			s.zone.Records = append(s.zone.Records, &dns.TLSA{Hdr: dns.RR_Header{Name: "_25._tcp." + host, Rrtype: dns.TypeTLSA, Class: dns.ClassINET, Ttl: ttlTLSA},
				Usage: 3, Selector: 1, MatchingType: 1, Certificate: key})
		}
	}
}

// stsPolicy is the MTA-STS policy of a configuration. It has every mail host, so that health
// never changes it.
func stsPolicy(state *raftstore.State) mtasts.Policy {
	p := mtasts.Policy{Mode: state.Content.MTASTS.Mode, MaxAge: state.Content.MTASTS.MaxAge}
	if p.MaxAge == 0 {
		p.MaxAge = 7 * 24 * 3600
	}
	for _, name := range state.Sites() {
		p.MX = append(p.MX, state.Nodes[name].Host)
	}
	for _, e := range state.Content.SortedExchanges() {
		p.MX = append(p.MX, e.Host)
	}
	return p
}

// mtasts adds what senders find the policy by (RFC 8461 sections 3.1 and 3.3).
func (s *snapshot) mtasts(state *raftstore.State, serves map[string]served) {
	p := stsPolicy(state)
	s.text("_mta-sts", "v=STSv1; id="+p.ID()+";")
	s.addresses("mta-sts", siteAddresses(state))
	for _, name := range state.Sites() {
		switch told, known := serves[name]; {
		case !known:
			s.note("MTA-STS: it is not known whether %s serves the policy", name)
		case !told.Policy:
			s.note("MTA-STS: %s does not serve the policy: listen.https is not set in its configuration file", name)
		case !told.PolicyTrusted:
			s.note("MTA-STS: %s serves the policy with a certificate that senders do not trust", name)
		}
		if p.Mode == raftstore.STSEnforce && !serves[name].Trusted {
			s.note("MTA-STS enforce: %s is not known to serve a publicly trusted certificate; senders that hold the policy send it no mail without one", name)
		}
	}
}

// siteAddresses returns the addresses of all sites.
func siteAddresses(state *raftstore.State) (list []string) {
	for _, name := range state.Sites() {
		list = append(list, state.Nodes[name].V4...)
		list = append(list, state.Nodes[name].V6...)
	}
	return list
}

// families sorts addresses by family.
func families(list []string) (v4, v6 []netip.Addr) {
	for _, a := range addrs(list) {
		if a.Is4() {
			v4 = append(v4, a)
		} else {
			v6 = append(v6, a)
		}
	}
	return v4, v6
}
