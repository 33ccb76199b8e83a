package node

import (
	"net"
	"testing"

	"github.com/miekg/dns"

	"msgw/internal/admin"
)

// A CAA set that allows nobody forbids every CA, also one that is not known (RFC 8659 section 4.2).
func TestCheckCAAForbidsAll(t *testing.T) {
	t.Parallel()
	l, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &dns.Server{PacketConn: l, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		m.Answer = []dns.RR{&dns.CAA{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeCAA, Class: dns.ClassINET}, Tag: "issue", Value: ";"}}
		_ = w.WriteMsg(m)
	})}
	go func() { _ = s.ActivateAndServe() }()
	defer s.Shutdown()
	for _, ca := range []string{"", "letsencrypt.org"} {
		c := &certCheck{Node: &Node{cfg: &Config{Resolver: l.LocalAddr().String()}}, out: admin.CertificateCheck{OK: true}}
		c.caa(t.Context(), "msgw1.example.net", ca)
		if c.out.OK || len(c.out.Findings) != 1 {
			t.Errorf("CA %q: %+v", ca, c.out)
		}
	}
}
