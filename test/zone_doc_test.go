package test

import (
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"net/smtp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"msgw/test/labtest"
)

// TestZoneDocument runs the boxes of docs/zone.md at one site, and expects the records of the
// box that follows in the answers of both.
func TestZoneDocument(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.becomes(0, "SYNC")
	// All addresses become loopback: the exchanges are probed.
	loop := p.nodes[0].Addr[:strings.LastIndexByte(p.nodes[0].Addr, '.')]
	addresses := strings.NewReplacer("192.0.2.1\n", p.nodes[0].Addr+"\n", "198.51.100.1\n", p.nodes[1].Addr+"\n", "192.0.2.", loop+".")
	boxes := 0
	for _, box := range strings.Split(read(t, "docs", "zone.md"), "```sh zone\n")[1:] {
		commands, rest, _ := strings.Cut(box, "```\n")
		for line := range strings.Lines(commands) {
			p.msgw(0, 0, words(t, addresses.Replace(line))...)
		}
		_, records, _ := strings.Cut(rest, "```zone\n")
		records, _, _ = strings.Cut(records, "```\n")
		for line := range strings.Lines(records) {
			want, err := dns.NewRR(addresses.Replace(line))
			if err != nil || want == nil {
				t.Fatalf("%q: %v", line, err)
			}
			for _, n := range p.nodes {
				labtest.Within(t, 20*time.Second, "answer of "+n.Name, func() error {
					m := new(dns.Msg).SetQuestion(want.Header().Name, want.Header().Rrtype)
					r, err := dns.Exchange(m, n.DNS)
					if err != nil {
						return err
					}
					if !slices.ContainsFunc(r.Answer, func(rr dns.RR) bool { return rr.String() == want.String() }) {
						return fmt.Errorf("%s is not in %v", want, r.Answer)
					}
					return nil
				})
			}
			boxes++
		}
	}
	if boxes < 15 {
		t.Errorf("%d records", boxes)
	}
	m := new(dns.Msg).SetQuestion(zone+".", dns.TypeMX)
	if r, err := dns.Exchange(m, p.nodes[1].DNS); err != nil || len(r.Answer) != 4 {
		t.Errorf("MX %v, %v", r, err)
	}
}

// TestTLSA compares the TLSA records that both sites answer with the keys that they show.
func TestTLSA(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	p.msgw(0, 0, "dns", "set", "--tlsa", "on")
	for _, host := range p.nodes {
		c, err := smtp.Dial(host.SMTP)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.StartTLS(&tls.Config{InsecureSkipVerify: true, ServerName: host.Host}); err != nil {
			t.Fatal(err)
		}
		state, _ := c.TLSConnectionState()
		want := fmt.Sprintf("3 1 1 %x", sha256.Sum256(state.PeerCertificates[0].RawSubjectPublicKeyInfo))
		for _, n := range p.nodes {
			labtest.Within(t, 20*time.Second, "TLSA of "+host.Name+" at "+n.Name, func() error {
				r, err := dns.Exchange(new(dns.Msg).SetQuestion("_25._tcp."+host.Host+".", dns.TypeTLSA), n.DNS)
				if err != nil {
					return err
				}
				if len(r.Answer) != 1 || !strings.HasSuffix(r.Answer[0].String(), want) {
					return fmt.Errorf("%v, want %s", r.Answer, want)
				}
				return nil
			})
		}
	}
}

// words takes a command line apart; single quotes keep words together.
func words(t *testing.T, line string) (out []string) {
	t.Helper()
	line, ok := strings.CutPrefix(strings.TrimSpace(line), "msgw ")
	for i, part := range strings.Split(line, "'") {
		if i%2 == 1 {
			out = append(out, part)
		} else {
			out = append(out, strings.Fields(part)...)
		}
	}
	if !ok {
		t.Fatalf("%q", line)
	}
	return out
}
