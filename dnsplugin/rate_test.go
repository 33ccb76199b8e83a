package dnsplugin

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coredns/coredns/plugin/test"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestRate(t *testing.T) {
	t.Parallel()
	l := newLimiter(Rate{PerSecond: 10, Slip: 2, Exempt: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/28")}})
	now := time.Unix(1800000000, 0)
	count := func(addr string, kind byte, n int) (got [3]int) {
		for range n {
			got[l.account(netip.MustParseAddr(addr), kind, now)]++
		}
		return got
	}
	for _, tc := range []struct {
		what, addr string
		kind       byte
		want       [3]int // sent, truncated, dropped
	}{
		{"a second's worth, then every other truncated", "192.0.2.1", kindData, [3]int{10, 10, 10}},
		{"the same network", "192.0.2.200", kindData, [3]int{0, 15, 15}},
		{"the same network, mapped", "192.0.2.9", kindData, [3]int{0, 15, 15}},
		{"another kind", "192.0.2.1", kindNoName, [3]int{10, 10, 10}},
		{"another network", "192.0.3.1", kindData, [3]int{10, 10, 10}},
		{"a /56", "2001:db8:0:100::1", kindError, [3]int{10, 10, 10}},
		{"the same /56", "2001:db8:0:1ff::1", kindError, [3]int{0, 15, 15}},
		{"another /56", "2001:db8:0:200::1", kindError, [3]int{10, 10, 10}},
		{"exempt", "198.51.100.15", kindData, [3]int{30, 0, 0}},
		{"beside it", "198.51.100.16", kindData, [3]int{10, 10, 10}},
		{"this machine", "127.0.0.9", kindData, [3]int{30, 0, 0}},
		{"this machine, IPv6", "::1", kindData, [3]int{30, 0, 0}},
	} {
		if got := count(tc.addr, tc.kind, 30); got != tc.want {
			t.Errorf("%s: %v, want %v", tc.what, got, tc.want)
		}
	}
	now = now.Add(500 * time.Millisecond)
	if got := count("192.0.2.1", kindData, 30); got[rateSend] != 5 {
		t.Errorf("half a second later: %v", got)
	}
	now = now.Add(time.Hour)
	if got := count("192.0.2.1", kindData, 30); got[rateSend] != 10 {
		t.Errorf("an hour later: %v", got)
	}
	now = now.Add(-time.Hour) // a clock that is set back
	if got := count("192.0.2.1", kindData, 30); got[rateSend] != 0 {
		t.Errorf("with the clock set back: %v", got)
	}
	for slip, want := range map[int][3]int{0: {10, 0, 20}, 1: {10, 20, 0}, 5: {10, 4, 16}} {
		l = newLimiter(Rate{PerSecond: 10, Slip: slip})
		if got := count("192.0.2.1", kindData, 30); got != want {
			t.Errorf("slip %d: %v, want %v", slip, got, want)
		}
	}
	if l = newLimiter(Rate{}); count("192.0.2.1", kindData, 1000) != [3]int{1000, 0, 0} {
		t.Error("the zero rate bounds something")
	}
}

// Counting costs no memory, whoever asks.
func TestRateAllocates(t *testing.T) { // not beside others, whose memory would be counted
	l, a, now := newLimiter(Rate{PerSecond: 5, Slip: 2}), netip.MustParseAddr("192.0.2.1"), time.Unix(1800000000, 0)
	if n := testing.AllocsPerRun(100, func() { l.account(a, kindData, now) }); n > 0 {
		t.Errorf("%v allocations for an answer", n)
	}
}

// What is over the rate is truncated by UDP and answered by TCP, and to a client with a
// cookie.
func TestRateOnTheWire(t *testing.T) {
	t.Parallel()
	synctest.Test(t, testRateOnTheWire) // so that no second passes
}

func testRateOnTheWire(t *testing.T) {
	z := &Zone{Name: "gw.example.org.", Serial: 1, Hosts: []Host{
		{Name: "a.gw.example.org.", V4: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Weight: 1, NameServer: true}}}
	secrets := []CookieSecret{{1}}
	h, err := New(Options{Source: sourceOf(z), Log: slog.New(slog.DiscardHandler), Rate: Rate{PerSecond: 1, Slip: 1}, CookieSecrets: func() []CookieSecret { return secrets }})
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddr("192.0.2.77")
	ask := func(q *dns.Msg, network string) *dns.Msg {
		t.Helper()
		w := &answerTo{from: addr, network: network}
		if _, err := h.ServeDNS(t.Context(), w, q); err != nil {
			t.Fatal(err)
		}
		return w.m
	}
	first := ask(withCookie("0123456789abcdef"), "udp")
	if first.Truncated || len(first.Answer) != 1 {
		t.Errorf("the first: %v", first)
	}
	got := first.IsEdns0().Option[0].(*dns.EDNS0_COOKIE).Cookie
	for range 3 {
		if m := ask(question("gw.example.org.", "MX"), "udp"); !m.Truncated || len(m.Answer)+len(m.Extra) != 0 {
			t.Errorf("over the rate: %v", m)
		}
		if m := ask(withCookie("0123456789abcdef"), "udp"); !m.Truncated || m.IsEdns0() == nil || len(m.IsEdns0().Option) != 1 {
			t.Errorf("over the rate, without a cookie of ours: %v", m)
		}
		if m := ask(withCookie(got), "udp"); m.Truncated || len(m.Answer) != 1 || m.IsEdns0().Option[0].(*dns.EDNS0_COOKIE).Cookie != got {
			t.Errorf("with a cookie: %v", m)
		}
		if m := ask(question("gw.example.org.", "MX"), "tcp"); m.Truncated || len(m.Answer) != 1 {
			t.Errorf("by TCP: %v", m)
		}
	}
	if m := ask(withCookie("0123"), "tcp"); m.Rcode != dns.RcodeFormatError || len(m.IsEdns0().Option) != 0 {
		t.Errorf("a cookie that is none: %v", m)
	}
	if n := testutil.ToFloat64(h.metrics.limited.WithLabelValues("truncated")); n != 6 {
		t.Errorf("%v truncated", n)
	}
	for _, bad := range []Rate{{PerSecond: -1}, {Slip: -1}} {
		if _, err := New(Options{Source: sourceOf(z), Log: slog.New(slog.DiscardHandler), Rate: bad}); err == nil {
			t.Errorf("%+v is accepted", bad)
		}
	}
}

// answerTo keeps the answer to a client.
type answerTo struct {
	test.ResponseWriter
	from    netip.Addr
	network string
	m       *dns.Msg
}

func (w *answerTo) RemoteAddr() net.Addr {
	ap := netip.AddrPortFrom(w.from, 40000)
	if w.network == "tcp" {
		return net.TCPAddrFromAddrPort(ap)
	}
	return net.UDPAddrFromAddrPort(ap)
}

func (w *answerTo) Write(b []byte) (int, error) {
	w.m = new(dns.Msg)
	return len(b), w.m.Unpack(b)
}

func (w *answerTo) WriteMsg(m *dns.Msg) error { w.m = m; return nil }

// A flood of names that do not exist makes no signatures beyond the rate.
func TestRateBoundsSigning(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h, err := New(Options{Source: sourceOf(signed(t, twoHosts())), Log: slog.New(slog.DiscardHandler), Rate: Rate{PerSecond: 5, Slip: 2}})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 200 {
			w := &answerTo{from: netip.MustParseAddr("192.0.2.77"), network: "udp"}
			q := secure(question(fmt.Sprintf("n%d.gw.example.org.", i), "A"), i%2 == 0)
			if _, err := h.ServeDNS(t.Context(), w, q); err != nil {
				t.Fatal(err)
			}
			if w.m != nil && w.m.Truncated && len(w.m.Ns) > 0 {
				t.Errorf("a truncated answer has %v", w.m.Ns)
			}
		}
		if n := len(h.signer.denied.young); n > 5 {
			t.Errorf("%d denials were signed, 5 answers went out", n)
		}
	})
}
