package node

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"msgw/internal/certs"
)

// certMetrics exports how the certificates are.
type certMetrics struct{ m *certs.Manager }

var (
	certExpiry = prometheus.NewDesc("msgw_certificate_expiry_seconds", "Time until the certificate that is served for this host ends; below 0 once it has.", nil, nil)
	certEnds   = prometheus.NewDesc("msgw_certificate_not_after_timestamp_seconds", "When a certificate ends.", []string{"name", "source"}, nil)
	certLast   = prometheus.NewDesc("msgw_certificate_last_attempt_timestamp_seconds", "When a certificate was last ordered; 0: it never was.", []string{"name", "source"}, nil)
	certNext   = prometheus.NewDesc("msgw_certificate_next_attempt_timestamp_seconds", "When a certificate is ordered next; 0: it is not.", []string{"name", "source"}, nil)
	certFailed = prometheus.NewDesc("msgw_certificate_failing", "1 if a certificate could not be ordered, made or read the last time.", []string{"name", "source"}, nil)
	certLate   = prometheus.NewDesc("msgw_certificate_trouble", "Certificates that a person should look at.", nil, nil)
)

func (c certMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{certExpiry, certEnds, certLast, certNext, certFailed, certLate} {
		ch <- d
	}
}

func (c certMetrics) Collect(ch chan<- prometheus.Metric) {
	set := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	trouble, said := 0, map[[2]string]bool{}
	for _, i := range c.m.List() {
		if i.Host {
			set(certExpiry, time.Until(i.NotAfter).Seconds())
		}
		if i.Trouble != "" {
			trouble++
		}
		if len(i.Names) == 0 {
			continue
		}
		name := i.Names[0]
		if key := [2]string{name, i.Source}; said[key] {
			continue // two files for one host
		} else {
			said[key] = true
		}
		if !i.NotAfter.IsZero() {
			set(certEnds, float64(i.NotAfter.Unix()), name, i.Source)
		}
		failing := 0.0
		if i.Error != "" {
			failing = 1
		}
		set(certFailed, failing, name, i.Source)
		set(certLast, unix(i.Last), name, i.Source)
		set(certNext, unix(i.Next), name, i.Source)
	}
	set(certLate, float64(trouble))
}

// unix is a time as metrics have it; none is 0.
func unix(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.Unix())
}
