package dnsplugin

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

const pluginName = "dnsplugin"

// DefaultMaxInFlight is the number of queries answered at one time unless Options
// says otherwise. An answer takes some 10 µs, so a thousand waiting ones are
// already late, and what they hold in memory is a few MiB.
const DefaultMaxInFlight = 1024

// maxNSID bounds the identifier, which goes out in answers of 512 octets too.
const maxNSID = 64

// Options is what a Handler works with.
type Options struct {
	Source     Source     // required
	Challenges Challenges // nil: no ACME challenges are answered
	// Self is this server's own host name. Names below the zone that are delegated
	// to it are answered with authority instead of a referral to itself. Empty: none.
	Self string
	// NSID identifies this server to clients that ask (RFC 5001), in at most 64
	// octets. Empty: it does not tell.
	NSID string
	// MaxInFlight is how many queries are answered at one time; 0 means
	// DefaultMaxInFlight. What comes on top is dropped unanswered: resolvers ask
	// another server, or again, while a queue would answer everyone too late.
	MaxInFlight int
	// CookieSecrets returns what DNS cookies are made and checked with (RFC 7873, RFC 9018):
	// the first makes them, all check. It is called at each query and must not wait.
	// Nil, or none: cookies are not answered.
	CookieSecrets func() []CookieSecret
	// Rate bounds the answers by UDP.
	Rate Rate
	// Registerer gets the metrics; nil: they are not exported.
	Registerer prometheus.Registerer
	Log        *slog.Logger // required
	// Next gets what lies outside the zone; nil: that is REFUSED.
	Next plugin.Handler
}

// Handler is the plugin: a plugin.Handler that answers the zone of a Source.
type Handler struct {
	source       Source
	challenges   Challenges
	self         string
	nsid         string // in hexadecimal
	next         plugin.Handler
	log          *slog.Logger
	metrics      *metrics
	core         *coreMetrics
	inFlight     gate
	secrets      func() []CookieSecret
	limiter      *limiter     // nil: answers are not bounded
	lastRate     atomic.Int64 // unix seconds of the last time that a bound was logged
	random       *rand.Rand
	current      atomic.Pointer[index]
	lastPanic    atomic.Int64 // unix seconds of the last one that was logged
	signer       *signer
	lastUnsigned atomic.Int64 // the same of the last answer that could not be signed
}

// New makes a Handler. It fails if the options are not usable or the metrics are
// registered already.
func New(o Options) (*Handler, error) {
	if o.Source == nil || o.Log == nil {
		return nil, plugin.Error(pluginName, errors.New("a source and a logger are required"))
	}
	if o.MaxInFlight < 0 {
		return nil, plugin.Error(pluginName, fmt.Errorf("%d queries in flight", o.MaxInFlight))
	}
	if o.MaxInFlight == 0 {
		o.MaxInFlight = DefaultMaxInFlight
	}
	if len(o.NSID) > maxNSID {
		return nil, plugin.Error(pluginName, fmt.Errorf("NSID of %d octets, at most %d are possible", len(o.NSID), maxNSID))
	}
	if o.Self != "" {
		o.Self = dns.CanonicalName(o.Self)
	}
	if o.Rate.PerSecond < 0 || o.Rate.Slip < 0 {
		return nil, plugin.Error(pluginName, fmt.Errorf("rate of %d answers and slip of %d", o.Rate.PerSecond, o.Rate.Slip))
	}
	if o.CookieSecrets == nil {
		o.CookieSecrets = func() []CookieSecret { return nil }
	}
	m, err := newMetrics(o.Registerer)
	if err != nil {
		return nil, plugin.Error(pluginName, err)
	}
	core, err := newCoreMetrics(o.Registerer)
	if err != nil {
		return nil, plugin.Error(pluginName, err)
	}
	h := &Handler{source: o.Source, challenges: o.Challenges, self: o.Self, nsid: hex.EncodeToString([]byte(o.NSID)),
		next: o.Next, log: o.Log, metrics: m, core: core, inFlight: newGate(o.MaxInFlight), random: rand.New(process{}),
		secrets: o.CookieSecrets, limiter: newLimiter(o.Rate)}
	h.signer = newSigner(h.unsigned)
	return h, nil
}

// Name implements plugin.Handler.
func (h *Handler) Name() string { return pluginName }

