package dnsplugin

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/miekg/dns"
)

// Check reports everything in z that cannot be answered as it stands, joined, or
// nil. A zone with such faults is still answered, without the records in question:
// one bad record must not silence the mail hosts.
//
// At most 20 faults are spelled out.
func (z *Zone) Check() error { return newIndex(z, "").faulty() }

// rrsets holds the records of one name by type.
type rrsets map[uint16][]dns.RR

// index is a Zone arranged for answering. It is never changed once made, and
// neither are its records: answers share them.
type index struct {
	zone     *Zone
	name     string // apex; empty if the zone has no usable name, then nothing is answered
	self     string
	mbox     string
	plan     *plan
	ttlMX    uint32
	negative dns.RR            // the SOA as it proves that something does not exist
	names    map[string]rrsets // every name that exists, empty non-terminals included
	cuts     map[string]*cut   // delegations below the apex
	hidden   map[string]rrsets // addresses below a delegation: glue, not answers
	crowded  map[string]bool   // names with a set that is over maxSet
	faults   []error           // the first maxFaults
	more     int               // faults beyond those
	signing  *signing          // nil: the zone is not signed
	signed   sync.Map          // first record of a set -> *signature

	prepared  atomic.Pointer[map[preparedKey]*preparedAnswer] // replaced as a whole
	preparing sync.Mutex                                      // held to replace it
}

// cut is a delegation of a name below the apex to other servers.
type cut struct {
	name     string
	ns       []dns.RR
	ours     bool   // this server is among those it is delegated to
	apex     rrsets // what the child zone holds at its apex; it is static: SOA and NS
	negative dns.RR // the SOA of the child zone
}

// newIndex arranges z for the server whose host name is self; empty: none.
func newIndex(z *Zone, self string) *index {
	ix := &index{zone: z, name: dns.CanonicalName(z.Name), self: self, ttlMX: z.TTL(),
		names: make(map[string]rrsets), cuts: make(map[string]*cut), hidden: make(map[string]rrsets), crowded: make(map[string]bool)}
	if !validName(ix.name) {
		ix.fault("zone name %q is not a domain name", z.Name)
		ix.name = ""
		return ix
	}
	ix.mbox = "hostmaster." + ix.name
	if z.Contact != "" {
		if mbox, err := mailbox(z.Contact); err != nil {
			ix.fault("%w", err)
		} else {
			ix.mbox = mbox
		}
	}
	ix.names[ix.name] = rrsets{}
	hosts := z.hosts()
	if n := len(z.Hosts) - len(hosts); n > 0 {
		ix.fault("%d of %d hosts are left out: their names are repeated or no domain names", n, len(z.Hosts))
	}
	ix.plan = newPlan(z.Mode, hosts)

	records := ix.sound(z.Records)
	for _, rr := range records { // delegations decide where all else goes
		if h := rr.Header(); h.Rrtype == dns.TypeNS {
			ix.delegate(h.Name, rr)
		}
	}
	ix.placeHosts(hosts)
	for _, rr := range records {
		if rr.Header().Rrtype != dns.TypeNS {
			ix.place(rr)
		}
	}
	ix.placeKeys()
	ix.finish()
	return ix
}

// maxFaults bounds what a broken zone says in the log.
const maxFaults = 20

func (ix *index) fault(format string, a ...any) {
	if len(ix.faults) == maxFaults {
		ix.more++
		return
	}
	ix.faults = append(ix.faults, fmt.Errorf(format, a...))
}

// faulty joins the faults, nil if there are none.
func (ix *index) faulty() error {
	if ix.more > 0 {
		return errors.Join(append(slices.Clone(ix.faults), fmt.Errorf("and %d more", ix.more))...)
	}
	return errors.Join(ix.faults...)
}

// sound gives independent copies of the records that can be served.
func (ix *index) sound(records []dns.RR) []dns.RR {
	var sound []dns.RR
	buf := make([]byte, dns.MaxMsgSize)
	for i, rr := range records {
		if rr == nil {
			ix.fault("record %d is nil", i)
			continue
		}
		// What survives the wire format can be answered. PackRR writes to the header.
		n, err := dns.PackRR(dns.Copy(rr), buf, 0, nil, false)
		if err != nil {
			ix.fault("record %q: %w", rr, err)
			continue
		}
		c, _, err := dns.UnpackRR(buf[:n], 0)
		if err != nil {
			ix.fault("record %q: %w", rr, err)
			continue
		}
		h := c.Header()
		h.Name = dns.CanonicalName(h.Name)
		if err := ix.servable(h); err != nil {
			ix.fault("record %q: %w", rr, err)
			continue
		}
		sound = append(sound, c)
	}
	return sound
}

