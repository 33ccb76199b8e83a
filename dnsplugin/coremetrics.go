package dnsplugin

import (
	"context"
	"maps"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/metrics/vars"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

// coreMetrics are those that CoreDNS counts for every plugin, by the same names and labels.
// CoreDNS has them once in a process, at Prometheus' default registerer: two servers in one
// process would share the counts there.
type coreMetrics struct {
	requests, do, responses           *prometheus.CounterVec
	duration, requestSize, answerSize *prometheus.HistogramVec

	mu    sync.Mutex // held to add to known
	known atomic.Pointer[map[labels]*series]
}

// labels of what is counted for one query.
type labels struct {
	server, zone string
	tcp, v6      bool
	qtype        uint16 // TypeNone: other
	rcode        int
}

// series is what is counted under the same labels, looked up once.
type series struct {
	requests, do, responses           prometheus.Counter
	duration, requestSize, answerSize prometheus.Observer
}

func newCoreMetrics(reg prometheus.Registerer) (*coreMetrics, error) {
	sizes := []float64{0, 100, 200, 300, 400, 511, 1023, 2047, 4095, 8291, 16e3, 32e3, 48e3, 64e3}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: plugin.Namespace, Subsystem: "dns", Name: name, Help: help}, labels)
	}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: plugin.Namespace, Subsystem: "dns", Name: name, Help: help, Buckets: buckets}, labels)
	}
	c := &coreMetrics{
		requests:    counter("requests_total", "DNS requests, by zone, protocol, family and type.", "server", "zone", "view", "proto", "family", "type"),
		do:          counter("do_requests_total", "DNS requests with the DO bit, by zone.", "server", "zone", "view"),
		responses:   counter("responses_total", "DNS responses, by response code.", "server", "zone", "view", "rcode", "plugin"),
		duration:    histogram("request_duration_seconds", "Time that each request took.", plugin.TimeBuckets, "server", "zone", "view"),
		requestSize: histogram("request_size_bytes", "Octets of each request.", sizes, "server", "zone", "view", "proto"),
		answerSize:  histogram("response_size_bytes", "Octets of each response.", sizes, "server", "zone", "view", "proto"),
	}
	c.known.Store(&map[labels]*series{})
	if reg == nil {
		return c, nil
	}
	for _, x := range []prometheus.Collector{c.requests, c.do, c.responses, c.duration, c.requestSize, c.answerSize} {
		if err := reg.Register(x); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// coreTypes are the types of requests that CoreDNS tells apart.
var coreTypes = map[uint16]bool{dns.TypeA: true, dns.TypeAAAA: true, dns.TypeANY: true, dns.TypeAXFR: true, dns.TypeCNAME: true, dns.TypeDNSKEY: true,
	dns.TypeDS: true, dns.TypeHTTPS: true, dns.TypeIXFR: true, dns.TypeMX: true, dns.TypeNS: true, dns.TypeNSEC: true, dns.TypeNSEC3: true,
	dns.TypePTR: true, dns.TypeRRSIG: true, dns.TypeSOA: true, dns.TypeSRV: true, dns.TypeSVCB: true, dns.TypeTXT: true}

// of returns the series of a query and its answer. zone is empty if the name is in none.
func (c *coreMetrics) of(ctx context.Context, zone string, client netip.Addr, tcp bool, r *dns.Msg, rcode int) *series {
	l := labels{zone: zone, tcp: tcp, v6: client.Is6(), rcode: rcode}
	if l.zone == "" {
		l.zone = vars.Dropped
	}
	if s, ok := ctx.Value(dnsserver.Key{}).(*dnsserver.Server); ok {
		l.server = s.Addr
	}
	if len(r.Question) == 1 && coreTypes[r.Question[0].Qtype] {
		l.qtype = r.Question[0].Qtype
	}
	if s := (*c.known.Load())[l]; s != nil {
		return s
	}
	return c.add(l)
}

func (c *coreMetrics) add(l labels) *series {
	c.mu.Lock()
	defer c.mu.Unlock()
	known := *c.known.Load()
	if s := known[l]; s != nil {
		return s
	}
	proto, family, qtype := "udp", "1", "other"
	if l.tcp {
		proto = "tcp"
	}
	if l.v6 {
		family = "2"
	}
	if l.qtype != dns.TypeNone {
		qtype = dns.TypeToString[l.qtype]
	}
	const view = "" // there are none here
	s := &series{
		requests:    c.requests.WithLabelValues(l.server, l.zone, view, proto, family, qtype),
		do:          c.do.WithLabelValues(l.server, l.zone, view),
		responses:   c.responses.WithLabelValues(l.server, l.zone, view, dns.RcodeToString[l.rcode], pluginName),
		duration:    c.duration.WithLabelValues(l.server, l.zone, view),
		requestSize: c.requestSize.WithLabelValues(l.server, l.zone, view, proto),
		answerSize:  c.answerSize.WithLabelValues(l.server, l.zone, view, proto),
	}
	with := maps.Clone(known)
	with[l] = s
	c.known.Store(&with)
	return s
}

// request counts a query.
func (s *series) request(r *dns.Msg) {
	s.requests.Inc()
	s.requestSize.Observe(float64(r.Len()))
	if o := r.IsEdns0(); o != nil && o.Do() {
		s.do.Inc()
	}
}

// answered counts the answer to it.
func (s *series) answered(size int) {
	s.responses.Inc()
	s.answerSize.Observe(float64(size))
}

// took notes how long it took.
func (s *series) took(d time.Duration) { s.duration.Observe(d.Seconds()) }