// Ready implements ready.Readiness: there is a zone to answer.
func (h *Handler) Ready() bool { return h.index() != nil }

// gate lets a limited number through at a time.
type gate chan struct{}

func newGate(n int) gate { return make(gate, n) }

func (g gate) enter() bool {
	select {
	case g <- struct{}{}:
		return true
	default:
		return false
	}
}

func (g gate) leave() { <-g }

// ServeDNS implements plugin.Handler. It always writes the reply itself, errors
// included: the one CoreDNS would write returns the flags of the client's OPT
// record. So the rcode it returns never asks CoreDNS to write another.
func (h *Handler) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (rcode int, err error) {
	if !h.inFlight.enter() {
		h.metrics.dropped.WithLabelValues("queries").Inc()
		// Ends a TCP connection, so that its client need not wait; UDP has none.
		return dns.RcodeSuccess, w.Close()
	}
	defer h.inFlight.leave()

	client, now := addrOf(w.RemoteAddr()), time.Now()
	cookie := readCookie(r, client, h.secrets(), now)
	size, udp := clampSize(r), true
	if (&request.Request{W: w, Req: r}).Proto() == "tcp" {
		size, udp = dns.MaxMsgSize, false
	}
	ix, key, prepare := h.look(r, cookie, udp)
	if prepare {
		if a := ix.ready(&key, now); a != nil {
			return h.sendPrepared(ctx, w, r, a, ix, client, udp, now)
		}
	}
	// An answer over the rate is found out before it is signed.
	verdict, asked := rateSend, !udp || cookie.valid
	allow := func(m *dns.Msg) bool {
		if !asked {
			verdict, asked = h.limiter.account(client, kindOf(m), now), true
		}
		return verdict == rateSend
	}
	m, outside := h.replyFrom(ix, r, cookie, key.drawn[:key.hosts], allow)
	if outside && h.next != nil {
		return plugin.NextOrFailure(pluginName, h.next, ctx, w, r)
	}
	zone := ""
	if ix != nil && !outside {
		zone = ix.name
	}
	counts := h.core.of(ctx, zone, client, !udp, r, m.Rcode)
	counts.request(r)
	allow(m)
	switch verdict {
	case rateDrop:
		h.limited(client, now, "dropped")
		return dns.RcodeSuccess, nil
	case rateTruncate:
		h.limited(client, now, "truncated")
		m = truncated(m)
	}
	length := fit(m, size)
	if prepare {
		h.keep(ix, key, m, r, now)
	}
	h.metrics.counterOf(m).Inc()
	counts.answered(length)
	if err := w.WriteMsg(m); err != nil {
		h.log.Debug("dns answer not sent", "client", w.RemoteAddr().String(), "err", err)
		return dns.RcodeSuccess, plugin.Error(pluginName, err)
	}
	counts.took(time.Since(now))
	if !plugin.ClientWrite(m.Rcode) {
		return dns.RcodeSuccess, nil
	}
	return m.Rcode, nil
}

// look finds the version of the zone to answer from, and whether the answer can be kept
// ready. A panic below is answered SERVFAIL, as one in replyFrom.
func (h *Handler) look(r *dns.Msg, c cookie, udp bool) (ix *index, key preparedKey, prepare bool) {
	defer func() {
		if p := recover(); p != nil {
			h.panicked(p)
			ix, prepare = nil, false
		}
	}()
	ix = h.index()
	key, prepare = h.preparable(ix, r, c, udp)
	return ix, key, prepare
}

// panicked counts a panic and logs it, once a minute.
func (h *Handler) panicked(p any) {
	h.metrics.panics.Inc()
	h.oncePerMinute(&h.lastPanic, func() {
		h.log.Error("panic while answering a dns query", "panic", p, "stack", string(debug.Stack()))
	})
}

// sendPrepared sends an answer that was kept ready.
func (h *Handler) sendPrepared(ctx context.Context, w dns.ResponseWriter, r *dns.Msg, a *preparedAnswer, ix *index, client netip.Addr, udp bool, now time.Time) (int, error) {
	counts := h.core.of(ctx, ix.name, client, !udp, r, dns.RcodeSuccess)
	counts.request(r)
	if udp {
		switch h.limiter.account(client, kindData, now) {
		case rateDrop:
			h.limited(client, now, "dropped")
			return dns.RcodeSuccess, nil
		case rateTruncate:
			h.limited(client, now, "truncated")
			m := newReply(r)
			m.Authoritative = true
			h.addOPT(m, r, cookie{})
			return dns.RcodeSuccess, w.WriteMsg(truncated(m))
		}
	}
	counts.answered(len(a.wire))
	if err := a.send(w, r); err != nil {
		h.log.Debug("dns answer not sent", "client", w.RemoteAddr().String(), "err", err)
		return dns.RcodeSuccess, plugin.Error(pluginName, err)
	}
	counts.took(time.Since(now))
	return dns.RcodeSuccess, nil
}

