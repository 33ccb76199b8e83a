package dnsplugin

import (
	"slices"

	"github.com/miekg/dns"
)

// maxUDP is the largest UDP message sent or asked for, which passes unfragmented
// on practically all paths (RFC 9715 section 3.1, DNS flag day 2020).
const maxUDP = 1232

// newReply starts the reply to r, with its question as the client wrote it.
func newReply(r *dns.Msg) *dns.Msg { return new(dns.Msg).SetReply(r) }

// clampSize gives the size of a UDP reply to r. It writes the size into r's own OPT
// record, as CoreDNS takes from there what it announces and truncates to.
func clampSize(r *dns.Msg) int {
	o := r.IsEdns0()
	if o == nil {
		return dns.MinMsgSize
	}
	// RFC 6891 section 6.2.3: less than 512 means 512.
	o.SetUDPSize(min(max(o.UDPSize(), dns.MinMsgSize), maxUDP))
	return int(o.UDPSize())
}

// addOPT ends a reply to a query with EDNS. The record is a new one: nothing the
// client sent comes back but DO (RFC 3225 section 3) and a cookie, and NSID comes only if
// asked for (RFC 5001 section 2.1).
func (h *Handler) addOPT(m, r *dns.Msg, c cookie) {
	asked := r.IsEdns0()
	if asked == nil {
		return
	}
	o := &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}
	o.SetUDPSize(maxUDP)
	if asked.Do() {
		o.SetDo()
	}
	if h.nsid != "" && slices.ContainsFunc(asked.Option, func(e dns.EDNS0) bool { return e.Option() == dns.EDNS0NSID }) {
		o.Option = []dns.EDNS0{&dns.EDNS0_NSID{Code: dns.EDNS0NSID, Nsid: h.nsid}}
	}
	if c.reply != "" {
		o.Option = append(o.Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: c.reply})
	}
	m.Extra = append(m.Extra, o)
}

// fit makes m no longer than size. Additional addresses go first, whole sets at a
// time and without a word: a client that misses them asks (RFC 2181 section 9).
// Only if the rest is too long, or the addresses are the glue of a referral (RFC
// 9471 section 3), TC sends the client to TCP. It returns the length.
func fit(m *dns.Msg, size int) int {
	m.Compress = true
	if n := m.Len(); n <= size {
		return n
	}
	if referral := !m.Authoritative && len(m.Ns) > 0; !referral {
		extra, opt := m.Extra, []dns.RR(nil)
		if m.IsEdns0() != nil {
			extra, opt = m.Extra[:len(m.Extra)-1], m.Extra[len(m.Extra)-1:]
		}
		for len(extra) > 0 && m.Len() > size {
			extra = dropSet(extra)
			m.Extra = slices.Concat(extra, opt)
		}
	}
	m.Truncate(size)
	return m.Len()
}

// dropSet cuts the last set of records off.
func dropSet(rrs []dns.RR) []dns.RR {
	last := rrs[len(rrs)-1].Header()
	for len(rrs) > 0 {
		h := rrs[len(rrs)-1].Header()
		if h.Rrtype != last.Rrtype || h.Name != last.Name {
			break
		}
		rrs = rrs[:len(rrs)-1]
	}
	return rrs
}
