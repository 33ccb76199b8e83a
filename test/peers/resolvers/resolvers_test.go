//go:build peers

// Package resolvers lets resolvers and judges of DNS that nobody here wrote look at a
// lab's zone, through a delegation from the root down.
package resolvers

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"msgw/internal/lab"
	"msgw/test/labtest"
	"msgw/test/peers"
)

var base = &peers.Root{Name: "resolvers", Packages: []string{"nsd", "unbound", "bind9", "bind9-dnsutils", "ldnsutils", "dnsviz", "zonemaster-cli", "dnsperf"}}

func TestMain(m *testing.M) {
	(&peers.Suite{Roots: []*peers.Root{base}}).Main(m)
}

const namedAddr = "127.0.0.54"

// TestResolvers lets unbound and BIND's named find the zone from the root down and
// ask it everything, in several orders, with a site gone and with the other one gone.
func TestResolvers(t *testing.T) {
	base.Versions(t)
	l := peers.Lab(t)
	f := l.File()
	peers.ServeTree(t, base, f)
	peers.Unbound(t, base, 0)
	startNamed(t, "dnssec-validation no; max-cache-ttl 1; max-ncache-ttl 1;", "")

	hosts := []string{f.Nodes[0].Host + ".", f.Nodes[1].Host + "."}
	zone := f.Zone + "."
	mx := []string{hosts[0], hosts[1]}
	questions := []struct {
		name  string
		qtype uint16
		rcode int
		want  []string // the data of the answers, in any order
	}{
		{zone, dns.TypeMX, dns.RcodeSuccess, mx},
		{zone, dns.TypeNS, dns.RcodeSuccess, hosts},
		{zone, dns.TypeSOA, dns.RcodeSuccess, []string{hosts[0]}},
		{zone, dns.TypeCAA, dns.RcodeSuccess, nil},
		{zone, dns.TypeTXT, dns.RcodeSuccess, nil},
		{hosts[0], dns.TypeA, dns.RcodeSuccess, []string{f.Nodes[0].Addr}},
		{hosts[1], dns.TypeA, dns.RcodeSuccess, []string{f.Nodes[1].Addr}},
		{hosts[0], dns.TypeAAAA, dns.RcodeSuccess, nil},
		{hosts[0], dns.TypeCAA, dns.RcodeSuccess, nil},
		{"_25._tcp." + hosts[0], dns.TypeTLSA, dns.RcodeNameError, nil},
		{"nobody." + zone, dns.TypeA, dns.RcodeNameError, nil},
		{"nobody." + zone, dns.TypeMX, dns.RcodeNameError, nil},
		{strings.ToUpper(zone), dns.TypeMX, dns.RcodeSuccess, mx},
	}
	ask := func(when string) {
		t.Helper()
		for _, server := range []string{peers.ResolverAddr, namedAddr} {
			for range 2 { // the second time the other way round: what one answer teaches must not spoil the next
				for _, q := range questions {
					labtest.Within(t, 30*time.Second, fmt.Sprintf("%s: %s answers %s %s", when, server, q.name, dns.TypeToString[q.qtype]), func() error {
						m, err := peers.Ask(server, q.name, q.qtype)
						if err != nil {
							return err
						}
						if got := data(m); m.Rcode != q.rcode || !sameSet(got, q.want) {
							return fmt.Errorf("%s %q, expected %s %q", dns.RcodeToString[m.Rcode], got, dns.RcodeToString[q.rcode], q.want)
						}
						return nil
					})
				}
				slices.Reverse(questions)
			}
		}
	}
	ask("both sites up")
	for _, name := range []string{"msgw1", "msgw2"} {
		if out, err := l.Msgw("lab", "kill", name, "--dir", l.Dir); err != nil {
			t.Fatalf("kill: %v %s", err, out)
		}
		ask(name + " is killed")
		if out, err := l.Msgw("lab", "start", name, "--dir", l.Dir); err != nil {
			t.Fatalf("start: %v %s", err, out)
		}
		labtest.Within(t, time.Minute, name+" answers DNS again", func() error {
			_, err := peers.Ask(map[string]string{"msgw1": f.Nodes[0].Addr, "msgw2": f.Nodes[1].Addr}[name], zone, dns.TypeSOA)
			return err
		})
	}
}

// data returns what the answers of the asked type say, without preferences.
func data(m *dns.Msg) []string {
	var all []string
	for _, rr := range m.Answer {
		switch rr := rr.(type) {
		case *dns.MX:
			all = append(all, strings.ToLower(rr.Mx))
		case *dns.NS:
			all = append(all, strings.ToLower(rr.Ns))
		case *dns.SOA:
			all = append(all, strings.ToLower(rr.Ns))
		case *dns.A:
			all = append(all, rr.A.String())
		default:
			all = append(all, rr.String())
		}
	}
	return all
}

func sameSet(a, b []string) bool {
	a, b = slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b))
	return slices.Equal(a, b)
}

// startNamed runs BIND as a resolver that knows the served tree's root, with more options
// and statements.
func startNamed(t *testing.T, options, statements string) {
	t.Helper()
	// named listens only on addresses that an interface has.
	if out, err := exec.Command("ip", "address", "replace", namedAddr+"/8", "dev", "lo").CombinedOutput(); err != nil {
		t.Fatalf("ip address add: %v\n%s", err, out)
	}
	const dir = "/srv/named"
	base.Write(t, dir+"/hints", peers.RootHints(), 0o644)
	base.Write(t, dir+"/named.conf", fmt.Sprintf(`options {
	directory %q;
	pid-file none;
	session-keyfile none;
	listen-on port 53 { %s; };
	listen-on-v6 { none; };
	recursion yes;
	allow-query { 127.0.0.0/8; };
	empty-zones-enable no;
	%s
};
controls { };
zone "." { type hint; file %q; };
%s
`, dir, namedAddr, options, dir+"/hints", statements), 0o644)
	named := peers.Start(t, "named", base.Command(t.Context(), "/usr/sbin/named", "-g", "-c", dir+"/named.conf"))
	labtest.Within(t, 30*time.Second, "named answers", func() error {
		if named.Ended() {
			t.Fatal("named has ended")
		}
		_, err := peers.Ask(namedAddr, lab.Zone+".", dns.TypeMX)
		return err
	})
}
