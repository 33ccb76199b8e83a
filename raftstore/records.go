package raftstore

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// Bounds of one record.
const (
	maxRecordText = 4096 // octets of the text
	maxRecordData = 1024 // octets on the wire, with its owner
	maxTTL        = 7 * 24 * 3600
	recordTTL     = 3600 // of a record without one
)

// recordTypes are those that operators may add. The others are made by the server, or are
// none of a zone.
var recordTypes = []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeCAA, dns.TypeCNAME, dns.TypeDS, dns.TypeHTTPS, dns.TypeMX, dns.TypeNAPTR, dns.TypeNS,
	dns.TypeOPENPGPKEY, dns.TypePTR, dns.TypeSMIMEA, dns.TypeSRV, dns.TypeSSHFP, dns.TypeSVCB, dns.TypeTLSA, dns.TypeTXT, dns.TypeURI}

// ParseRecord reads one record in the syntax of zone files (RFC 1035 section 5.1). Names
// without a final dot are below the zone; a record without a TTL gets an hour. The text that
// it returns is the form that Content.Records holds.
func ParseRecord(zone, text string) (rr dns.RR, canonical string, err error) {
	if len(text) > maxRecordText {
		return nil, "", fmt.Errorf("record of %d octets, expected at most %d", len(text), maxRecordText)
	}
	if strings.HasPrefix(strings.TrimSpace(text), "$") {
		return nil, "", errors.New("expected a record, not a directive")
	}
	p := dns.NewZoneParser(strings.NewReader(text+"\n"), fqdn(zone), "")
	p.SetDefaultTTL(recordTTL)
	rr, ok := p.Next()
	if err := p.Err(); err != nil {
		return nil, "", fmt.Errorf("record %.80q does not parse: %s", text, strings.TrimPrefix(err.Error(), "dns: "))
	}
	if !ok {
		return nil, "", errors.New("no record, expected one, as in: www 3600 IN A 192.0.2.80")
	}
	if _, more := p.Next(); more || p.Err() != nil {
		return nil, "", errors.New("more than one record; add them one by one")
	}
	rr.Header().Name = dns.CanonicalName(rr.Header().Name)
	return throughWire(rr)
}

// SameRecord reports whether two records that ParseRecord wrote differ in nothing but their TTL.
func SameRecord(a, b string) bool {
	x, err := dns.NewRR(a)
	if err != nil || x == nil {
		return false
	}
	y, err := dns.NewRR(b)
	return err == nil && y != nil && dns.IsDuplicate(x, y)
}

// throughWire gives a record as others read it from an answer, and the text of that.
func throughWire(rr dns.RR) (dns.RR, string, error) {
	text := rr.String()
	buf := make([]byte, dns.MaxMsgSize)
	n, err := dns.PackRR(dns.Copy(rr), buf, 0, nil, false)
	if err != nil {
		return nil, "", fmt.Errorf("record %.80q: %w", text, err)
	}
	back, _, err := dns.UnpackRR(buf[:n], 0)
	if err != nil {
		return nil, "", fmt.Errorf("record %.80q: %w", text, err)
	}
	switch h := back.Header(); {
	case n > maxRecordData:
		return nil, "", fmt.Errorf("record %.80q: %d octets, expected at most %d", text, n, maxRecordData)
	case h.Rdlength == 0:
		return nil, "", fmt.Errorf("record %.80q: it has no data", text)
	}
	// What does not read as it was written would not be the same at every node.
	again, err := dns.NewRR(back.String())
	if err != nil || again == nil || again.String() != back.String() {
		return nil, "", fmt.Errorf("record %.80q: it cannot be written in one way only", text)
	}
	return back, back.String(), nil
}

// names is what stands where in the zone, while it is checked.
type names struct {
	zone string
	// hosts has the names whose addresses follow from settings, and what they are;
	// reserved those at which nothing else may stand, nor below.
	hosts, reserved map[string]string
}

func newNames(s *State) *names {
	z := &names{zone: fqdn(s.Zone.Name), hosts: map[string]string{}, reserved: map[string]string{}}
	for _, n := range s.SortedNodes() {
		if n.Role != Site {
			continue
		}
		host := fqdn(n.Host)
		z.hosts[host] = "the host name of " + n.Name
		if z.below(host) {
			z.reserved["_acme-challenge."+host] = "where the certificate of " + n.Name + " is proven"
			if s.Content.TLSA {
				z.reserved["_25._tcp."+host] = "where the TLSA records of " + n.Name + " stand"
			}
		}
	}
	z.reserved["_acme-challenge."+z.zone] = "where the certificates of hosts outside of the zone are proven"
	if s.Content.MTASTS.Mode != "" {
		z.reserved["_mta-sts."+z.zone], z.reserved["mta-sts."+z.zone] = "part of MTA-STS", "part of MTA-STS"
	}
	if len(s.Content.TLSReports) > 0 {
		z.reserved["_smtp._tls."+z.zone] = "where TLS reports are asked for"
	}
	return z
}

