package dnsplugin

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/coredns/coredns/plugin/metrics/vars"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// Names and labels are those of CoreDNS, so that its dashboards work.
func TestCoreMetricsNames(t *testing.T) {
	t.Parallel()
	c, err := newCoreMetrics(nil)
	if err != nil {
		t.Fatal(err)
	}
	described := func(c prometheus.Collector) string {
		descs := make(chan *prometheus.Desc, 1)
		c.Describe(descs)
		return strings.Join(regexp.MustCompile(`fqName: "[^"]*"|variableLabels: \{[^}]*\}`).FindAllString((<-descs).String(), -1), " ")
	}
	for ours, theirs := range map[prometheus.Collector]prometheus.Collector{c.requests: vars.RequestCount, c.do: vars.RequestDo, c.responses: vars.ResponseRcode,
		c.duration: vars.RequestDuration, c.requestSize: vars.RequestSize, c.answerSize: vars.ResponseSize} {
		if o, th := described(ours), described(theirs); o != th || !strings.Contains(o, "coredns_dns_") || !strings.Contains(o, "{server,zone,view") {
			t.Errorf("%s, CoreDNS has %s", o, th)
		}
	}
}

// Two servers in one process count for themselves.
func TestCoreMetrics(t *testing.T) {
	t.Parallel()
	one, two := prometheus.NewRegistry(), prometheus.NewRegistry()
	first := serve(t, handler(t, Options{Source: sourceOf(twoHosts()), Registerer: one}))
	second := serve(t, handler(t, Options{Source: sourceOf(twoHosts()), Registerer: two}))
	ask := func(addr, network, name string, qtype uint16, do bool) {
		t.Helper()
		m := new(dns.Msg).SetQuestion(name, qtype)
		if do {
			m.SetEdns0(1232, true)
		}
		if _, _, err := (&dns.Client{Net: network}).Exchange(m, addr); err != nil {
			t.Fatal(err)
		}
	}
	count := func(t *testing.T, reg *prometheus.Registry, name string) int {
		t.Helper()
		n, err := testutil.GatherAndCount(reg, name)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	zone := twoHosts().Name
	ask(first, "udp", zone, dns.TypeMX, true)
	ask(first, "udp", zone, dns.TypeMX, false)
	ask(first, "tcp", "none."+zone, dns.TypeCAA, false)
	ask(first, "udp", "example.com.", dns.TypeA, false)
	ask(second, "udp", zone, dns.TypeSOA, false)

	want := fmt.Sprintf(`# HELP coredns_dns_requests_total DNS requests, by zone, protocol, family and type.
# TYPE coredns_dns_requests_total counter
coredns_dns_requests_total{family="1",proto="tcp",server="dns://%[1]s",type="other",view="",zone="%[2]s"} 1
coredns_dns_requests_total{family="1",proto="udp",server="dns://%[1]s",type="A",view="",zone="dropped"} 1
coredns_dns_requests_total{family="1",proto="udp",server="dns://%[1]s",type="MX",view="",zone="%[2]s"} 2
# HELP coredns_dns_responses_total DNS responses, by response code.
# TYPE coredns_dns_responses_total counter
coredns_dns_responses_total{plugin="dnsplugin",rcode="NOERROR",server="dns://%[1]s",view="",zone="%[2]s"} 2
coredns_dns_responses_total{plugin="dnsplugin",rcode="NXDOMAIN",server="dns://%[1]s",view="",zone="%[2]s"} 1
coredns_dns_responses_total{plugin="dnsplugin",rcode="REFUSED",server="dns://%[1]s",view="",zone="dropped"} 1
# HELP coredns_dns_do_requests_total DNS requests with the DO bit, by zone.
# TYPE coredns_dns_do_requests_total counter
coredns_dns_do_requests_total{server="dns://%[1]s",view="",zone="%[2]s"} 1
coredns_dns_do_requests_total{server="dns://%[1]s",view="",zone="dropped"} 0
`, first, zone)
	if err := testutil.GatherAndCompare(one, strings.NewReader(want), "coredns_dns_requests_total", "coredns_dns_responses_total", "coredns_dns_do_requests_total"); err != nil {
		t.Error(err)
	}
	if n := count(t, two, "coredns_dns_requests_total"); n != 1 {
		t.Errorf("the other server counts %d kinds of requests, 1 was asked", n)
	}
	if n := count(t, one, "coredns_dns_request_duration_seconds"); n != 2 {
		t.Errorf("durations of %d zones, of the zone and of what is dropped were expected", n)
	}
}

// Counting a query allocates nothing. It is not parallel: allocations are counted for the
// whole process.
func TestCountingAllocatesNothing(t *testing.T) {
	c, err := newCoreMetrics(nil)
	if err != nil {
		t.Fatal(err)
	}
	q, client := question("gw.example.org.", "MX").SetEdns0(1232, true), netip.MustParseAddr("192.0.2.99")
	ctx := t.Context()
	if n := testing.AllocsPerRun(1000, func() {
		s := c.of(ctx, "gw.example.org.", client, false, q, dns.RcodeSuccess)
		s.request(q)
		s.answered(100)
		s.took(time.Millisecond)
	}); n > 0 {
		t.Errorf("%v allocations for each query", n)
	}
}
