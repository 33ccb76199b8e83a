package delegation

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// zoneServer answers from records: a referral for what is below a delegation, an answer or
// its absence for the rest, as the servers of a parent do; or as a resolver does.
type zoneServer struct {
	records  []string
	resolver bool
	refuses  bool
	asked    atomic.Int32
}

func (z *zoneServer) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	z.asked.Add(1)
	m := new(dns.Msg).SetReply(q)
	m.Authoritative, m.RecursionAvailable = !z.resolver, z.resolver
	name, qtype := q.Question[0].Name, q.Question[0].Qtype
	exists := false
	for _, line := range z.records {
		rr, err := dns.NewRR(line)
		if err != nil {
			panic(err)
		}
		h := rr.Header()
		exists = exists || dns.IsSubDomain(name, h.Name)
		switch {
		case h.Name == name && h.Rrtype == qtype && (z.resolver || qtype != dns.TypeNS || name == "example.com."):
			m.Answer = append(m.Answer, rr)
		case !z.resolver && h.Rrtype == dns.TypeNS && h.Name != "example.com." && dns.IsSubDomain(h.Name, name) && qtype != dns.TypeDS:
			m.Authoritative = false
			m.Ns = append(m.Ns, rr)
		}
	}
	if len(m.Ns) > 0 {
		m.Answer = nil
		for _, line := range z.records {
			if rr, _ := dns.NewRR(line); addressOf(rr) != "" && dns.IsSubDomain(m.Ns[0].Header().Name, rr.Header().Name) {
				m.Extra = append(m.Extra, rr)
			}
		}
	}
	if !exists {
		m.Rcode = dns.RcodeNameError
	}
	if z.refuses {
		m = new(dns.Msg).SetRcode(q, dns.RcodeRefused)
	}
	if o := q.IsEdns0(); o != nil && w.LocalAddr().Network() == "udp" && m.Len() > int(o.UDPSize()) {
		m.Truncate(int(o.UDPSize()))
	}
	w.WriteMsg(m)
}

