package dnsplugin

import (
	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

// metrics counts. Label values come from fixed lists or from the configuration,
// never from a client.
type metrics struct {
	queries  *prometheus.CounterVec
	first    *prometheus.CounterVec
	dropped  *prometheus.CounterVec
	limited  *prometheus.CounterVec
	panics   prometheus.Counter
	unsigned prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	opts := func(name, help string) prometheus.CounterOpts {
		return prometheus.CounterOpts{Namespace: plugin.Namespace, Subsystem: pluginName, Name: name, Help: help}
	}
	m := &metrics{
		queries:  prometheus.NewCounterVec(opts("queries_total", "Queries answered, by type and response code."), []string{"type", "rcode"}),
		first:    prometheus.NewCounterVec(opts("mx_first_total", "Drawn MX answers, by the host that comes first."), []string{"host"}),
		dropped:  prometheus.NewCounterVec(opts("dropped_total", "What was dropped unanswered, by the limit it was over."), []string{"limit"}),
		limited:  prometheus.NewCounterVec(opts("rate_limited_total", "Answers by UDP beyond the rate of a network, by what became of them."), []string{"action"}),
		unsigned: prometheus.NewCounter(opts("unsigned_total", "Sets of a signed zone that were answered without a signature because none could be made.")),
		panics:   prometheus.NewCounter(opts("panics_total", "Queries answered SERVFAIL because the program failed.")),
	}
	for _, limit := range []string{"queries", "writes", "connections"} {
		m.dropped.WithLabelValues(limit) // shown from the start, as 0
	}
	for _, action := range []string{"dropped", "truncated"} {
		m.limited.WithLabelValues(action)
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.queries, m.first, m.dropped, m.limited, m.panics, m.unsigned} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// counterOf returns what counts a reply.
func (c *metrics) counterOf(m *dns.Msg) prometheus.Counter {
	qtype := "other"
	if len(m.Question) == 1 {
		switch t := m.Question[0].Qtype; t {
		case dns.TypeA, dns.TypeAAAA, dns.TypeANY, dns.TypeAXFR, dns.TypeCAA, dns.TypeCNAME, dns.TypeDNSKEY, dns.TypeDS,
			dns.TypeHTTPS, dns.TypeIXFR, dns.TypeMX, dns.TypeNS, dns.TypePTR, dns.TypeSOA, dns.TypeSRV, dns.TypeSVCB,
			dns.TypeTLSA, dns.TypeTXT:
			qtype = dns.TypeToString[t]
		}
	}
	return c.queries.WithLabelValues(qtype, dns.RcodeToString[m.Rcode])
}
