package dnsplugin

import (
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// maxChain bounds how many names one answer goes through by CNAME.
const maxChain = 8

// resolve answers the question of m from ix, for MX of the zone with what was
// drawn, or if nothing was, with a draw of its own. The name is in the zone.
func (h *Handler) resolve(ix *index, m *dns.Msg, drawn []placed) {
	qtype, owner := m.Question[0].Qtype, m.Question[0].Name
	m.Authoritative = true
	for range maxChain {
		name := dns.CanonicalName(owner)
		texts := h.challenge(name)
		sets, exists := ix.names[name]
		negative := ix.negative
		// DS belongs to the parent's side of a delegation (RFC 4035 section 3.1.4.1).
		if c := ix.cutAt(name); c != nil && !(name == c.name && qtype == dns.TypeDS) {
			if !c.ours && len(texts) == 0 {
				refer(ix, m, c)
				return
			}
			sets, exists, negative = nil, name == c.name, c.negative
			if exists {
				sets = c.apex
			}
		}
		// The parent of a challenge exists as long as the challenge does (RFC 8020).
		exists = exists || len(texts) > 0 || len(h.challenge("_acme-challenge."+name)) > 0

		var set []dns.RR
		switch alias := sets[dns.TypeCNAME]; {
		case !exists:
			m.Rcode = dns.RcodeNameError // of the last name of a chain: RFC 6604 section 3
		case qtype == dns.TypeTXT && len(texts) > 0:
			set = challengeTXT(texts, sets[dns.TypeTXT])
		case qtype == dns.TypeMX && name == ix.name:
			if len(drawn) == 0 { // an alias led here
				drawn = ix.plan.place(nil, h.random)
			}
			if set = ix.exchanges(drawn); len(set) > 0 {
				h.metrics.first.WithLabelValues(ix.plan.hosts[drawn[0].host].Name).Inc()
			}
		case len(alias) > 0:
			m.Answer = append(m.Answer, owned(alias, owner)...)
			owner = alias[0].(*dns.CNAME).Target
			if qtype != dns.TypeCNAME && qtype != dns.TypeANY && dns.IsSubDomain(ix.name, owner) {
				continue
			}
			return
		case qtype == dns.TypeANY:
			// RFC 8482 section 4.2. An empty non-terminal has nothing to stand for.
			if len(sets)+len(texts) > 0 {
				set = []dns.RR{&dns.HINFO{Hdr: header(owner, dns.TypeHINFO, ix.zone.capped(ttlANY)), Cpu: "RFC8482"}}
			}
		default:
			set = sets[qtype]
		}
		if len(set) == 0 {
			m.Ns = append(m.Ns, negative) // RFC 2308 sections 2.1 and 2.2
			return
		}
		m.Answer = append(m.Answer, owned(set, owner)...)
		addTargets(ix, m, set)
		return
	}
}

// refer hands the client on to the servers of c. The answer stays authoritative
// only for an alias that led here.
func refer(ix *index, m *dns.Msg, c *cut) {
	m.Authoritative = len(m.Answer) > 0
	m.Ns = append(m.Ns, c.apex[dns.TypeNS]...)
	addTargets(ix, m, m.Ns)
}

// exchanges makes the MX records of the zone as they were drawn.
func (ix *index) exchanges(drawn []placed) []dns.RR {
	set := make([]dns.RR, len(drawn))
	for i, x := range drawn {
		set[i] = &dns.MX{Hdr: header(ix.name, dns.TypeMX, ix.ttlMX), Preference: x.preference, Mx: ix.plan.hosts[x.host].Name}
	}
	return set
}

// challenge gives the challenge values at name.
func (h *Handler) challenge(name string) []string {
	if h.challenges == nil {
		return nil
	}
	return h.challenges.TXT(name)
}

// challengeTXT makes one TXT set of challenge values and of what else is at the name.
func challengeTXT(texts []string, others []dns.RR) []dns.RR {
	var set []dns.RR
	for _, text := range texts {
		txt := &dns.TXT{Hdr: header("", dns.TypeTXT, ttlChallenge)}
		for part := range slices.Chunk([]byte(text), 255) { // RFC 1035 section 3.3
			txt.Txt = append(txt.Txt, strings.ReplaceAll(string(part), `\`, `\\`))
		}
		set = append(set, txt)
	}
	for _, rr := range others {
		rr = dns.Copy(rr)
		rr.Header().Ttl = ttlChallenge
		set = append(set, rr)
	}
	return set
}

// owned gives the records with owner as the client wrote it. Records of the index
// are shared by answers, so that only copies change.
func owned(set []dns.RR, owner string) []dns.RR {
	if set[0].Header().Name == owner {
		return set
	}
	out := make([]dns.RR, len(set))
	for i, rr := range set {
		out[i] = dns.Copy(rr)
		out[i].Header().Name = owner
	}
	return out
}

// addTargets adds the addresses of the hosts that set names, as far as they are in
// the zone (RFC 1035 section 3.3.9 and 3.3.11, RFC 2782).
func addTargets(ix *index, m *dns.Msg, set []dns.RR) {
	for i, rr := range set {
		target := targetOf(rr)
		if target == "" || slices.ContainsFunc(set[:i], func(o dns.RR) bool { return targetOf(o) == target }) {
			continue
		}
		m.Extra = append(m.Extra, ix.addresses(target)...)
	}
}

func targetOf(rr dns.RR) string {
	switch rr := rr.(type) {
	case *dns.MX:
		return dns.CanonicalName(rr.Mx)
	case *dns.NS:
		return dns.CanonicalName(rr.Ns)
	case *dns.SRV:
		return dns.CanonicalName(rr.Target)
	}
	return ""
}