// serve runs a server until the test ends; port 0 is any.
func (z *zoneServer) serve(t *testing.T, host, port string) string {
	t.Helper()
	for range 20 {
		l, err := net.Listen("tcp", net.JoinHostPort(host, port))
		if err != nil {
			t.Fatal(err)
		}
		p, err := net.ListenPacket("udp", l.Addr().String())
		if err != nil && port == "0" {
			l.Close()
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range []*dns.Server{{Listener: l, Handler: z}, {PacketConn: p, Handler: z}} {
			started := make(chan struct{})
			s.NotifyStartedFunc = func() { close(started) }
			go s.ActivateAndServe()
			<-started
			t.Cleanup(func() { s.Shutdown() })
		}
		return l.Addr().String()
	}
	t.Fatal("no port is free")
	return ""
}

// tree serves a parent at two addresses, and a resolver that knows it.
func tree(t *testing.T, first, second *zoneServer) Looker {
	t.Helper()
	addr := first.serve(t, "127.0.0.1", "0")
	_, port, _ := net.SplitHostPort(addr)
	second.serve(t, "127.0.0.2", port)
	resolver := &zoneServer{resolver: true, records: []string{"example.com. NS ns1.example.com.", "example.com. NS ns2.example.com.",
		"ns1.example.com. A 127.0.0.1", "ns1.example.com. AAAA ::1", "ns2.example.com. A 127.0.0.2", "com. NS ns.com.", "ns.com. A 127.0.0.9"}}
	return Looker{Resolver: resolver.serve(t, "127.0.0.1", "0"), Port: port}
}

const ds = "12345 13 2 ABCD"

var delegated = []string{
	"example.com. NS ns1.example.com.",
	"gw.dept.example.com. NS gw1.gw.dept.example.com.", "gw.dept.example.com. NS gw2.gw.dept.example.com.",
	"gw1.gw.dept.example.com. A 192.0.2.1", "gw1.gw.dept.example.com. AAAA 2001:db8::1", "gw2.gw.dept.example.com. A 192.0.2.2",
	"gw.dept.example.com. 7200 DS " + ds,
}

var hosts = []string{"gw1.gw.dept.example.com.", "gw2.gw.dept.example.com.", "elsewhere.example.net."}

func TestDelegated(t *testing.T) {
	t.Parallel()
	one, two := &zoneServer{records: delegated}, &zoneServer{records: delegated[:len(delegated)-1]}
	// The zone between, dept.example.com, is none.
	v, err := tree(t, one, two).Look(t.Context(), "gw.dept.example.com", hosts)
	if err != nil || v.Parent != "example.com" || len(v.Servers) != 2 || v.Hidden != nil {
		t.Fatalf("%+v, %v", v, err)
	}
	for i, s := range v.Servers {
		if s.Error != "" || !s.Delegated || !slices.Equal(s.NS, hosts[:2]) ||
			!slices.Equal(s.Glue, []string{"gw1.gw.dept.example.com. 192.0.2.1", "gw1.gw.dept.example.com. 2001:db8::1", "gw2.gw.dept.example.com. 192.0.2.2"}) {
			t.Errorf("server %d: %+v", i, s)
		}
	}
	if s := v.Servers[0]; !slices.Equal(s.DS, []string{ds}) || s.DSTTL != 7200 || len(v.Servers[1].DS) != 0 {
		t.Errorf("%+v", v.Servers)
	}
}

// A long referral comes by TCP.
func TestTruncated(t *testing.T) {
	t.Parallel()
	records := delegated
	for range 40 {
		records = append(records[:len(records):len(records)], "gw.dept.example.com. NS "+strings.Repeat("x", 10+len(records))+".example.net.")
	}
	z := &zoneServer{records: records}
	v, err := tree(t, z, z).Look(t.Context(), "gw.dept.example.com", nil)
	if err != nil || len(v.Servers[0].NS) != 42 {
		t.Errorf("%+v, %v", v, err)
	}
}

// Before the delegation, what it will hide is found.
func TestHidden(t *testing.T) {
	t.Parallel()
	z := &zoneServer{records: []string{"example.com. NS ns1.example.com.", "gw.dept.example.com. 60 A 198.51.100.7", "gw.dept.example.com. 60 MX 10 gw.dept.example.com.",
		"gw2.gw.dept.example.com. 60 AAAA 2001:db8::7", "elsewhere.example.net. A 192.0.2.9"}}
	v, err := tree(t, z, z).Look(t.Context(), "gw.dept.example.com", hosts)
	want := []string{"gw.dept.example.com. 60 IN A 198.51.100.7", "gw.dept.example.com. 60 IN MX 10 gw.dept.example.com.", "gw2.gw.dept.example.com. 60 IN AAAA 2001:db8::7"}
	if err != nil || !slices.Equal(v.Hidden, want) || v.Servers[0].Delegated || v.Servers[0].Error != "" {
		t.Errorf("%+v, %v", v, err)
	}
	if n := z.asked.Load(); n > 14 {
		t.Errorf("%d questions", n)
	}
}

// A server that refuses or is silent says nothing, and the others still do.
func TestUnhelpfulServers(t *testing.T) {
	t.Parallel()
	v, err := tree(t, &zoneServer{refuses: true}, &zoneServer{records: delegated}).Look(t.Context(), "gw.dept.example.com", hosts)
	if err != nil || v.Servers[0].Error != "it answers REFUSED" || v.Servers[1].Error != "" {
		t.Errorf("%+v, %v", v, err)
	}
	for want, l := range map[string]Looker{
		"refused":                 {Resolver: closedPort(t)},
		"answers REFUSED for":     {Resolver: (&zoneServer{refuses: true}).serve(t, "127.0.0.1", "0")},
		"names no servers":        {Resolver: (&zoneServer{resolver: true, records: []string{"com. A 127.0.0.1"}}).serve(t, "127.0.0.1", "0")},
		"knows no address of ns.": {Resolver: (&zoneServer{resolver: true, records: []string{"com. NS ns."}}).serve(t, "127.0.0.1", "0")},
	} {
		if _, err := l.Look(t.Context(), "gw.dept.example.com", nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	begun := time.Now()
	if _, err := (Looker{Resolver: silent.LocalAddr().String()}).Look(ctx, "gw.dept.example.com", nil); !errors.Is(err, context.DeadlineExceeded) && !errors.As(err, new(net.Error)) || time.Since(begun) > time.Second {
		t.Errorf("%v after %v", err, time.Since(begun))
	}
}

func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.LocalAddr().String()
}

// However many servers and hosts there are, the questions are bounded.
func TestQuestionsAreBounded(t *testing.T) {
	t.Parallel()
	z := &zoneServer{records: []string{"example.com. NS x."}}
	k := &look{port: "53"}
	addr := z.serve(t, "127.0.0.1", "0")
	var err error
	for range maxQuestions + 1 {
		_, err = k.ask(t.Context(), addr, "example.com.", dns.TypeA, false)
	}
	if !errors.Is(err, errTooMany) || z.asked.Load() != maxQuestions {
		t.Errorf("%v after %d", err, z.asked.Load())
	}
}
