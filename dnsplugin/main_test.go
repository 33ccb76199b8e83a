package dnsplugin

import (
	"bytes"
	"context"
	"fmt"
	golog "log"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

// TestMain sees to it that nothing is said on Go's global log, where CoreDNS would
// say it.
func TestMain(m *testing.M) {
	var said logBuffer
	golog.SetOutput(&said)
	code := m.Run()
	if s := said.String(); s != "" {
		fmt.Fprintf(os.Stderr, "on the global log:\n%s", s)
		code = 1
	}
	os.Exit(code)
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// source is a Source whose zone a test changes.
type source struct{ p atomic.Pointer[Zone] }

func (s *source) Zone() *Zone { return s.p.Load() }

func sourceOf(z *Zone) *source {
	s := &source{}
	s.p.Store(z)
	return s
}

// challenges is a Challenges of fixed values.
type challenges map[string][]string

func (c challenges) TXT(name string) []string { return c[name] }

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func records(t testing.TB, lines ...string) []dns.RR {
	t.Helper()
	var out []dns.RR
	for _, l := range lines {
		rr, err := dns.NewRR(l)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, rr)
	}
	return out
}

// twoHosts is a zone with two mail hosts of weights 1 and 0, whose MX answer is
// always the same.
func twoHosts() *Zone {
	return &Zone{Name: "gw.example.org.", Serial: 7, Contact: "post.master@example.org", Hosts: []Host{
		{Name: "gw1.gw.example.org.", V4: addrs("192.0.2.1"), V6: addrs("2001:db8::1"), Weight: 1, NameServer: true},
		{Name: "gw2.gw.example.org.", V4: addrs("192.0.2.2"), V6: addrs("2001:db8::2"), Weight: 0, NameServer: true},
	}}
}

func handler(t testing.TB, o Options) *Handler {
	t.Helper()
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	h, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// serve runs h on a free port of the loopback until the test ends.
func serve(t testing.TB, h *Handler) string {
	t.Helper()
	s := NewServer(h, "127.0.0.1:0")
	if err := s.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s.Addr()[0].String()
}

func ask(t testing.TB, network, addr string, q *dns.Msg) *dns.Msg {
	t.Helper()
	c := &dns.Client{Net: network, Timeout: 5 * time.Second, UDPSize: 4096}
	m, _, err := c.Exchange(q, addr)
	if err != nil {
		t.Fatalf("%s over %s: %v", q.Question[0].String(), network, err)
	}
	return m
}

func question(name, qtype string) *dns.Msg {
	q := new(dns.Msg).SetQuestion(name, dns.StringToType[qtype])
	q.RecursionDesired = false
	return q
}

// text writes a whole reply: "rcode flags", then one line per record.
func text(m *dns.Msg) string {
	var b strings.Builder
	b.WriteString(dns.RcodeToString[m.Rcode])
	for _, f := range []struct {
		set  bool
		name string
	}{{m.Authoritative, "aa"}, {m.Truncated, "tc"}, {m.RecursionDesired, "rd"}, {m.RecursionAvailable, "ra"},
		{m.Zero, "z"}, {m.AuthenticatedData, "ad"}, {m.CheckingDisabled, "cd"}} {
		if f.set {
			b.WriteString(" " + f.name)
		}
	}
	for _, section := range []struct {
		name string
		rrs  []dns.RR
	}{{"an", m.Answer}, {"ns", m.Ns}, {"ar", m.Extra}} {
		for _, rr := range section.rrs {
			if o, ok := rr.(*dns.OPT); ok {
				fmt.Fprintf(&b, "\n%s OPT ttl=%08x size=%d %v", section.name, o.Hdr.Ttl, o.UDPSize(), o.Option)
				continue
			}
			b.WriteString("\n" + section.name + " " + strings.ReplaceAll(strings.Replace(rr.String(), "\tIN\t", "\t", 1), "\t", " "))
		}
	}
	return b.String()
}

// gathered gives the plugin's own metrics in reg as lines "name label=value.. count".
func gathered(t testing.TB, reg *prometheus.Registry) string {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, f := range families {
		if strings.HasPrefix(f.GetName(), "coredns_dns_") {
			continue
		}
		for _, m := range f.GetMetric() {
			b.WriteString(f.GetName())
			for _, l := range m.GetLabel() {
				fmt.Fprintf(&b, " %s=%s", l.GetName(), l.GetValue())
			}
			fmt.Fprintf(&b, " %v\n", m.GetCounter().GetValue())
		}
	}
	return b.String()
}
