//go:build peers

package peers

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"msgw/internal/lab"
	"msgw/test/labtest"
)

// ResolverAddr is where the suite's resolver listens, and what every program's
// resolv.conf names.
const ResolverAddr = "127.0.0.53"

// RootAddrs are where the root servers of the served tree listen.
var RootAddrs = []string{"127.0.1.1", "127.0.1.2"}

// ServeTree serves the DNS above the lab's zone with NSD, each zone on two addresses
// of its own: the root, com, and example.com, which delegates the zone to the lab's
// sites as an operator would. r must hold the package nsd.
func ServeTree(t testing.TB, r *Root, f lab.File) {
	t.Helper()
	ServeDelegation(t, r, Delegation(f))
}

// Delegation returns the lines with which an operator delegates the lab's zone.
func Delegation(f lab.File) string {
	lines := ""
	for _, n := range f.Nodes {
		if n.Role == "site" {
			lines += fmt.Sprintf("%s. NS %s.\n%s. A %s\n", f.Zone, n.Host, n.Host, n.Addr)
		}
	}
	return lines
}

// ServeDelegation serves the same with other lines to delegate the zone.
func ServeDelegation(t testing.TB, r *Root, lines string) {
	t.Helper()
	serve(t, r, "root", RootAddrs, ".", soaLine(".")+nsLines(".", RootAddrs)+nsLines("com.", comAddrs))
	serve(t, r, "com", comAddrs, "com.", soaLine("com.")+nsLines("com.", comAddrs)+nsLines("example.com.", exampleAddrs))
	serve(t, r, "example", exampleAddrs, "example.com.", soaLine("example.com.")+nsLines("example.com.", exampleAddrs)+lines)
}

// Where the servers of the other zones listen.
var comAddrs, exampleAddrs = []string{"127.0.1.3", "127.0.1.4"}, []string{"127.0.1.5", "127.0.1.6"}

func soaLine(zone string) string {
	return fmt.Sprintf("$ORIGIN %s\n$TTL 3600\n@ SOA ns1.%s hostmaster.%s 2026010101 14400 3600 1209600 3600\n", zone, suffix(zone), suffix(zone))
}

func nsLines(zone string, addrs []string) string {
	text := ""
	for i, a := range addrs {
		text += fmt.Sprintf("%s NS ns%d.%s\nns%d.%s A %s\n", zone, i+1, suffix(zone), i+1, suffix(zone), a)
	}
	return text
}

// suffix is zone as the end of a name below it.
func suffix(zone string) string {
	if zone == "." {
		return "root-servers."
	}
	return zone
}

// serve runs an NSD with one zone.
func serve(t testing.TB, r *Root, name string, addrs []string, zone, text string) *Process {
	t.Helper()
	dir := "/srv/nsd/" + name
	r.Write(t, dir+"/zone", text, 0o644)
	conf := "server:\n hide-version: yes\n username: \"\"\n chroot: \"\"\n zonesdir: " + dir + "\n database: \"\"\n pidfile: " + dir + "/pid\n xfrdfile: " + dir + "/xfrd\n zonelistfile: " + dir + "/list\n rrl-ratelimit: 0\n"
	for _, a := range addrs {
		conf += " ip-address: " + a + "\n"
	}
	conf += "remote-control:\n control-enable: no\nzone:\n name: \"" + zone + "\"\n zonefile: " + dir + "/zone\n"
	r.Write(t, dir+"/nsd.conf", conf, 0o644)
	r.Output(t, "/usr/sbin/nsd-checkzone", zone, dir+"/zone")
	p := Start(t, "nsd-"+name, r.Command(t.Context(), "/usr/sbin/nsd", "-d", "-c", dir+"/nsd.conf"))
	for _, a := range addrs {
		labtest.Within(t, 20*time.Second, "nsd for "+zone, func() error {
			_, err := Ask(a, zone, dns.TypeSOA)
			return err
		})
	}
	return p
}

// RootHints returns the served tree's root servers as a zone file.
func RootHints() string {
	hints := ""
	for i, a := range RootAddrs {
		hints += fmt.Sprintf(". 3600000 NS ns%d.root-servers.\nns%d.root-servers. 3600000 A %s\n", i+1, i+1, a)
	}
	return hints
}

// Unbound runs a resolver at ResolverAddr that knows the served tree's root, and
// returns it. Answers are kept for at most maxTTL. r must hold the package unbound.
func Unbound(t testing.TB, r *Root, maxTTL time.Duration) *Process {
	t.Helper()
	ttl := int(maxTTL.Seconds())
	return startUnbound(t, r, fmt.Sprintf(" module-config: \"iterator\"\n cache-max-ttl: %d\n cache-max-negative-ttl: %d\n", ttl, ttl), lab.Zone+".", dns.TypeMX)
}

// ValidatingUnbound runs the same resolver, validating from an anchor and answering what
// it can from the proofs that it has (RFC 8198).
func ValidatingUnbound(t testing.TB, r *Root, anchor string) *Process {
	t.Helper()
	return startUnbound(t, r, fmt.Sprintf(" module-config: \"validator iterator\"\n trust-anchor: %q\n aggressive-nsec: yes\n val-log-level: 2\n", anchor), "example.com.", dns.TypeSOA)
}

func startUnbound(t testing.TB, r *Root, conf, name string, qtype uint16) *Process {
	t.Helper()
	dir := "/srv/unbound"
	r.Write(t, dir+"/hints", RootHints(), 0o644)
	r.Write(t, dir+"/unbound.conf", fmt.Sprintf(`server:
 directory: %q
 chroot: ""
 username: ""
 pidfile: ""
 use-syslog: no
 verbosity: 1
 interface: %s
 access-control: 127.0.0.0/8 allow
 do-ip6: no
 do-not-query-localhost: no
 root-hints: %q
 qname-minimisation: yes
 num-threads: 1
%sremote-control:
 control-enable: no
`, dir, ResolverAddr, dir+"/hints", conf), 0o644)
	p := Start(t, "unbound", r.Command(t.Context(), "/usr/sbin/unbound", "-d", "-p", "-c", dir+"/unbound.conf"))
	labtest.Within(t, 20*time.Second, "unbound resolves through the tree", func() error {
		if p.Ended() {
			t.Fatal("unbound has ended")
		}
		m, err := Ask(ResolverAddr, name, qtype)
		if err == nil && len(m.Answer) == 0 {
			err = fmt.Errorf("no answer: %s", dns.RcodeToString[m.Rcode])
		}
		return err
	})
	return p
}

// Ask sends one query by UDP, recursion desired, and returns the answer.
func Ask(server, name string, qtype uint16) (*dns.Msg, error) {
	c := &dns.Client{Timeout: 3 * time.Second}
	q := new(dns.Msg).SetQuestion(name, qtype)
	m, _, err := c.Exchange(q, net.JoinHostPort(server, "53"))
	return m, err
}

// Lab starts a lab on the standard ports. See labtest.Start.
func Lab(t testing.TB, args ...string) *labtest.Lab {
	t.Helper()
	return labtest.Start(t, Program("msgw"), filepath.Join(t.TempDir(), "lab"), append([]string{"--standard-ports"}, args...)...)
}

// Lines returns the lines of a program's output.
func Lines(out string) []string { return strings.Split(strings.TrimRight(out, "\n"), "\n") }