// below reports whether a name lies below the apex.
func (z *names) below(name string) bool { return name != z.zone && dns.IsSubDomain(z.zone, name) }

// claim gives a host name to something that has not got one yet.
func (z *names) claim(what, host, is string) error {
	name := fqdn(host)
	switch why, taken := z.hosts[name]; {
	case !IsHostName(host):
		return rejectf("invalid", "%s %.80q: expected a full host name in lower case, as in mail.example.com", what, host)
	case taken:
		return rejectf("invalid", "%s %s: it is %s", what, host, why)
	case name == z.zone:
		return rejectf("invalid", "%s %s: it is the zone itself", what, host)
	}
	if why, at := z.reservedAt(name); at {
		return rejectf("invalid", "%s %s: it is %s", what, host, why)
	}
	z.hosts[name] = is
	return nil
}

func (z *names) reservedAt(name string) (why string, ok bool) {
	for _, r := range slices.Sorted(maps.Keys(z.reserved)) {
		if dns.IsSubDomain(r, name) {
			return z.reserved[r], true
		}
	}
	return "", false
}

func (z *names) exchange(e Exchange) error {
	if err := z.claim("exchange", e.Host, "an exchange"); err != nil {
		return err
	}
	if err := checkAddresses("exchange "+e.Host, e.Addresses); err != nil {
		return err
	}
	switch {
	case len(e.Addresses) > maxAddresses:
		return rejectf("invalid", "exchange %s: %d addresses, expected at most %d", e.Host, len(e.Addresses), maxAddresses)
	case len(e.Addresses) == 0 && z.below(fqdn(e.Host)):
		return rejectf("invalid", "exchange %s: no address, expected one or more, since its name is inside the zone", e.Host)
	case e.Weight > MaxWeight:
		return rejectf("invalid", "exchange %s: weight %d, expected 0 to %d", e.Host, e.Weight, MaxWeight)
	case e.Port < 0 || e.Port > 65535:
		return rejectf("invalid", "exchange %s: port %d, expected a port number", e.Host, e.Port)
	}
	return nil
}

func (z *names) nameServer(s *State, ns NameServer) error {
	name := fqdn(ns.Name)
	i := slices.IndexFunc(s.Content.NameServers, func(o NameServer) bool { return o.Name == ns.Name })
	if s.Content.NameServers[i] != ns || slices.Contains(s.Content.NameServers[i+1:], ns) {
		return rejectf("invalid", "name server %s: it is named twice", ns.Name)
	}
	isHost := slices.ContainsFunc(s.SortedNodes(), func(n Node) bool { return n.Role == Site && !n.Leaving && fqdn(n.Host) == name })
	switch site, ok := s.Nodes[ns.Site]; {
	case !IsHostName(ns.Name):
		return rejectf("invalid", "name server %.80q: expected a full host name in lower case, as in ns1.example.com", ns.Name)
	case isHost && ns.Site != "":
		return rejectf("invalid", "name server %s: it is the host name of a site and has its addresses; expected no site", ns.Name)
	case isHost:
		return nil
	case !z.below(name) && name != z.zone && ns.Site != "":
		return rejectf("invalid", "name server %s: its addresses stand outside the zone; expected no site", ns.Name)
	case !z.below(name):
		return z.claim("name server", ns.Name, "a name server")
	case ns.Site == "":
		return rejectf("invalid", "name server %s: it is inside the zone, expected the site whose addresses it has, as in %[1]s=msgw1", ns.Name)
	case !ok || site.Role != Site || site.Leaving:
		return rejectf("invalid", "name server %s: no site is named %.40s", ns.Name, ns.Site)
	}
	return z.claim("name server", ns.Name, "a name server")
}

