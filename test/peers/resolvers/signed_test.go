//go:build peers

package resolvers

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"msgw/internal/admin"
	"msgw/internal/lab"
	"msgw/test/labtest"
	"msgw/test/peers"
)

// signing runs `msgw dns` at the first site and returns what it says of signing.
func signing(t *testing.T, l *labtest.Lab, args ...string) (admin.Signing, error) {
	t.Helper()
	var s admin.Signing
	out, err := l.Msgw(append([]string{"dns", args[0], "--json", "--dir", l.File().Nodes[0].Dir}, args[1:]...)...)
	if err != nil {
		return s, fmt.Errorf("%w: %s", err, out)
	}
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return s, nil
}

// signedLab is a lab whose zone is signed, below a signed tree that has its DS.
func signedLab(t *testing.T, args ...string) (*labtest.Lab, *peers.SignedTree, admin.Signing) {
	t.Helper()
	l := peers.Lab(t)
	s, err := signing(t, l, append([]string{"sign", "on"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return l, peers.ServeSignedTree(t, base, peers.Delegation(l.File()), s.Keys[0].DS), s
}

// askDO asks with DO and CD off, as a stub that trusts its resolver does.
func askDO(server, name string, qtype uint16) (*dns.Msg, error) {
	q := new(dns.Msg).SetQuestion(name, qtype).SetEdns0(1232, true)
	q.AuthenticatedData = true
	m, _, err := (&dns.Client{Timeout: 5 * time.Second}).Exchange(q, net.JoinHostPort(server, "53"))
	return m, err
}

// bindAnchor writes a DNSKEY record as BIND's trust-anchors statement.
func bindAnchor(t *testing.T, anchor string) string {
	t.Helper()
	rr, err := dns.NewRR(anchor)
	if err != nil {
		t.Fatal(err)
	}
	k := rr.(*dns.DNSKEY)
	return fmt.Sprintf("trust-anchors { . static-key %d %d %d %q; };", k.Flags, k.Protocol, k.Algorithm, k.PublicKey)
}

// TestSigned lets two validating resolvers that answer from proofs (RFC 8198) ask a signed
// zone everything, in many orders: what one answer proves must not make another one wrong.
func TestSigned(t *testing.T) {
	base.Versions(t)
	l, tree, _ := signedLab(t)
	f := l.File()
	zone, host := f.Zone+".", f.Nodes[0].Host+"."
	challenge := "_acme-challenge." + host
	if out, err := l.Msgw("dns", "set", "--caa", "letsencrypt.org", "--tlsa", "on", "--tls-reports", "mailto:tls@example.com", "--dir", f.Nodes[0].Dir); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	labtest.Within(t, 20*time.Second, "both sites answer TLSA of both", func() error {
		for _, n := range f.Nodes {
			for _, of := range f.Nodes {
				if m, err := peers.Ask(n.Addr, "_25._tcp."+of.Host+".", dns.TypeTLSA); err != nil || len(m.Answer) == 0 {
					return fmt.Errorf("%s of %s: %v, %w", n.Name, of.Name, m, err)
				}
			}
		}
		return nil
	})
	questions := []struct {
		name    string
		qtype   uint16
		answers bool
		rcodes  []int
		secure  bool
	}{
		{zone, dns.TypeMX, true, []int{dns.RcodeSuccess}, true},
		{zone, dns.TypeNS, true, []int{dns.RcodeSuccess}, true},
		{zone, dns.TypeSOA, true, []int{dns.RcodeSuccess}, true},
		{zone, dns.TypeDNSKEY, true, []int{dns.RcodeSuccess}, true},
		{zone, dns.TypeA, false, []int{dns.RcodeSuccess}, true},
		{zone, dns.TypeAAAA, false, []int{dns.RcodeSuccess}, true},
		{zone, dns.TypeTLSA, false, []int{dns.RcodeSuccess}, true},
		{zone, dns.TypeCAA, true, []int{dns.RcodeSuccess}, true},
		{zone, dns.TypeTXT, false, []int{dns.RcodeSuccess}, true},
		{host, dns.TypeCAA, false, []int{dns.RcodeSuccess}, true},
		{"_smtp._tls." + zone, dns.TypeTXT, true, []int{dns.RcodeSuccess}, true},
		{"_tls." + zone, dns.TypeTXT, false, []int{dns.RcodeSuccess}, true}, // an empty non-terminal
		{"_25._tcp." + f.Nodes[1].Host + ".", dns.TypeTLSA, true, []int{dns.RcodeSuccess}, true},
		{host, dns.TypeA, true, []int{dns.RcodeSuccess}, true},
		{host, dns.TypeAAAA, false, []int{dns.RcodeSuccess}, true},
		{host, dns.TypeMX, false, []int{dns.RcodeSuccess}, true},
		{f.Nodes[1].Host + ".", dns.TypeA, true, []int{dns.RcodeSuccess}, true},
		// To a resolver that does not know NXNAME, such a name has no types.
		{"nobody." + zone, dns.TypeA, false, []int{dns.RcodeSuccess, dns.RcodeNameError}, true},
		{"nobody." + zone, dns.TypeMX, false, []int{dns.RcodeSuccess, dns.RcodeNameError}, true},
		{"_25._tcp." + host, dns.TypeTLSA, true, []int{dns.RcodeSuccess}, true},
		{"_25._tcp." + host, dns.TypeA, false, []int{dns.RcodeSuccess}, true},
		{"_587._tcp." + host, dns.TypeTLSA, false, []int{dns.RcodeSuccess, dns.RcodeNameError}, true},
		// The challenge's name is delegated without DS.
		{challenge, dns.TypeDS, false, []int{dns.RcodeSuccess}, true},
		{challenge, dns.TypeTXT, false, []int{dns.RcodeSuccess}, false},
		{challenge, dns.TypeNS, true, []int{dns.RcodeSuccess}, false},
	}
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 1))
	unbound := peers.ValidatingUnbound(t, base, tree.Anchor)
	startNamed(t, "dnssec-validation yes; synth-from-dnssec yes;", bindAnchor(t, tree.Anchor))
	for round := range 12 {
		// The caches of unbound go with it; named keeps its own, for more to be proved from.
		if round > 0 {
			unbound.Stop(15)
			unbound = peers.ValidatingUnbound(t, base, tree.Anchor)
		}
		random.Shuffle(len(questions), func(i, j int) { questions[i], questions[j] = questions[j], questions[i] })
		for range 2 {
			for _, q := range questions {
				for _, server := range []string{peers.ResolverAddr, namedAddr} {
					m, err := askDO(server, q.name, q.qtype)
					if err != nil {
						t.Fatalf("seed %d: %v", seed, err)
					}
					ok := false
					for _, r := range q.rcodes {
						ok = ok || m.Rcode == r
					}
					has := false
					for _, rr := range m.Answer {
						has = has || rr.Header().Rrtype == q.qtype
					}
					if !ok || has != q.answers || m.AuthenticatedData != q.secure {
						t.Fatalf("seed %d, round %d: %s answers %s %s\n%v", seed, round, server, q.name, dns.TypeToString[q.qtype], m)
					}
				}
			}
		}
	}

	// BIND's and LDNS's validators, from the root down, without the resolvers' own.
	bare := bindAnchor(t, tree.Anchor)
	base.Write(t, "/srv/delv.anchor", bare, 0o644)
	base.Write(t, "/srv/root.key", tree.Anchor+"\n", 0o644)
	for _, q := range [][2]string{{zone, "MX"}, {zone, "CAA"}, {host, "A"}, {host, "TLSA"}, {"nobody." + zone, "MX"}} {
		out := base.Output(t, "/usr/bin/delv", "-a", "/srv/delv.anchor", "@"+peers.ResolverAddr, q[0], q[1])
		if !strings.Contains(out, "fully validated") {
			t.Errorf("delv %s %s:\n%s", q[0], q[1], out)
		}
	}
	out := base.Output(t, "/usr/bin/drill", "-S", "-k", "/srv/root.key", "@"+peers.ResolverAddr, "MX", strings.TrimSuffix(zone, "."))
	if !strings.Contains(out, "Chase successful") || !strings.Contains(out, "DS keytag") {
		t.Errorf("drill:\n%s", out)
	}
	dnsviz(t, tree, zone, host)
}

// dnsviz lets dnsviz walk from the root to the names and say what it thinks.
func dnsviz(t *testing.T, tree *peers.SignedTree, names ...string) {
	t.Helper()
	base.Write(t, "/srv/dnsviz.key", tree.Anchor+"\n", 0o644)
	base.Write(t, "/srv/hints", peers.RootHints(), 0o644)
	args := "dnsviz probe -A -4 -a . -x .+:ns1.root-servers=127.0.1.1,ns2.root-servers=127.0.1.2"
	out, err := base.Command(t.Context(), "/bin/sh", "-c", args+" "+strings.Join(names, " ")+" >/srv/probe.json && dnsviz print -r /srv/probe.json -t /srv/dnsviz.key").CombinedOutput()
	text := string(out)
	if err != nil {
		t.Fatalf("dnsviz: %v\n%s", err, text)
	}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		// A lab's addresses are loopback.
		fault := (strings.HasPrefix(line, "E:") || strings.HasPrefix(line, "W:")) && !strings.HasSuffix(line, "_PRIVATE_IP")
		// Each signature and each proof stands behind the mark of its server and before its own.
		if strings.Contains(line, "RRSIG:") || strings.Contains(line, "PROOF:") || strings.Contains(line, " DS: ") || strings.Contains(line, "DNSKEY:") {
			fault = fault || !strings.HasSuffix(line, "[.]")
		}
		if fault {
			t.Errorf("dnsviz finds fault: %s", line)
		}
	}
	if t.Failed() || strings.Count(text, "PROOF:") < 2 {
		t.Errorf("dnsviz:\n%s", text)
	}
}

