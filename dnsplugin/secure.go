package dnsplugin

import (
	"maps"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// answer resolves the question of m and signs the answer if the zone is signed. The name
// is in the zone; r is the query. Signatures may have to be made, so that allow is asked
// before: if it does not allow m, the answer will not be sent and is not signed. nil allows
// everything.
func (h *Handler) answer(ix *index, m, r *dns.Msg, drawn []placed, allow func(*dns.Msg) bool) {
	if ix.signing == nil {
		h.resolve(ix, m, drawn)
		return
	}
	o := r.IsEdns0()
	do := o != nil && o.Do()
	switch qtype := m.Question[0].Qtype; {
	case qtype == dns.TypeNXNAME: // RFC 9824 section 3.5
		m.Rcode = dns.RcodeFormatError
		return
	case qtype == dns.TypeNSEC || qtype == dns.TypeRRSIG:
		name := dns.CanonicalName(m.Question[0].Name)
		if ix.cutAt(name) == nil && h.exists(ix, name) {
			if allow == nil || allow(m) {
				h.explicit(ix, m, do)
			}
			return
		}
	}
	h.resolve(ix, m, drawn)
	if !do { // RFC 4035 section 3.1
		return
	}
	if allow != nil && !allow(m) {
		return
	}
	referral := len(m.Ns) > 0 && m.Ns[0].Header().Rrtype == dns.TypeNS
	switch {
	case referral:
		h.secureReferral(ix, m)
	case len(m.Ns) > 0 && m.Ns[0] == ix.negative:
		h.secureDenial(ix, m, o.Co())
	}
	m.Answer = h.withSignatures(ix, m.Answer)
	if !referral {
		m.Extra = append(m.Extra, h.signaturesOf(ix, m.Extra)...)
	}
}

// explicit answers a question for NSEC or RRSIG at a name that exists with the one NSEC
// record that it has here and its signature; the other signatures come with their sets.
func (h *Handler) explicit(ix *index, m *dns.Msg, do bool) {
	m.Authoritative = true
	nsec := h.nsec(ix, m.Question[0].Name, true)
	sigs := h.signer.sign(ix, nsec)
	switch {
	case m.Question[0].Qtype == dns.TypeRRSIG:
		m.Answer = sigs
	case do:
		m.Answer = append(nsec, sigs...)
	default:
		m.Answer = nsec
	}
}

// secureReferral adds to a referral the DS of the delegation or the proof that there is
// none (RFC 4035 section 3.1.4). Name servers and glue are the child's and not signed.
func (h *Handler) secureReferral(ix *index, m *dns.Msg) {
	name := dns.CanonicalName(m.Ns[0].Header().Name)
	set := ix.names[name][dns.TypeDS]
	if len(set) == 0 {
		set = h.nsec(ix, name, true)
	}
	m.Ns = append(m.Ns, set...)
	m.Ns = append(m.Ns, h.signer.sign(ix, set)...)
}

// secureDenial proves that the last name of the answer does not have the type, or does
// not exist.
func (h *Handler) secureDenial(ix *index, m *dns.Msg, co bool) {
	name := m.Question[0].Name
	for _, rr := range m.Answer {
		if alias, ok := rr.(*dns.CNAME); ok {
			name = alias.Target
		}
	}
	exists := m.Rcode != dns.RcodeNameError
	// RFC 9824 section 5: to a resolver that does not say that it knows better, a name
	// that the NSEC record has as its owner exists.
	if !exists && !co {
		m.Rcode = dns.RcodeSuccess
	}
	nsec := h.nsec(ix, name, exists)
	m.Ns = append(m.Ns, h.signer.sign(ix, m.Ns[:1:1])...)
	m.Ns = append(m.Ns, nsec...)
	m.Ns = append(m.Ns, h.signer.sign(ix, nsec)...)
}

// nsec makes the NSEC record of a name: it says which types the name has, and denies
// nothing else (RFC 9824 sections 3.1 to 3.3). Its TTL is that of a negative answer (RFC
// 9077 section 3.2).
func (h *Handler) nsec(ix *index, owner string, exists bool) []dns.RR {
	name := dns.CanonicalName(owner)
	types := []uint16{dns.TypeRRSIG, dns.TypeNSEC, dns.TypeNXNAME}
	if exists {
		types = append(slices.Collect(maps.Keys(ix.names[name])), dns.TypeRRSIG, dns.TypeNSEC)
		if name == ix.name && len(ix.plan.hosts) > 0 {
			types = append(types, dns.TypeMX) // drawn for each answer
		}
		if ix.cuts[name] != nil {
			types = append(types, dns.TypeNS)
		} else if len(h.challenge(name)) > 0 {
			types = append(types, dns.TypeTXT)
		}
		slices.Sort(types)
		types = slices.Compact(types)
	}
	return []dns.RR{&dns.NSEC{Hdr: header(owner, dns.TypeNSEC, ix.negative.Header().Ttl), NextDomain: successor(name), TypeBitMap: types}}
}

// exists reports whether a name that is not delegated has records or names below it, those
// of challenges included.
func (h *Handler) exists(ix *index, name string) bool {
	_, exists := ix.names[name]
	return exists || len(h.challenge(name)) > 0 || len(h.challenge("_acme-challenge."+name)) > 0
}

// withSignatures adds the signatures to sets of records, each behind its set.
func (h *Handler) withSignatures(ix *index, rrs []dns.RR) []dns.RR {
	out := make([]dns.RR, 0, len(rrs)+2)
	for set := range sets(rrs) {
		out = append(append(out, set...), h.setSignatures(ix, set)...)
	}
	return out
}

// signaturesOf returns the signatures of sets of records.
func (h *Handler) signaturesOf(ix *index, rrs []dns.RR) []dns.RR {
	var out []dns.RR
	for set := range sets(rrs) {
		out = append(out, h.setSignatures(ix, set)...)
	}
	return out
}

// setSignatures returns the signatures of a set; none if it is a delegated zone's, which
// is not signed.
func (h *Handler) setSignatures(ix *index, set []dns.RR) []dns.RR {
	hdr := set[0].Header()
	if len(ix.cuts) > 0 {
		if name := dns.CanonicalName(hdr.Name); hdr.Rrtype != dns.TypeDS || ix.cuts[name] == nil {
			if ix.cutAt(name) != nil {
				return nil
			}
		}
	}
	if hdr.Rrtype == dns.TypeCNAME {
		set = set[:1] // an alias of itself is there several times
	}
	return h.signer.sign(ix, set)
}

// sets goes through the sets in rrs.
func sets(rrs []dns.RR) func(yield func([]dns.RR) bool) {
	return func(yield func([]dns.RR) bool) {
		for len(rrs) > 0 {
			first, n := rrs[0].Header(), 1
			for n < len(rrs) && rrs[n].Header().Rrtype == first.Rrtype && rrs[n].Header().Name == first.Name {
				n++
			}
			if !yield(rrs[:n:n]) {
				return
			}
			rrs = rrs[n:]
		}
	}
}

// maxName is the most octets of a name on the wire.
const maxName = 255

// successor returns the name that follows name directly in canonical order (RFC 4034
// section 6.1), as far as there is room for one. name is canonical.
func successor(name string) string {
	if len(name) < maxName-3 { // escapes only make it longer than it is on the wire
		return `\000.` + name
	}
	wire := make([]byte, 2*maxName)
	n, err := dns.PackDomainName(name, wire[2:], 0, nil, false)
	if err != nil {
		return name // cannot be: it came in a message
	}
	if n+2 <= maxName {
		wire[0], wire[1] = 1, 0 // a label below
		return unpacked(wire[:n+2])
	}
	for rest := wire[2 : 2+n]; rest[0] != 0; rest = rest[1+rest[0]:] {
		label, parents := rest[1:1+rest[0]], rest[1+rest[0]:]
		if len(rest)+1 <= maxName && len(label) < 63 {
			// The label, one octet longer.
			out := append([]byte{byte(len(label) + 1)}, label...)
			return unpacked(append(append(out, 0), parents...))
		}
		// The label with its last octet raised; what follows 255 is shorter.
		for len(label) > 0 && label[len(label)-1] == 255 {
			label = label[:len(label)-1]
		}
		if len(label) == 0 {
			continue // nothing follows below the same parent: what follows the parent
		}
		out := append([]byte{byte(len(label))}, label...)
		if out[len(out)-1]++; out[len(out)-1] == 'A' {
			out[len(out)-1] = 'Z' + 1 // upper case counts as lower
		}
		return unpacked(append(out, parents...))
	}
	return name // cannot be: no zone has such a name
}

func unpacked(wire []byte) string {
	name, _, err := dns.UnpackDomainName(wire, 0)
	if err != nil {
		return "."
	}
	return strings.ToLower(name)
}