// records checks the operators' records, each and all.
func (z *names) records(texts []string) error {
	rrs := make([]dns.RR, 0, len(texts))
	cuts := map[string]bool{}
	for _, text := range texts {
		rr, _, err := ParseRecord(z.zone, text)
		if err != nil {
			return rejectf("invalid", "%v", err)
		}
		if err := z.alone(rr); err != nil {
			return rejectf("invalid", "record %s: %v", shown(text), err)
		}
		if slices.ContainsFunc(rrs, func(o dns.RR) bool { return dns.IsDuplicate(o, rr) }) {
			return rejectf("exists", "record %s: it is there already", shown(text))
		}
		if rrs = append(rrs, rr); rr.Header().Rrtype == dns.TypeNS {
			cuts[rr.Header().Name] = true
		}
	}
	for i, rr := range rrs {
		if err := z.among(rrs, cuts, rr); err != nil {
			return rejectf("invalid", "record %s: %v", shown(texts[i]), err)
		}
	}
	return nil
}

// shown is a record in one short line.
func shown(text string) string { return fmt.Sprintf("%.100s", strings.ReplaceAll(text, "\t", " ")) }

// alone checks a record with regard to what the server makes itself.
func (z *names) alone(rr dns.RR) error {
	h := rr.Header()
	switch {
	case h.Class != dns.ClassINET:
		return errors.New("class is not IN")
	case !slices.Contains(recordTypes, h.Rrtype):
		return fmt.Errorf("records of type %s cannot be added", dns.Type(h.Rrtype))
	case !dns.IsSubDomain(z.zone, h.Name):
		return fmt.Errorf("it is outside of %s", z.zone)
	case strings.ContainsFunc(h.Name, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && !strings.ContainsRune("-_.", r)
	}):
		return errors.New("its name has other characters than letters, digits, - and _; there are no wildcards")
	case h.Ttl > maxTTL:
		return fmt.Errorf("TTL of %d seconds, expected at most %d", h.Ttl, maxTTL)
	}
	if why, ok := z.reservedAt(h.Name); ok {
		return fmt.Errorf("its name is %s", why)
	}
	fixed := slices.Contains([]uint16{dns.TypeA, dns.TypeAAAA, dns.TypeCNAME, dns.TypeNS, dns.TypeDS}, h.Rrtype)
	if why, ok := z.hosts[h.Name]; ok && fixed {
		return fmt.Errorf("its name is %s", why)
	}
	if h.Name != z.zone {
		return nil
	}
	switch h.Rrtype {
	case dns.TypeA, dns.TypeAAAA:
		return errors.New("addresses of the zone's own name are a setting: `msgw dns set --apex`")
	case dns.TypeCAA:
		return errors.New("CAA of the zone is a setting: `msgw dns set --caa`")
	case dns.TypeMX, dns.TypeNS:
		return errors.New("MX and NS of the zone follow from sites, exchanges and `msgw dns set --ns`")
	case dns.TypeCNAME:
		return errors.New("the zone's own name cannot be an alias (RFC 1034 section 3.6.2)")
	case dns.TypeDS:
		return errors.New("DS of the zone belongs into the parent zone")
	}
	return nil
}

// among checks a record with regard to the others.
func (z *names) among(rrs []dns.RR, cuts map[string]bool, rr dns.RR) error {
	h := rr.Header()
	if h.Rrtype == dns.TypeCNAME && slices.ContainsFunc(rrs, func(o dns.RR) bool { return o != rr && o.Header().Name == h.Name }) {
		return errors.New("an alias is alone at its name (RFC 2181 section 10.1)")
	}
	if h.Rrtype == dns.TypeDS && !cuts[h.Name] {
		return errors.New("a DS stands at a delegation; add its NS records first")
	}
	if h.Rrtype == dns.TypeNS {
		for _, made := range slices.Sorted(maps.Keys(z.hosts)) {
			if dns.IsSubDomain(h.Name, made) {
				return fmt.Errorf("it would delegate %s away", made)
			}
		}
		for _, made := range slices.Sorted(maps.Keys(z.reserved)) {
			if dns.IsSubDomain(h.Name, made) {
				return fmt.Errorf("it would delegate %s away", made)
			}
		}
	}
	for _, cut := range slices.Sorted(maps.Keys(cuts)) {
		at := h.Name == cut
		if !dns.IsSubDomain(cut, h.Name) || at && (h.Rrtype == dns.TypeNS || h.Rrtype == dns.TypeDS) {
			continue
		}
		if h.Rrtype != dns.TypeA && h.Rrtype != dns.TypeAAAA {
			return fmt.Errorf("it is hidden by the delegation of %s", cut)
		}
	}
	return nil
}
