package smtpnode

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	messages *prometheus.CounterVec
	octets   prometheus.Counter
	open     prometheus.Gauge
	refused  prometheus.Counter
	seconds  prometheus.Histogram
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		messages: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "msgw_smtp_messages_total",
			Help: "Transfers by outcome: accepted, or the class of the refusal."}, []string{"outcome"}),
		octets: prometheus.NewCounter(prometheus.CounterOpts{Name: "msgw_smtp_received_octets_total",
			Help: "Octets of accepted messages."}),
		open: prometheus.NewGauge(prometheus.GaugeOpts{Name: "msgw_smtp_connections",
			Help: "Connections open now."}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{Name: "msgw_smtp_connections_refused_total",
			Help: "Connections beyond a limit."}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "msgw_smtp_commit_seconds",
			Help: "From the last octet of a message to its durable copy.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 14)}),
	}
	for _, o := range []string{"accepted", "refused-recipient", "restricted", "refused", "incomplete"} {
		m.messages.WithLabelValues(o) // shown from the start, as 0
	}
	if r != nil {
		r.MustRegister(m.messages, m.octets, m.open, m.refused, m.seconds)
	}
	return m
}