func (ix *index) servable(h *dns.RR_Header) error {
	switch h.Rrtype {
	case dns.TypeSOA:
		return errors.New("the SOA is made by the server")
	case dns.TypeMX, dns.TypeNS:
		if h.Name == ix.name {
			return errors.New("MX and NS of the zone follow from its hosts")
		}
	case dns.TypeCNAME:
		if h.Name == ix.name {
			return errors.New("the apex cannot be an alias (RFC 1034 section 3.6.2)")
		}
	case dns.TypeDNAME:
		return errors.New("DNAME is not supported")
	case dns.TypeDNSKEY, dns.TypeCDNSKEY, dns.TypeCDS:
		if len(ix.zone.Keys) > 0 {
			return errors.New("the keys of a signed zone are made by the server")
		}
	case dns.TypeRRSIG, dns.TypeNSEC, dns.TypeNSEC3, dns.TypeNSEC3PARAM:
		return errors.New("signatures cannot be static here: answers are drawn")
	case dns.TypeOPT:
		return errors.New("not a record of a zone")
	}
	switch {
	case h.Rrtype >= 128 && h.Rrtype <= 255: // RFC 6895 section 3.1
		return errors.New("not a record of a zone")
	case h.Class != dns.ClassINET:
		return errors.New("class is not IN")
	case h.Rdlength == 0:
		return errors.New("it has no data")
	case !dns.IsSubDomain(ix.name, h.Name):
		return fmt.Errorf("it is outside of %s", ix.name)
	case h.Name[0] == '*' && h.Name[1] == '.':
		return errors.New("wildcards are not supported")
	}
	return nil
}

// delegate adds one name server of a delegation.
func (ix *index) delegate(name string, ns dns.RR) {
	c := ix.cuts[name]
	if c == nil {
		c = &cut{name: name}
		ix.cuts[name] = c
		ix.exist(name)
	}
	c.ns = ix.add(c.ns, ns)
	c.ours = c.ours || dns.CanonicalName(ns.(*dns.NS).Ns) == ix.self
}

// exist makes name and all between it and the apex exist (RFC 4592 section 2.2.2).
func (ix *index) exist(name string) rrsets {
	for n := name; ix.names[n] == nil; {
		ix.names[n] = rrsets{}
		off, _ := dns.NextLabel(n, 0)
		n = n[off:]
	}
	return ix.names[name]
}

// maxSet is the most records of one name and type. More hardly fit a message, and
// each is compared with all the others.
const maxSet = 100

// add appends rr unless the set has it (RFC 2181 section 5) or is full.
func (ix *index) add(set []dns.RR, rr dns.RR) []dns.RR {
	if slices.ContainsFunc(set, func(o dns.RR) bool { return dns.IsDuplicate(o, rr) }) {
		return set
	}
	if len(set) == maxSet {
		ix.crowded[rr.Header().Name] = true
		return set
	}
	return append(set, rr)
}

// place adds a record of the zone where it belongs with regard to delegations.
func (ix *index) place(rr dns.RR) {
	h := rr.Header()
	c := ix.cutAt(h.Name)
	if c == nil || h.Name == c.name && h.Rrtype == dns.TypeDS { // RFC 4035 section 2.4
		set := ix.exist(h.Name)
		set[h.Rrtype] = ix.add(set[h.Rrtype], rr)
		return
	}
	if h.Rrtype != dns.TypeA && h.Rrtype != dns.TypeAAAA {
		ix.fault("record %q is hidden by the delegation of %s", rr, c.name)
		return
	}
	if ix.hidden[h.Name] == nil {
		ix.hidden[h.Name] = rrsets{}
	}
	set := ix.hidden[h.Name]
	set[h.Rrtype] = ix.add(set[h.Rrtype], rr)
}

// placeHosts adds the addresses of the hosts and name servers, and NS and SOA of the zone.
func (ix *index) placeHosts(hosts []Host) {
	if len(hosts) == 0 {
		ix.fault("the zone has no mail host")
	}
	var ns []string
	for _, h := range hosts {
		if dns.IsSubDomain(ix.name, h.Name) && len(h.V4)+len(h.V6) == 0 {
			ix.fault("host %s has no address", h.Name)
		}
		ix.placeAddresses("host", h.Name, h.V4, h.V6)
		if h.NameServer {
			ns = append(ns, h.Name)
		}
	}
	if named := ix.placeNameServers(); len(named) > 0 {
		ns = named
	}
	apex, mname := ix.names[ix.name], ix.name
	for _, name := range ns {
		apex[dns.TypeNS] = ix.add(apex[dns.TypeNS], &dns.NS{Hdr: header(ix.name, dns.TypeNS, ttlNS), Ns: name})
	}
	if len(ns) == 0 {
		ix.fault("no host is a name server of the zone")
	} else {
		mname = ns[0]
	}
	apex[dns.TypeSOA] = []dns.RR{ix.soa(ix.name, mname, ttlSOA)}
	// RFC 2308 section 3: a negative answer lives min(TTL of the SOA, MINIMUM).
	ix.negative = ix.soa(ix.name, mname, min(ttlSOA, ttlNegative))
}

