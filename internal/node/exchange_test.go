package node

import (
	"context"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"msgw/raftstore"
)

// An exchange without addresses is looked up through the node's resolver; one that fails
// says nothing of the exchange, whose last addresses count on.
func TestLookUp(t *testing.T) {
	t.Parallel()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var fails atomic.Bool
	var asked atomic.Int32
	s := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg).SetReply(r)
		asked.Add(1)
		switch q := r.Question[0]; {
		case fails.Load():
			m.Rcode = dns.RcodeServerFailure
		case q.Qtype == dns.TypeA && q.Name == "old.example.com.":
			for _, a := range []string{"192.0.2.7", "192.0.2.8"} {
				m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.ParseIP(a)})
			}
		}
		_ = w.WriteMsg(m)
	})}
	done := make(chan error, 1)
	go func() { done <- s.ActivateAndServe() }()
	t.Cleanup(func() {
		if err := s.Shutdown(); err != nil {
			t.Error(err)
		}
		<-done
	})
	n := &Node{cfg: &Config{Resolver: pc.LocalAddr().String()}}
	first := int32(0)
	for i := range 3 {
		list, err := n.lookUp(t.Context(), "old.example.com.")
		if slices.Sort(list); err != nil || !slices.Equal(list, []string{"192.0.2.7", "192.0.2.8"}) {
			t.Errorf("%q, %v", list, err)
		}
		switch i {
		case 0:
			first = asked.Load()
			fails.Store(true)
		case 1:
			if asked.Load() != first {
				t.Error("asked again within a minute")
			}
			last := n.lookedUp.get("old.example.com.")
			n.lookedUp.last["old.example.com."] = lookedUpAt{last.addresses, last.at.Add(-2 * lookedUpFor)}
		case 2:
			if asked.Load() == first {
				t.Error("not asked again after two minutes")
			}
		}
	}
	if _, err := n.lookUp(t.Context(), "gone.example.com."); err == nil || !strings.Contains(err.Error(), "addresses of gone.example.com.") {
		t.Errorf("a host that was never found: %v", err)
	}
}

// A resolver that hangs does not use up the time of the probe, which would make the exchange
// look dead.
func TestLookUpOfASilentResolver(t *testing.T) {
	t.Parallel()
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	n := &Node{cfg: &Config{Resolver: silent.LocalAddr().String()}}
	n.lookedUp.last = map[string]lookedUpAt{"old.example.com.": {[]string{"192.0.2.7"}, time.Now().Add(-2 * lookedUpFor)}}
	ctx, cancel := context.WithTimeout(t.Context(), 600*time.Millisecond)
	defer cancel()
	for range 2 { // the second time, it is not asked
		if list, err := n.lookUp(ctx, "old.example.com."); err != nil || !slices.Equal(list, []string{"192.0.2.7"}) {
			t.Errorf("%q, %v", list, err)
		}
	}
	if ctx.Err() != nil {
		t.Error("no time is left for the probe")
	}
}

func TestExchangeAddress(t *testing.T) {
	t.Parallel()
	for want, e := range map[string]raftstore.Exchange{"192.0.2.7:25": {Addresses: []string{"192.0.2.7"}}, "[2001:db8::7]:2525": {Addresses: []string{"2001:db8::7"}, Port: 2525}} {
		if got := exchangeAddress(e.Addresses[0], e); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
