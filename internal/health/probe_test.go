package health

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// A server whose answers by UDP are used up by others is not dead.
func TestProbeDNSOfALimitedServer(t *testing.T) {
	t.Parallel()
	for name, udp := range map[string]func(w dns.ResponseWriter, m *dns.Msg){
		"dropped":   func(dns.ResponseWriter, *dns.Msg) {},
		"truncated": func(w dns.ResponseWriter, m *dns.Msg) { m.Truncated, m.Answer = true, nil; _ = w.WriteMsg(m) },
	} {
		for _, alive := range []bool{true, false} {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			pc, err := net.ListenPacket("udp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			handler := dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
				m := new(dns.Msg).SetReply(r)
				m.Authoritative = true
				m.Answer = []dns.RR{&dns.SOA{Hdr: dns.RR_Header{Name: r.Question[0].Name, Rrtype: dns.TypeSOA, Class: dns.ClassINET}, Ns: ".", Mbox: "."}}
				if w.LocalAddr().Network() == "udp" {
					udp(w, m)
					return
				}
				_ = w.WriteMsg(m)
			})
			servers := []*dns.Server{{PacketConn: pc, Handler: handler}}
			if alive {
				servers = append(servers, &dns.Server{Listener: l, Handler: handler})
			} else {
				l.Close()
			}
			for _, s := range servers {
				started, done := make(chan struct{}), make(chan error, 1)
				s.NotifyStartedFunc = func() { close(started) }
				go func() { done <- s.ActivateAndServe() }()
				<-started
				defer func() {
					if err := s.Shutdown(); err != nil {
						t.Error(err)
					}
					<-done
				}()
			}
			ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
			defer cancel()
			err = ProbeDNS(ctx, pc.LocalAddr().String(), "msgw.example.com")
			if alive && err != nil || !alive && (err == nil || !strings.Contains(err.Error(), "refused")) {
				t.Errorf("%s by UDP, alive by TCP %v: %v", name, alive, err)
			}
		}
	}
}
