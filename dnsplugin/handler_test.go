package dnsplugin

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/test"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	"msgw/dnsplugin/plugintest"
)

type sourceFunc func() *Zone

func (f sourceFunc) Zone() *Zone { return f() }

func TestOptions(t *testing.T) {
	t.Parallel()
	good := Options{Source: sourceOf(twoHosts()), Log: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry()}
	if _, err := New(good); err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(*Options){
		"no source":             func(o *Options) { o.Source = nil },
		"no logger":             func(o *Options) { o.Log = nil },
		"negative limit":        func(o *Options) { o.MaxInFlight = -1 },
		"long NSID":             func(o *Options) { o.NSID = strings.Repeat("x", 65) },
		"metrics twice in one":  func(o *Options) {},
		"unusable, metrics too": func(o *Options) { o.Source, o.Registerer = nil, nil },
	} {
		o := good
		edit(&o)
		if _, err := New(o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// Names outside the zone go to the next plugin if there is one; nothing else does.
func TestNext(t *testing.T) {
	t.Parallel()
	var asked []string
	h := handler(t, Options{Source: sourceOf(twoHosts()), Next: plugin.HandlerFunc(func(_ context.Context, _ dns.ResponseWriter, r *dns.Msg) (int, error) {
		asked = append(asked, r.Question[0].Name)
		return dns.RcodeNameError, nil
	})})
	for _, name := range []string{"gw.example.org.", "example.org.", "no.gw.example.org."} {
		if _, err := h.ServeDNS(t.Context(), &test.ResponseWriter{}, question(name, "A")); err != nil {
			t.Fatal(err)
		}
	}
	if len(asked) != 1 || asked[0] != "example.org." {
		t.Errorf("next plugin was asked for %q", asked)
	}
}

// A new version is answered from the next query on.
func TestNewVersion(t *testing.T) {
	t.Parallel()
	src := sourceOf(nil)
	addr := serve(t, handler(t, Options{Source: src}))
	q := question("gw.example.org.", "MX")
	if got := text(ask(t, "udp", addr, q)); got != "SERVFAIL" {
		t.Error(got)
	}
	for _, tc := range []struct {
		edit func(*Zone)
		want string
	}{
		{func(z *Zone) {}, "an gw.example.org. 60 MX 10 gw1.gw.example.org.\nan gw.example.org. 60 MX 20 gw2"},
		{func(z *Zone) { z.Unsettled = true }, "an gw.example.org. 30 MX 10 gw1.gw.example.org.\nan gw.example.org. 30 MX 20 gw2"},
		{func(z *Zone) { z.Hosts[0].State = Down }, "an gw.example.org. 60 MX 10 gw2.gw.example.org.\nan gw.example.org. 60 MX 100 gw1"},
	} {
		z := twoHosts()
		tc.edit(z)
		src.p.Store(z)
		if got := text(ask(t, "udp", addr, q)); !strings.Contains(got, tc.want) {
			t.Errorf("%s\nwant\n%s", got, tc.want)
		}
	}
}

// What is over the limit is dropped at once, over TCP with the connection; what was
// let in is answered.
func TestMaxInFlight(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	entered := make(chan struct{}, 10)
	reg := prometheus.NewRegistry()
	addr := serve(t, handler(t, Options{MaxInFlight: 2, Registerer: reg, Source: sourceFunc(func() *Zone {
		entered <- struct{}{}
		<-release
		return twoHosts()
	})}))
	var wg sync.WaitGroup
	for _, network := range []string{"udp", "tcp"} {
		wg.Go(func() {
			m, _, err := (&dns.Client{Net: network, Timeout: 5 * time.Second}).Exchange(question("gw.example.org.", "MX"), addr)
			if err != nil || len(m.Answer) != 2 {
				t.Errorf("%s: %v %v", network, m, err)
			}
		})
		<-entered
	}
	if _, _, err := (&dns.Client{Net: "tcp", Timeout: 5 * time.Second}).Exchange(question("gw.example.org.", "MX"), addr); err == nil || isTimeout(err) {
		t.Errorf("over TCP above the limit: %v", err)
	}
	if _, _, err := (&dns.Client{Net: "udp", Timeout: 100 * time.Millisecond}).Exchange(question("gw.example.org.", "MX"), addr); !isTimeout(err) {
		t.Errorf("over UDP above the limit: %v", err)
	}
	close(release)
	wg.Wait()
	if got, want := gathered(t, reg), "coredns_dnsplugin_dropped_total limit=queries 2\n"; !strings.Contains(got, want) {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	// The places are free again.
	ask(t, "udp", addr, question("gw.example.org.", "MX"))
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// A failure of the program costs one answer, and a flood of them one line of log.
func TestPanic(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	var said logBuffer
	addr := serve(t, handler(t, Options{Registerer: reg, Log: slog.New(slog.NewTextHandler(&said, nil)),
		Source: sourceFunc(func() *Zone { panic("lost") })}))
	for range 3 {
		if got := text(ask(t, "udp", addr, question("gw.example.org.", "MX"))); got != "SERVFAIL" {
			t.Error(got)
		}
	}
	if s := said.String(); strings.Count(s, "level=ERROR") != 1 || !strings.Contains(s, "panic=lost") || !strings.Contains(s, "handler_test.go") {
		t.Errorf("log: %s", s)
	}
	if got := gathered(t, reg); !strings.Contains(got, "coredns_dnsplugin_panics_total 3\n") {
		t.Error(got)
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	h := handler(t, Options{Source: sourceOf(twoHosts()), Registerer: reg})
	for _, q := range []*dns.Msg{
		question("gw.example.org.", "MX"), question("GW.example.org.", "MX"), question("x.gw.example.org.", "A"), question("example.org.", "NS"),
		askType("gw.example.org.", "TYPE1000"), askType("gw.example.org.", "TYPE1001"), question("gw.example.org.", "AXFR"), new(dns.Msg),
	} {
		if _, err := h.ServeDNS(t.Context(), &test.ResponseWriter{}, q); err != nil {
			t.Fatal(err)
		}
	}
	want := `coredns_dnsplugin_dropped_total limit=connections 0
coredns_dnsplugin_dropped_total limit=queries 0
coredns_dnsplugin_dropped_total limit=writes 0
coredns_dnsplugin_mx_first_total host=gw1.gw.example.org. 2
coredns_dnsplugin_panics_total 0
coredns_dnsplugin_queries_total rcode=FORMERR type=other 1
coredns_dnsplugin_queries_total rcode=NOERROR type=MX 2
coredns_dnsplugin_queries_total rcode=NOERROR type=other 2
coredns_dnsplugin_queries_total rcode=NXDOMAIN type=A 1
coredns_dnsplugin_queries_total rcode=REFUSED type=AXFR 1
coredns_dnsplugin_queries_total rcode=REFUSED type=NS 1
coredns_dnsplugin_rate_limited_total action=dropped 0
coredns_dnsplugin_rate_limited_total action=truncated 0
coredns_dnsplugin_unsigned_total 0
`
	if got := gathered(t, reg); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}

// Answers share the records of a version; many at once must not disturb each other
// or a change of version.
func TestConcurrentAnswers(t *testing.T) {
	t.Parallel()
	src := sourceOf(fullZone(t))
	h := handler(t, Options{Source: src, Self: "gw1.gw.example.org."})
	want := map[string]string{}
	for _, tc := range answers {
		m, _ := h.reply(askType(tc.name, tc.qtype), cookie{})
		want[tc.name+tc.qtype] = text(m)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 10 {
				for _, tc := range answers {
					q := askType(tc.name, tc.qtype).SetEdns0(4096, false)
					rec := &plugintest.Recorder{}
					if _, err := h.ServeDNS(t.Context(), request.NewScrubWriter(q, rec), q); err != nil {
						t.Error(err)
					}
					if _, err := rec.Msg.Pack(); err != nil {
						t.Error(err)
					}
					if got := text(rec.Msg); got != want[tc.name+tc.qtype]+"\nar OPT ttl=00000000 size=1232 []" {
						t.Errorf("%s %s\n%s\nwant\n%s", tc.name, tc.qtype, got, want[tc.name+tc.qtype])
					}
				}
				if i%3 == 0 {
					src.p.Store(fullZone(t))
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkDrawnMX(b *testing.B) {
	z := twoHosts()
	z.Hosts[0].Weight, z.Hosts[1].Weight = 3, 1
	h := handler(b, Options{Source: sourceOf(z)})
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			q := question("gw.example.org.", "MX").SetEdns0(1232, false)
			w := &packer{}
			if _, err := h.ServeDNS(context.Background(), request.NewScrubWriter(q, w), q); err != nil || w.n == 0 {
				b.Fatal(w.n, err)
			}
		}
	})
}

// packer is a ResponseWriter that packs what it gets.
type packer struct {
	test.ResponseWriter
	n int
}

func (p *packer) WriteMsg(m *dns.Msg) error {
	wire, err := m.Pack()
	p.n = len(wire)
	return err
}

func (p *packer) Write(wire []byte) (int, error) {
	p.n = len(wire)
	return p.n, nil
}

var packerAddr = net.Addr(&net.UDPAddr{IP: net.IPv4(192, 0, 2, 9), Port: 1053})

func (p *packer) RemoteAddr() net.Addr { return packerAddr }