// placeNameServers adds the addresses of the zone's own name servers and gives their names.
func (ix *index) placeNameServers() (names []string) {
	for _, ns := range ix.zone.NameServers {
		name := dns.CanonicalName(ns.Name)
		if !validName(name) {
			ix.fault("name server %q is not a domain name", ns.Name)
			continue
		}
		ix.placeAddresses("name server", name, ns.V4, ns.V6)
		if dns.IsSubDomain(ix.name, name) && len(ix.addresses(name)) == 0 {
			ix.fault("name server %s has no address", name)
		}
		names = append(names, name)
	}
	return names
}

// placeAddresses adds the addresses of a name if that is in the zone.
func (ix *index) placeAddresses(what, name string, v4, v6 []netip.Addr) {
	inside := dns.IsSubDomain(ix.name, name)
	place := func(a netip.Addr, rr dns.RR, ok bool) {
		if !ok || a.Zone() != "" {
			ix.fault("%s %s: address %v is not of the family it is listed under", what, name, a)
		} else if inside {
			ix.place(rr)
		}
	}
	for _, a := range v4 {
		place(a, &dns.A{Hdr: header(name, dns.TypeA, ttlAddress), A: a.AsSlice()}, a.Is4())
	}
	for _, a := range v6 {
		place(a, &dns.AAAA{Hdr: header(name, dns.TypeAAAA, ttlAddress), AAAA: a.AsSlice()}, a.Is6() && !a.Is4In6())
	}
}

// finish settles what depends on all records of a name.
func (ix *index) finish() {
	for _, name := range slices.Sorted(maps.Keys(ix.crowded)) {
		ix.fault("%s has more than %d records of one type; those beyond are left out", name, maxSet)
	}
	for _, name := range slices.Sorted(maps.Keys(ix.names)) {
		sets := ix.names[name]
		// RFC 2181 section 10.1: an alias is alone at its name, and only one.
		if alias := sets[dns.TypeCNAME]; alias != nil && len(sets) > 1 {
			ix.fault("%s is an alias and has other records; the alias is left out", name)
			delete(sets, dns.TypeCNAME)
		} else if len(alias) > 1 {
			ix.fault("%s has %d aliases; all but the first are left out", name, len(alias))
			sets[dns.TypeCNAME] = alias[:1]
		}
		sets.level(ix.zone)
	}
	for _, sets := range ix.hidden {
		sets.level(ix.zone)
	}
	for _, c := range ix.cuts {
		sets := rrsets{dns.TypeNS: c.ns}
		sets.level(ix.zone)
		// A resolver that was referred here expects the child's SOA, not one
		// from above the delegation.
		mname := c.ns[0].(*dns.NS).Ns
		if c.ours {
			mname = ix.self
		}
		sets[dns.TypeSOA] = []dns.RR{ix.soa(c.name, mname, ttlSOA)}
		c.apex, c.negative = sets, ix.soa(c.name, mname, min(ttlSOA, ttlNegative))
	}
}

// level gives every record of a set the lowest TTL found in it (RFC 2181 section 5.2),
// and at most the highest of the zone.
func (s rrsets) level(z *Zone) {
	for _, set := range s {
		ttl := z.capped(set[0].Header().Ttl)
		for _, rr := range set {
			ttl = min(ttl, rr.Header().Ttl)
		}
		for _, rr := range set {
			rr.Header().Ttl = ttl
		}
	}
}

func (ix *index) soa(owner, mname string, ttl uint32) dns.RR {
	return &dns.SOA{Hdr: header(owner, dns.TypeSOA, ix.zone.capped(ttl)), Ns: mname, Mbox: ix.mbox, Serial: ix.zone.Serial,
		Refresh: soaRefresh, Retry: soaRetry, Expire: soaExpire, Minttl: ttlNegative}
}

// cutAt finds the delegation that name lies at or below, the highest if there are
// several; nil: none.
func (ix *index) cutAt(name string) *cut {
	var found *cut
	if len(ix.cuts) == 0 {
		return nil
	}
	for off, end := 0, false; !end && name[off:] != ix.name; off, end = dns.NextLabel(name, off) {
		if c := ix.cuts[name[off:]]; c != nil {
			found = c
		}
	}
	return found
}

// addresses gives the A and AAAA records of a name in the zone.
func (ix *index) addresses(name string) []dns.RR {
	sets := ix.names[name]
	if hidden := ix.hidden[name]; hidden != nil {
		sets = hidden
	}
	return slices.Concat(sets[dns.TypeA], sets[dns.TypeAAAA])
}

func header(name string, rrtype uint16, ttl uint32) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: ttl}
}
