package pop3d

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Results of a login, as counted and logged.
const (
	loginOK          = "ok"
	loginCredentials = "credentials"
	loginInUse       = "in_use"
	loginTemporary   = "temporary"
	loginThrottled   = "throttled"
)

type metrics struct {
	logins    *prometheus.CounterVec
	retrieved prometheus.Counter
	deleted   prometheus.Counter
	octets    prometheus.Counter
	sessions  prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) *metrics {
	f := promauto.With(r)
	m := &metrics{
		logins: f.NewCounterVec(prometheus.CounterOpts{
			Name: "msgw_pop3_logins_total",
			Help: "POP3 logins by result: ok, credentials, in_use, temporary, throttled.",
		}, []string{"result"}),
		retrieved: f.NewCounter(prometheus.CounterOpts{
			Name: "msgw_pop3_retrieved_total",
			Help: "Messages sent whole by POP3 RETR.",
		}),
		deleted: f.NewCounter(prometheus.CounterOpts{
			Name: "msgw_pop3_deleted_total",
			Help: "Messages deleted durably at POP3 QUIT.",
		}),
		octets: f.NewCounter(prometheus.CounterOpts{
			Name: "msgw_pop3_octets_total",
			Help: "Octets of messages sent whole by POP3 RETR, as listed.",
		}),
		sessions: f.NewGauge(prometheus.GaugeOpts{
			Name: "msgw_pop3_sessions",
			Help: "POP3 connections open now.",
		}),
	}
	for _, result := range []string{loginOK, loginCredentials, loginInUse, loginTemporary, loginThrottled} {
		m.logins.WithLabelValues(result) // so that each is there at 0
	}
	return m
}
