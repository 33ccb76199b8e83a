package dnsplugin

import (
	"maps"
	"sync"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

// Bounds of what is kept ready: hosts whose draws are, answers for one version of the zone,
// and how long one is used. Signatures are good for days longer.
const (
	maxPlaced    = 8
	maxPrepared  = 512
	preparedLife = time.Hour
)

// preparedKey is all that an answer kept ready depends on, beside the version of the zone.
type preparedKey struct {
	name          string
	qtype         uint16
	size          uint16 // that the client takes by UDP
	tcp, edns, do bool
	hosts         int // that were drawn
	drawn         [maxPlaced]placed
}

// preparedAnswer is the answer in wire format, with message ID 0 and the flags that repeat
// those of the query not set.
type preparedAnswer struct {
	wire    []byte
	made    time.Time
	queries prometheus.Counter
	first   prometheus.Counter // nil: nothing was drawn
}

// preparedType reports whether answers of a type follow from version and draw alone. Those
// for TXT do not: challenges come and go.
func preparedType(qtype uint16) bool {
	switch qtype {
	case dns.TypeMX, dns.TypeA, dns.TypeAAAA, dns.TypeNS, dns.TypeSOA, dns.TypeDNSKEY, dns.TypeTLSA, dns.TypeCAA:
		return true
	}
	return false
}

// preparable reports whether the answer to r can be kept ready, and under which key. It
// draws if the answer is drawn.
func (h *Handler) preparable(ix *index, r *dns.Msg, c cookie, udp bool) (key preparedKey, ok bool) {
	if ix == nil || len(r.Question) != 1 || len(r.Answer)+len(r.Ns) > 0 || len(r.Extra) > 1 || c != (cookie{}) || r.Opcode != dns.OpcodeQuery {
		return key, false
	}
	q := r.Question[0]
	if q.Qclass != dns.ClassINET || !preparedType(q.Qtype) {
		return key, false
	}
	// A client that mixes the case of the name is answered anew, with its own spelling.
	sets := ix.names[q.Name]
	drawn := q.Qtype == dns.TypeMX && q.Name == ix.name
	if len(sets[q.Qtype]) == 0 && !drawn {
		return key, false
	}
	key = preparedKey{name: q.Name, qtype: q.Qtype, size: uint16(clampSize(r)), tcp: !udp}
	if o := r.IsEdns0(); o != nil {
		if len(o.Option) > 0 {
			return key, false
		}
		key.edns, key.do = true, o.Do()
	} else if len(r.Extra) > 0 {
		return key, false
	}
	if key.size != dns.MinMsgSize && key.size != maxUDP { // there are too many others
		return key, false
	}
	if drawn {
		if len(ix.plan.hosts) > maxPlaced {
			return key, false
		}
		key.hosts = len(ix.plan.place(key.drawn[:0], h.random))
	}
	return key, true
}

// ready returns the answer that is kept for key, nil if there is none.
func (ix *index) ready(key *preparedKey, now time.Time) *preparedAnswer {
	kept := ix.prepared.Load()
	if kept == nil {
		return nil
	}
	a := (*kept)[*key]
	if a == nil || now.Sub(a.made) > preparedLife {
		return nil
	}
	return a
}

// keep keeps m, which fits its client and answers r, for those who ask the same.
func (h *Handler) keep(ix *index, key preparedKey, m, r *dns.Msg, now time.Time) {
	if m.Rcode != dns.RcodeSuccess || !m.Authoritative || m.Truncated || len(m.Answer) == 0 ||
		m.Answer[0].Header().Rrtype != key.qtype || ix.cutAt(key.name) != nil {
		return
	}
	if key.do && ix.signing != nil && m.Answer[len(m.Answer)-1].Header().Rrtype != dns.TypeRRSIG {
		return // it could not be signed this time
	}
	if o := m.IsEdns0(); o != nil {
		o.SetUDPSize(r.IsEdns0().UDPSize()) // as CoreDNS writes it into the answer of r
	}
	as := *m
	as.Id, as.RecursionDesired, as.CheckingDisabled = 0, false, false
	wire, err := as.Pack()
	if err != nil {
		return // so does the answer of r, which says it
	}
	a := &preparedAnswer{wire: wire, made: now, queries: h.metrics.counterOf(m)}
	if key.hosts > 0 {
		a.first = h.metrics.first.WithLabelValues(ix.plan.hosts[key.drawn[0].host].Name)
	}
	ix.preparing.Lock()
	defer ix.preparing.Unlock()
	with := map[preparedKey]*preparedAnswer{}
	if kept := ix.prepared.Load(); kept != nil {
		if _, again := (*kept)[key]; len(*kept) >= maxPrepared && !again {
			return
		}
		with = maps.Clone(*kept)
	}
	with[key] = a
	ix.prepared.Store(&with)
}

// wireBuffers are for answers on their way out.
var wireBuffers = sync.Pool{New: func() any { b := make([]byte, 0, maxUDP); return &b }}

// send writes the answer to r.
func (a *preparedAnswer) send(w dns.ResponseWriter, r *dns.Msg) error {
	buf := wireBuffers.Get().(*[]byte)
	defer wireBuffers.Put(buf)
	b := append((*buf)[:0], a.wire...)
	*buf = b
	b[0], b[1] = byte(r.Id>>8), byte(r.Id)
	if r.RecursionDesired { // RFC 1035 section 4.1.1
		b[2] |= 1
	}
	if r.CheckingDisabled { // RFC 4035 section 3.1.6
		b[3] |= 1 << 4
	}
	a.queries.Inc()
	if a.first != nil {
		a.first.Inc()
	}
	_, err := w.Write(b)
	return err
}