// TestSignedZonemaster lets zonemaster test the zone when it is signed.
func TestSignedZonemaster(t *testing.T) {
	signedLab(t)
	zonemaster(t, []string{"DNSSEC01", "DNSSEC02", "DNSSEC05", "DNSSEC07", "DNSSEC08", "DNSSEC09", "DNSSEC10", "DELEGATION01", "ZONE09"}, expected)
}

// TestRollover changes the key of a zone and makes it unsigned, under two resolvers that
// validate and are asked all the time. Every answer is right, at every step.
func TestRollover(t *testing.T) {
	l, tree, s := signedLab(t, "--max-ttl", "2s")
	peers.ValidatingUnbound(t, base, tree.Anchor)
	startNamed(t, "dnssec-validation yes; synth-from-dnssec yes;", bindAnchor(t, tree.Anchor))
	zone := lab.Zone + "."

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	var mu sync.Mutex
	secure, insecure, phase := 0, 0, "signed"
	for _, server := range []string{peers.ResolverAddr, namedAddr} {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				name, qtype := zone, dns.TypeMX
				if i%3 == 1 {
					name, qtype = fmt.Sprintf("no%d.%s", i, zone), dns.TypeA
				}
				m, err := askDO(server, name, qtype)
				mu.Lock()
				switch {
				case err != nil || m.Rcode == dns.RcodeServerFailure || qtype == dns.TypeMX && len(m.Answer) == 0:
					t.Errorf("in %s %s answers %s: %v %v", phase, server, name, err, m)
				case m.AuthenticatedData:
					secure++
				default:
					insecure++
				}
				mu.Unlock()
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
	// step takes a step as soon as it is let, and says how long that took.
	step := func(want string, args ...string) admin.Signing {
		t.Helper()
		begun, early := time.Now(), 0
		var last admin.Signing
		labtest.Within(t, 2*time.Minute, want, func() error {
			s, err := signing(t, l, args...)
			if err != nil {
				early++
				return err
			}
			if s.Phase != want {
				t.Fatalf("%v led to %q, expected %q", args, s.Phase, want)
			}
			last = s
			return nil
		})
		mu.Lock()
		defer mu.Unlock()
		phase = want
		t.Logf("%q after %v; %d attempts were too early; %d answers secure, %d insecure", want, time.Since(begun).Round(time.Second), early, secure, insecure)
		return last
	}
	time.Sleep(5 * time.Second)
	step("new-key", "rollover")
	now := step("new-ds", "rollover")
	time.Sleep(3 * time.Second)
	if _, err := signing(t, l, "rollover"); err == nil || !strings.Contains(err.Error(), s.Keys[0].DS+" does not belong there") {
		t.Errorf("with the old DS: %v", err)
	}
	tree.SetDS(t, now.Keys[1].DS)
	now = step("signed", "rollover")
	if len(now.Keys) != 1 || now.Keys[0].DS == s.Keys[0].DS {
		t.Errorf("keys %+v", now.Keys)
	}
	mu.Lock()
	if insecure > 0 || secure < 100 {
		t.Errorf("%d answers secure, %d insecure", secure, insecure)
	}
	mu.Unlock()
	time.Sleep(5 * time.Second)
	step("leaving", "sign", "off")
	tree.SetDS(t)
	step("", "sign", "off")
	time.Sleep(5 * time.Second)
	cancel()
	wg.Wait()
	if m, err := askDO(peers.ResolverAddr, zone, dns.TypeMX); err != nil || len(m.Answer) != 2 || m.AuthenticatedData {
		t.Errorf("unsigned: %v, %v", m, err)
	}
}

// TestParent lets msgw look at the parent: not delegated, with an old gateway's address at
// the name; delegated; and with a DS that does not belong there.
func TestParent(t *testing.T) {
	l := peers.Lab(t)
	f := l.File()
	check := func() (string, error) { return l.Msgw("dns", "check", "--dir", f.Nodes[0].Dir) }
	want := func(name string, ok bool, lines ...string) {
		t.Helper()
		out, err := check()
		if (err == nil) != ok {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		for _, line := range lines {
			if !strings.Contains(out, line) {
				t.Errorf("%s: no %q in\n%s", name, line, out)
			}
		}
	}
	old := "msgw.example.com. 300 A 127.0.0.99\nmsgw.example.com. 300 MX 10 msgw.example.com.\nmsgw2.msgw.example.com. 300 A 127.0.0.98\n"
	tree := peers.ServeSignedTree(t, base, old)
	peers.ValidatingUnbound(t, base, tree.Anchor)
	want("before", false, "msgw1: example.com differs:", "msgw2: example.com differs:", "(127.0.1.5:53): the zone is not delegated", "(127.0.1.6:53): the zone is not delegated",
		"warning: the delegation will hide msgw.example.com. 300 IN A 127.0.0.99", "warning: the delegation will hide msgw.example.com. 300 IN MX 10 msgw.example.com.",
		"warning: the delegation will hide msgw2.msgw.example.com. 300 IN A 127.0.0.98")
	records, err := l.Msgw("dns", "records", "--dir", f.Nodes[0].Dir)
	if err != nil {
		t.Fatal(err)
	}
	tree.SetLines(t, records) // what the command prints is a part of a zone file
	want("delegated", true, "msgw1: example.com has what it has to hold, at all of its 2 servers", "msgw2: example.com has")
	tree.SetDS(t, "12345 13 2 0123456789ABCDEF0123456789ABCDEF0123456789ABCDEF0123456789ABCDEF")
	want("DS", false, "DS 12345 13 2 0123456789ABCDEF0123456789ABCDEF0123456789ABCDEF0123456789ABCDEF does not belong there")
	tree.SetLines(t, strings.Replace(records, f.Nodes[1].Addr, "127.0.0.97", 1))
	want("glue", false, "glue msgw2.msgw.example.com. "+f.Nodes[1].Addr+" is missing", "glue msgw2.msgw.example.com. 127.0.0.97 does not belong there")
}