// limited notes an answer that was over the rate.
func (h *Handler) limited(client netip.Addr, now time.Time, action string) {
	h.metrics.limited.WithLabelValues(action).Inc()
	if last := h.lastRate.Load(); now.Unix()-last >= 60 && h.lastRate.CompareAndSwap(last, now.Unix()) {
		h.log.Warn("dns answers are dropped: more were asked for than a network gets", "client", client.String(), "rate", h.limiter.rate.PerSecond)
	}
}

// reply makes the reply to r; outside says that r is about a name outside the zone.
// A panic below is one query's SERVFAIL: the process takes mail too.
func (h *Handler) reply(r *dns.Msg, c cookie) (m *dns.Msg, outside bool) {
	return h.replyFrom(h.index(), r, c, nil, nil)
}

// replyFrom makes it from one version of the zone and, if it is drawn, with drawn. For allow
// see answer.
func (h *Handler) replyFrom(ix *index, r *dns.Msg, c cookie, drawn []placed, allow func(*dns.Msg) bool) (m *dns.Msg, outside bool) {
	defer func() {
		if p := recover(); p != nil {
			m, outside = newReply(r), false
			m.Rcode = dns.RcodeServerFailure
			h.panicked(p)
		}
	}()
	m = newReply(r)
	if m.Rcode = h.admit(r); c.malformed {
		m.Rcode = dns.RcodeFormatError
	}
	if m.Rcode != dns.RcodeSuccess {
		h.addOPT(m, r, c)
		return m, false
	}
	switch {
	case ix == nil:
		m.Rcode = dns.RcodeServerFailure
	case !dns.IsSubDomain(ix.name, r.Question[0].Name):
		m.Rcode, outside = dns.RcodeRefused, true
	default:
		h.answer(ix, m, r, drawn, allow)
	}
	h.addOPT(m, r, c)
	return m, outside
}

// admit rejects what is not a question to an authoritative server for the Internet
// class; dns.RcodeSuccess lets it in.
func (h *Handler) admit(r *dns.Msg) int {
	opts := 0
	for _, rr := range r.Extra {
		if rr.Header().Rrtype == dns.TypeOPT {
			opts++
		}
	}
	switch {
	case len(r.Question) != 1, opts > 1: // RFC 9619; RFC 6891 section 6.1.1
		return dns.RcodeFormatError
	case r.Opcode != dns.OpcodeQuery: // neither NOTIFY nor UPDATE: the zone comes from elsewhere
		return dns.RcodeNotImplemented
	case r.Question[0].Qclass != dns.ClassINET:
		return dns.RcodeRefused
	case r.Question[0].Qtype == dns.TypeAXFR, r.Question[0].Qtype == dns.TypeIXFR:
		return dns.RcodeRefused // there is no meaningful transfer of draws
	}
	return dns.RcodeSuccess
}

// index gives the current zone arranged for answering, nil if there is none. It is
// made once for each version; queries that meet a new version together may each
// make it, and one of them stays.
func (h *Handler) index() *index {
	z := h.source.Zone()
	if z == nil {
		return nil
	}
	old := h.current.Load()
	if old == nil || old.zone != z {
		ix := newIndex(z, h.self)
		if h.current.CompareAndSwap(old, ix) {
			h.report(old, ix)
		}
		old = ix
	}
	if old.name == "" {
		return nil
	}
	return old
}

// report logs the faults of a new version unless the one before had the same.
func (h *Handler) report(old, ix *index) {
	err := ix.faulty()
	if err == nil {
		return
	}
	if old != nil {
		if before := old.faulty(); before != nil && before.Error() == err.Error() {
			return
		}
	}
	h.log.Warn("parts of the dns zone cannot be answered", "zone", ix.zone.Name, "serial", ix.zone.Serial, "err", err)
}
