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
	certLast   = prometheus.NewDesc("msgw_certificate_last_attempt_timestamp_seconds", "When a certificate was last ordered.", []string{"name"}, nil)
	certNext   = prometheus.NewDesc("msgw_certificate_next_attempt_timestamp_seconds", "When a certificate is ordered next.", []string{"name"}, nil)
	certFailed = prometheus.NewDesc("msgw_certificate_failing", "1 if the last order of a certificate failed.", []string{"name"}, nil)
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
		if i.Source != certs.FromACME {
			continue
		}
		if !i.Last.IsZero() {
			set(certLast, float64(i.Last.Unix()), name)
		}
		if !i.Next.IsZero() {
			set(certNext, float64(i.Next.Unix()), name)
		}
		failing := 0.0
		if i.Error != "" {
			failing = 1
		}
		set(certFailed, failing, name)
	}
	set(certLate, float64(trouble))
}
